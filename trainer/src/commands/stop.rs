//! Ctrl-C and SIGTERM: the first asks the run to end after the current step, the second ends the
//! process at once.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// Exit code of a process that a signal ended, by convention 128 + the number of SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

static STOP: AtomicBool = AtomicBool::new(false);

/// Starts to listen; the flag is set by the first signal.
pub fn on_signal() -> Result<&'static AtomicBool, Failure> {
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
                if STOP.swap(true, Ordering::SeqCst) {
                    std::process::exit(EXIT_INTERRUPTED);
                }
                tracing::info!(
                    "asked to stop: finishing this step and saving; again to quit at once"
                );
            }
        });
    });
    Ok(&STOP)
}
