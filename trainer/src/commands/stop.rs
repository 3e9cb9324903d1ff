//! Ctrl-C and SIGTERM: the first asks a run to end after the current step, the second ends the
//! process at once. A command that only looks on ends at the first.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// Exit code of a process that a signal ended, by convention 128 + the number of SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

/// Starts to listen; the flag is set by the first signal.
pub fn on_signal() -> Result<&'static AtomicBool, Failure> {
    listen(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_INTERRUPTED);
        }
        tracing::info!("asked to stop: finishing this step and saving; again to quit at once");
    })
}

/// Starts to listen for a command that looks at the flag several times a second: a signal sets it and
/// does nothing else.
pub fn flag_on_signal() -> Result<&'static AtomicBool, Failure> {
    listen(|| STOP.store(true, Ordering::SeqCst))
}

/// Does `on_signal` at every Ctrl-C and SIGTERM from now on.
fn listen(on_signal: impl Fn() + Send + 'static) -> Result<&'static AtomicBool, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::running)?;
    // Registered before this returns, so no signal slips through to the default action.
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(Failure::running)?,
            signal(SignalKind::terminate()).map_err(Failure::running)?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                on_signal();
            }
        });
    });
    Ok(&STOP)
}
