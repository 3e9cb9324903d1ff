//! `baleen fsck`: whether everything in a run folder is whole. Reads only.

use std::path::PathBuf;

use super::{Failure, output};
use crate::fsck;
use crate::run_folder::{RunFolderError, RunLayout};

/// Check that everything in a run folder is whole
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
}

/// Prints a line a part; fails where one is damaged.
pub fn run(args: &Args) -> Result<(), Failure> {
    let layout = RunLayout::new(&args.run);
    if !layout.is_run() {
        let path = args.run.clone();
        return Err(RunFolderError::NotARun { path }.into());
    }
    if let Some(process) = layout.holder() {
        let text = format!("{} is in use by {process}", args.run.display());
        return Err(Failure::running(text)
            .hint("a run at work changes its files; check it when it has ended"));
    }
    let parts = fsck::check(&layout);
    for part in &parts {
        let line = match &part.state {
            Ok(state) => format!("ok       {}: {state}", part.name),
            Err(problem) => format!("damaged  {}: {problem}", part.name),
        };
        if !output::print_line(&line)? {
            break;
        }
    }
    let num_damaged = parts.iter().filter(|part| part.state.is_err()).count();
    if num_damaged == 0 {
        return Ok(());
    }
    let text = format!(
        "{num_damaged} of {} parts of {} are damaged",
        parts.len(),
        args.run.display()
    );
    Err(Failure::running(text).hint(
        "`baleen resume` continues from the newest checkpoint that is intact; restore other parts from a backup",
    ))
}
