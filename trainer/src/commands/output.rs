//! Results on standard output. A reader that has seen enough (`| head`) ends the command quietly.

use std::io::{self, Write};

use super::Failure;

/// Prints `line` with a newline at once. False when nobody reads any more.
pub fn print_line(line: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::running(error)),
    }
}
