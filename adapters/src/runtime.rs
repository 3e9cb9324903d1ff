//! The one runtime for what is asynchronous here. Callers are ordinary threads, and wait with a deadline.

use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use environments::{Fault, FaultKind};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Result<&'static Runtime, Fault> {
    static STARTED: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(2).enable_all();
        let builder = builder.thread_name("adapters");
        builder.build().map_err(|error| error.to_string())
    });
    started
        .as_ref()
        .map_err(|error| Fault::new(FaultKind::Infra, format!("no threads for servers: {error}")))
}

/// What `future` gives, or `None` where that takes longer; it is dropped then.
///
/// # Errors
/// No threads.
pub(crate) fn within<T: Send + 'static>(
    deadline: Duration,
    future: impl Future<Output = T> + Send + 'static,
) -> Result<Option<T>, Fault> {
    let (sender, receiver) = sync_channel(1);
    // Not `block_on`, which panics on a thread of another runtime.
    runtime()?.spawn(async move {
        // Whatever the future holds is let go of before the caller goes on.
        let outcome = tokio::time::timeout(deadline, future).await.ok();
        let _ = sender.send(outcome);
    });
    // The sender is dropped unused only where the future panics.
    receiver
        .recv()
        .map_err(|_| Fault::new(FaultKind::Infra, "the client of a server panicked"))
}

/// Runs `future` beside the caller, for so long at most.
pub(crate) fn spawn<T: Send + 'static>(
    deadline: Duration,
    future: impl Future<Output = T> + Send + 'static,
) {
    if let Ok(runtime) = runtime() {
        runtime.spawn(async move { drop(tokio::time::timeout(deadline, future).await) });
    }
}
