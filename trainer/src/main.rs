//! The command line of baleen; the commands live in `trainer::commands`.

use std::process::ExitCode;

use clap::Parser;
use trainer::commands::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{failure}");
            failure.exit_code()
        }
    }
}
