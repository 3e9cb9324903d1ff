//! Python sessions: cells of code that run one after another in one interpreter inside a jail, and
//! share its state as the cells of a notebook do.
//!
//! What a cell does is never an error: exceptions, time, memory, and a process that dies are told in
//! the [`Cell`]. [`SandboxError`] stays what it is elsewhere, a fault of the service.
//! The program inside is `python/session.py`; its frames are read in `python/frame.rs`.

mod cell;
mod frame;

use std::time::{Duration, Instant};

use crate::SandboxError;
use crate::jail::{Jail, Line};
use crate::outcome::{End, Flags};
use crate::sandbox::Sandbox;
use crate::spec::{FileIn, JailSpec, Limits};

pub use cell::{Cell, CellFlags};
use frame::{Frame, Greeting};

const PROGRAM: &str = include_str!("python/session.py");
/// The program removes it before the first cell.
const PROGRAM_PATH: &str = ".python_session.py";
/// For the interpreter to start, on a machine where many do so at once.
const START_TIME: Duration = Duration::from_secs(60);
/// For the keeper inside to take a cell. It always reads, unless a cell stopped it.
const TAKE_TIME: Duration = Duration::from_secs(20);
/// Beyond a cell's time and its grace the keeper has so many times the grace to answer.
const ANSWER_GRACES: u32 = 4;
/// For a keeper that has said its last to be seen to end.
const END_TIME: Duration = Duration::from_secs(2);

/// Limits of one session.
#[derive(Clone, Debug, PartialEq)]
pub struct PythonLimits {
    /// Seconds that a cell may take before it is interrupted.
    pub cell: Duration,
    /// From the interrupt to the killing.
    pub grace: Duration,
    /// Cells in all; [`PythonSession::run`] tells when none is left.
    pub max_cells: u32,
    /// Bytes of the code of one cell.
    pub code_bytes: usize,
    /// Bytes kept of each stream, of the result and of the traceback: half from the head, half from the tail.
    pub output_bytes: usize,
    /// Memory of everything inside.
    pub memory_bytes: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Processes and threads, two of which are the session's own.
    pub num_tasks: u64,
    /// Processor cores at once; only a control group enforces it.
    pub cpus: f64,
    /// From the first cell (or the first after a restart) to the end, the policy's thinking between
    /// cells included.
    pub wall: Duration,
}

impl Default for PythonLimits {
    fn default() -> Self {
        Self {
            cell: Duration::from_secs(120),
            grace: Duration::from_secs(5),
            max_cells: 20,
            code_bytes: 256 << 10,
            output_bytes: 16 << 10,
            memory_bytes: 1 << 30,
            disk_bytes: 256 << 20,
            num_tasks: 64,
            cpus: 1.0,
            wall: Duration::from_secs(3 * 3600),
        }
    }
}

impl PythonLimits {
    fn jail(&self) -> Limits {
        let cells = f64::from(self.max_cells.max(1)) * (self.cell + self.grace).as_secs_f64();
        Limits {
            memory_bytes: self.memory_bytes,
            num_tasks: self.num_tasks,
            // Every cell may be busy to its end; what goes on between cells counts too.
            cpu_secs: (cells * self.cpus.max(1.0)).ceil() as u64 + 1,
            cpus: self.cpus,
            wall: self.wall,
            disk_bytes: self.disk_bytes,
            // A frame has five cut texts in hexadecimal digits.
            output_bytes: 10 * self.output_bytes + (4 << 10),
        }
    }
}

/// One interpreter and its state. It starts with the first cell; dropping it kills everything inside.
#[derive(Debug)]
pub struct PythonSession {
    sandbox: Sandbox,
    limits: PythonLimits,
    files: Vec<FileIn>,
    jail: Option<Jail>,
    num_cells: u32,
}

impl PythonSession {
    /// `files` are in the working folder when the interpreter starts, also after a restart.
    #[must_use]
    pub fn new(sandbox: &Sandbox, limits: PythonLimits, files: Vec<FileIn>) -> Self {
        Self {
            sandbox: sandbox.clone(),
            limits,
            files,
            jail: None,
            num_cells: 0,
        }
    }

    /// How many cells may still run.
    #[must_use]
    pub fn num_cells_left(&self) -> u32 {
        self.limits.max_cells.saturating_sub(self.num_cells)
    }

    /// Runs a cell and waits for its end, at most `cell` and five times `grace`.
    ///
    /// # Errors
    /// Faults of the service: no slot, no interpreter, a jail that does not come up or go down.
    pub fn run(&mut self, code: &str) -> Result<Cell, SandboxError> {
        if self.num_cells_left() == 0 {
            return Ok(Cell::not_run(format!(
                "no code executions are left: all {} were used, and this one was not run",
                self.limits.max_cells
            )));
        }
        if code.len() > self.limits.code_bytes {
            return Ok(Cell::not_run(format!(
                "the code has {} bytes, more than {}, and was not run",
                code.len(),
                self.limits.code_bytes
            )));
        }
        let mut jail = match self.jail.take() {
            Some(jail) => jail,
            None => self.start()?,
        };
        self.num_cells += 1;
        let start = Instant::now();
        let heard = self.ask(&mut jail, code)?;
        let duration = start.elapsed();
        let mut cell = match heard {
            Heard::Frame(frame) if frame.is_done() => {
                self.jail = Some(jail);
                frame.into_cell()
            }
            other => {
                let (end, flags) = take_down(&mut jail, !matches!(other, Heard::Silence))?;
                match other {
                    Heard::Frame(frame) => frame.into_last_cell(&flags),
                    Heard::Silence => Cell::silent(&flags),
                    Heard::End => Cell::ended(&end, &flags),
                }
            }
        };
        cell.number = self.num_cells;
        cell.duration = duration;
        cell.time_limit = self.limits.cell;
        Ok(cell)
    }

    /// Ends the interpreter and waits until everything inside is gone. The next cell starts anew.
    ///
    /// # Errors
    /// Faults of the service.
    pub fn stop(&mut self) -> Result<(), SandboxError> {
        self.jail.take().map_or(Ok(()), |mut jail| jail.kill())
    }

    fn start(&self) -> Result<Jail, SandboxError> {
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        let spec = JailSpec {
            limits: self.limits.jail(),
            ..JailSpec::new([
                "python3".to_owned(),
                "-sB".to_owned(),
                PROGRAM_PATH.to_owned(),
                seconds(self.limits.cell),
                seconds(self.limits.grace),
                self.limits.output_bytes.to_string(),
            ])
        };
        let mut files = self.files.clone();
        files.push(FileIn::new(PROGRAM_PATH, PROGRAM));
        let mut jail = self.sandbox.spawn(&spec, &files)?;
        // No cell has run yet, so whatever goes wrong here is not the policy's doing.
        match jail.read_line(START_TIME)? {
            Line::Bytes(line) if Greeting::is(&line) => Ok(jail),
            Line::NotYet => Err(SandboxError::Timeout {
                waited_for: "start Python",
                waited: START_TIME,
            }),
            Line::Bytes(_) | Line::Ended => Err(not_started(&mut jail)),
        }
    }

    fn ask(&self, jail: &mut Jail, code: &str) -> Result<Heard, SandboxError> {
        let mut order = serde_json::json!({ "id": self.num_cells, "code": code }).to_string();
        order.push('\n');
        match jail.write(order.as_bytes(), TAKE_TIME) {
            Err(SandboxError::Timeout { .. }) => return Ok(Heard::Silence),
            other => other?,
        }
        let time = self.limits.cell + self.limits.grace * (1 + ANSWER_GRACES);
        Ok(match jail.read_line(time)? {
            // A keeper that is killed while it speaks leaves half a frame.
            Line::Bytes(line) => Frame::read(&line).map_or(Heard::End, Heard::Frame),
            Line::NotYet => Heard::Silence,
            Line::Ended => Heard::End,
        })
    }
}

/// What came back for a cell.
enum Heard {
    Frame(Box<Frame>),
    /// Nothing, while the program still runs.
    Silence,
    /// The program is gone.
    End,
}

/// Ends a jail whose session is over.
fn take_down(jail: &mut Jail, ends_itself: bool) -> Result<(End, Flags), SandboxError> {
    if ends_itself {
        jail.await_end(END_TIME)?;
    }
    jail.kill()?;
    let end = jail.end().cloned().unwrap_or(End::Killed);
    Ok((end, *jail.flags()))
}

fn not_started(jail: &mut Jail) -> SandboxError {
    if let Err(error) = jail.wait(&[]) {
        return error;
    }
    let words = String::from_utf8_lossy(jail.output().1).trim().to_owned();
    SandboxError::infra(
        "start Python",
        match jail.end() {
            Some(End::NotStarted(cause)) => format!(
                "{cause}; install Python 3.8 or later as python3 in /usr/bin or /usr/local/bin (Debian: apt install python3)"
            ),
            end => format!("it ended at once ({end:?}): {words}"),
        },
    )
}
