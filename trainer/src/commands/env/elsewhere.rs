//! `baleen env fingerprint`: the bytes of tasks, summed up; and the same asked of another process.
//!
//! Tasks must be the same bytes in every process and on every machine. Within a process some causes of the contrary
//! can't be seen: addresses, the environment, the time at which it started.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use environments::{Family, examination};

use super::super::{Failure, output};
use super::check::Selection;

/// Longer than the tasks of a level take to be drawn, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(600);

/// Print a checksum of the tasks of each level, to compare machines and versions
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line a level: family, level, number of seeds, and BLAKE3 of the tasks. It is the same wherever tasks are the same.")]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
}

/// Prints a line a level.
pub fn run(args: &Args) -> Result<(), Failure> {
    for (family, level) in args.selection.levels()? {
        let num_seeds = args.selection.num_seeds(family);
        let sum = examination::fingerprint(&family, level, num_seeds);
        if !output::print_line(&line(family, level, num_seeds, &sum))? {
            break;
        }
    }
    Ok(())
}

fn line(family: Family, level: u32, num_seeds: u64, sum: &str) -> String {
    format!("{family} {level} {num_seeds} {sum}")
}

/// Another process that draws the same tasks, beside this one. It is killed when dropped.
pub struct Elsewhere {
    child: Child,
    lines: Receiver<io::Result<String>>,
}

impl Elsewhere {
    /// Starts it on these levels.
    ///
    /// # Errors
    /// This program can't be started again.
    pub fn start(levels: &[(Family, u32)], selection: &Selection) -> io::Result<Elsewhere> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["env", "fingerprint"]);
        let mut families: Vec<&str> = levels.iter().map(|(family, _)| family.name()).collect();
        families.dedup();
        command.args(families);
        if let Some(level) = selection.level {
            command.args(["--level", &level.to_string()]);
        }
        if let Some(seeds) = selection.seeds {
            command.args(["--seeds", &seeds.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Elsewhere { child, lines })
    }

    /// The checksum of this level, the next in the order of the start.
    ///
    /// # Errors
    /// Why there is none.
    pub fn fingerprint(
        &self,
        family: Family,
        level: u32,
        num_seeds: u64,
    ) -> Result<String, String> {
        let said = match self.lines.recv_timeout(PATIENCE) {
            Ok(said) => said.map_err(|error| error.to_string())?,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("it took longer than {} s", PATIENCE.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("it ended early".to_string()),
        };
        match said.strip_prefix(&line(family, level, num_seeds, "")) {
            Some(sum) => Ok(sum.to_string()),
            None => Err(format!("it said {said:?}")),
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
