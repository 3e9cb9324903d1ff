//! The sandbox that runs what policies write: one for the process, opened when it is first needed.

use std::sync::{Arc, OnceLock};

use sandbox::Sandbox;

use crate::verdict::{Fault, FaultKind};

/// The strongest sandbox that works on this machine.
///
/// # Errors
/// A fault with what to change, where none does; the same at every call, since a machine does not change under a run.
pub fn sandbox() -> Result<Arc<Sandbox>, Fault> {
    static OPENED: OnceLock<Result<Arc<Sandbox>, Fault>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        let sandbox = Sandbox::open();
        sandbox
            .map(Arc::new)
            .map_err(|error| Fault::new(FaultKind::Infra, error.to_string()))
    });
    opened.clone()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Whether tests can run code here. Where no sandbox works, it says so on standard error.
    ///
    /// # Panics
    /// When the launcher was not built: that says nothing about the machine, and a test must not pass for want of it.
    pub(crate) fn has_sandbox() -> bool {
        if let Err(error) = sandbox::find_launcher() {
            panic!("{error}");
        }
        match sandbox() {
            Ok(_) => true,
            Err(fault) => {
                eprintln!("SKIPPED on this machine: {fault}");
                false
            }
        }
    }
}
