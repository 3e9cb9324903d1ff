//! `baleen watch`: a run on the terminal, live. Reads only; the run may be working.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use super::{Failure, output, stop};
use crate::dashboard::{self, RunFiles};
use crate::run_folder::RunLayout;

/// Columns of a frame that no terminal shows.
const PLAIN_COLUMNS: u16 = 100;

/// Watch a run: rewards, curves, samples and log on the terminal
#[derive(Debug, clap::Args)]
#[command(after_help = "\
q quits, Tab changes the panel, arrows and page keys go through samples, ? lists all keys. The run is
not touched: quitting leaves it at work.")]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
    /// Print everything once, as plain text, and end
    #[arg(long)]
    once: bool,
}

/// Watches until a key or a signal ends it; prints once where nobody could press one.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut files = RunFiles::open(RunLayout::new(&args.run))?;
    let is_terminal = io::stdout().is_terminal();
    if !args.once && is_terminal {
        let stop = stop::flag_on_signal()?;
        return dashboard::watch(&mut files, stop).map_err(|error| {
            Failure::running(format!("the terminal can't be used: {error}"))
                .hint("`baleen watch RUN --once` prints everything as plain text")
        });
    }
    if !args.once {
        eprintln!("standard output is no terminal: printing everything once, as with --once");
    }
    output::print_line(&dashboard::once(&mut files, PLAIN_COLUMNS)).map(|_| ())
}
