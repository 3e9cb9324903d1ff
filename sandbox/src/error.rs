//! What can go wrong with the sandbox itself. What the program inside did is never an error: it is
//! an [`Outcome`](crate::Outcome).

use std::path::PathBuf;
use std::time::Duration;

/// A fault of the service. A caller must not count any of these against the program: the run says
/// nothing about it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No backend passes its self-test here.
    #[error("no sandbox backend works on this machine, so untrusted code is refused: {reason}")]
    Refused {
        /// Why each backend was ruled out and what to change.
        reason: String,
    },
    /// The launcher program is missing.
    #[error(
        "the launcher baleen-sandbox was not found (looked at {looked_at:?}); build it with `cargo build -p sandbox` or name it in BALEEN_SANDBOX"
    )]
    NoLauncher {
        /// Every place that was tried.
        looked_at: Vec<PathBuf>,
    },
    /// The order itself is impossible: too large, or a path that leaves the working folder.
    #[error("bad sandbox order: {0}")]
    BadSpec(String),
    /// Every slot is in use.
    #[error("all {slots} sandbox slots are in use")]
    Capacity {
        /// Slots tried.
        slots: u32,
    },
    /// The sandbox did not answer in time (the program's own time limit is an outcome instead).
    #[error("the sandbox did not {waited_for} within {waited:?}")]
    Timeout {
        /// What was waited for, a verb phrase.
        waited_for: &'static str,
        /// How long.
        waited: Duration,
    },
    /// A step of building or tearing down a sandbox failed.
    #[error("sandbox failed to {action}: {cause}")]
    Infra {
        /// What was tried, a verb phrase.
        action: String,
        /// The system's words.
        cause: String,
    },
}

impl SandboxError {
    /// Shorthand for [`SandboxError::Infra`].
    pub(crate) fn infra(action: impl Into<String>, cause: impl ToString) -> Self {
        Self::Infra {
            action: action.into(),
            cause: cause.to_string(),
        }
    }
}

/// Adds what was tried to a system error.
pub(crate) trait While<T> {
    fn while_trying(self, action: impl Into<String>) -> Result<T, SandboxError>;
}

impl<T, E: ToString> While<T> for Result<T, E> {
    fn while_trying(self, action: impl Into<String>) -> Result<T, SandboxError> {
        self.map_err(|cause| SandboxError::infra(action, cause))
    }
}
