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
