//! `baleen sandbox`: the sandbox on this machine.
//!
//! Jails are built by the launcher `baleen-sandbox`, a small program beside this one: none of libtorch is mapped where
//! untrusted programs start.

use std::io;

use ::sandbox::{doctor, find_launcher};
use clap::Subcommand;

use super::Failure;

/// The sandbox that runs what policies write
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What this machine offers, whether each backend holds, and what to change
    Doctor,
}

/// Prints a line an attempt; fails where no backend holds.
pub fn run(args: &Args) -> Result<(), Failure> {
    let Action::Doctor = args.action;
    let launcher = find_launcher().map_err(Failure::running)?;
    match doctor(&launcher, &mut io::stdout().lock()) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Failure::running("no backend of the sandbox holds here")
            .hint("the lines above say what to change; docs/sandbox.md tells more")),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::running(error)),
    }
}
