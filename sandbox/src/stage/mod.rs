//! The launcher's stages. Each is this program run again, single-threaded, so that every step is a
//! plain system call and none needs unsafe code:
//!
//! - `supervise` (child of the library): takes the slot's user id, enters new namespaces, starts
//!   the next stage, kills everything when the library hangs up, and says when all are dead.
//! - `init` (full backend): process 1 of the jail. Builds the root, writes the files in, starts the
//!   program, reaps.
//! - `program`: resource limits, Landlock, filter of system calls, then becomes the program.

mod filter;
mod init;
mod launch;
mod paths;
mod program;
mod root;
mod self_test;
mod supervise;

pub use self_test::Check;

use rustix::thread as thr;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use crate::error::SandboxError;
use crate::wire::{self, Report};

pub(crate) const SUPERVISE: &str = "stage-supervise";
const INIT: &str = "stage-init";
const PROGRAM: &str = "stage-program";
const SWEEP: &str = "stage-sweep";

/// Runs the stage that the arguments name; none when they name no stage.
#[must_use]
pub fn run_stage(arguments: &[String]) -> Option<ExitCode> {
    let result = match arguments.first()?.as_str() {
        SUPERVISE => supervise::run(),
        INIT => init::run(),
        PROGRAM => program::run(&arguments[1..]),
        SWEEP => supervise::sweep(&arguments[1..]),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard input of every stage but the last is the control socket.
            let (action, cause) = match error {
                SandboxError::Infra { action, cause } => (action, cause),
                other => ("build the jail".to_owned(), other.to_string()),
            };
            let _ = wire::send(io::stdin(), &Report::Failed { action, cause }, None);
            ExitCode::from(125)
        }
    })
}

/// Sends a report on the control socket.
fn report(report: &Report, fd: Option<std::os::fd::BorrowedFd<'_>>) -> Result<(), SandboxError> {
    wire::send(io::stdin().as_fd(), report, fd)
        .map_err(|cause| SandboxError::infra("report to the library", cause))
}

/// Gives up every capability, now and for what is executed later.
fn drop_capabilities() -> Result<(), SandboxError> {
    let failed = |cause| SandboxError::infra("drop capabilities", cause);
    thr::clear_ambient_capability_set().map_err(failed)?;
    for capability in thr::CapabilitySet::all().iter() {
        // Fails without CAP_SETPCAP; then there is nothing to give up, which no_new_privs seals.
        let _ = thr::remove_capability_from_bounding_set(capability);
    }
    thr::set_capabilities(
        None,
        thr::CapabilitySets {
            effective: thr::CapabilitySet::empty(),
            permitted: thr::CapabilitySet::empty(),
            inheritable: thr::CapabilitySet::empty(),
        },
    )
    .map_err(failed)
}
