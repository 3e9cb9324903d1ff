//! One running jail, seen from the library: pipes, limits, the end. Everything waits with a
//! deadline, in one loop over the jail's descriptors; no thread is started. How it is built:
//! `jail/start.rs`; how it is taken down: `jail/end.rs`.

mod end;
mod start;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::SandboxError;
use crate::cgroup::Cgroup;
use crate::error::While;
use crate::outcome::{Captured, End, FileOut, Flags, Outcome};
use crate::outputs::{Refusal, read_below};
use crate::slot::Slot;
use crate::spec::{Backend, Limits};
use crate::watch::Watch;
use crate::wire::{self, CHUNK_BYTES, Ended, Report};

/// For building a jail and for taking it down.
const SERVICE_TIME: Duration = Duration::from_secs(20);
/// Between two looks at the limits.
const TICK: Duration = Duration::from_millis(50);

/// What [`Jail::read_line`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line without its end; the last one may lack one.
    Bytes(Vec<u8>),
    /// Nothing complete came in time; the program may still be at it.
    NotYet,
    /// The program's output ended.
    Ended,
}

/// A program running in a jail. Dropping it kills everything inside.
#[derive(Debug)]
pub struct Jail {
    supervisor: Child,
    control: OwnedFd,
    stdin: Option<File>,
    stdout: Captured,
    stderr: Captured,
    work_dir: Option<OwnedFd>,
    slot: Option<Slot>,
    cgroup: Option<Cgroup>,
    backend: Backend,
    watch: Watch,
    limits: Limits,
    started: Instant,
    ended_after: Option<Duration>,
    flags: Flags,
    end: Option<End>,
    all_dead: bool,
    torn_down: bool,
}

impl Jail {
    fn hear(&mut self, report: Report) -> Result<(), SandboxError> {
        match report {
            Report::Failed { action, cause } => {
                return Err(SandboxError::Infra { action, cause });
            }
            Report::NotStarted { cause } => self.ended(End::NotStarted(cause)),
            Report::Ended(Ended::Exited(code)) => self.ended(End::Exited(code)),
            Report::Ended(Ended::Signalled(signal)) => self.ended(End::Signalled(signal)),
            Report::Gone => self.all_dead = true,
            Report::Ready | Report::Started { .. } => {}
        }
        Ok(())
    }

    fn ended(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.ended_after.get_or_insert(self.started.elapsed());
    }

    /// Waits for events once, at most until `until`, moving bytes and minding the limits.
    /// `input` is what still goes to the program.
    fn turn(&mut self, until: Instant, input: &mut &[u8]) -> Result<(), SandboxError> {
        let now = Instant::now();
        let wait = until.saturating_duration_since(now).min(TICK);
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: wait.subsec_nanos().into(),
        };
        let wants_input = !input.is_empty();
        {
            let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
            for stream in [&self.stdout, &self.stderr] {
                fds.extend(
                    stream
                        .open_file()
                        .map(|file| PollFd::new(file, PollFlags::IN)),
                );
            }
            if wants_input && let Some(stdin) = &self.stdin {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(SandboxError::infra("wait for events", errno)),
            }
            if !fds[0].revents().is_empty() && !self.all_dead {
                drop(fds);
                match wire::receive::<Report>(&self.control).while_trying("hear from the jail")? {
                    Some((report, _)) => self.hear(report)?,
                    None => self.all_dead = true,
                }
            }
        }
        for stream in [&mut self.stdout, &mut self.stderr] {
            self.flags.output_cut |= stream.read_available().while_trying("read output")?;
        }
        if wants_input {
            self.feed(input)?;
        }
        self.mind_limits();
        Ok(())
    }

    fn feed(&mut self, input: &mut &[u8]) -> Result<(), SandboxError> {
        let Some(stdin) = &mut self.stdin else {
            *input = &[];
            return Ok(());
        };
        match stdin.write(input) {
            Ok(written) => *input = &input[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The program does not read any more, which is its right.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                *input = &[];
                self.stdin = None;
            }
            Err(error) => return Err(SandboxError::infra("write standard input", error)),
        }
        Ok(())
    }

    fn mind_limits(&mut self) {
        if self.end.is_some() || self.all_dead {
            return;
        }
        if self.started.elapsed() >= self.limits.wall {
            self.flags.timed_out = true;
        }
        let supervisor = self.supervisor.id().cast_signed();
        let over = self
            .watch
            .look(&self.limits, self.cgroup.as_ref(), supervisor);
        self.flags.join(&over);
        if self.flags.timed_out || over.any() {
            self.hang_up();
            self.ended(End::Killed);
        }
    }

    /// Tells the supervisor to kill everything.
    fn hang_up(&self) {
        let _ = shutdown(&self.control, Shutdown::Write);
    }

    /// Sends bytes to the program's standard input.
    ///
    /// # Errors
    /// [`SandboxError::Timeout`] when the program does not take them within `time`.
    pub fn write(&mut self, bytes: &[u8], time: Duration) -> Result<(), SandboxError> {
        let until = Instant::now() + time;
        let mut input = bytes;
        while !input.is_empty() && self.is_running() {
            if Instant::now() >= until {
                return Err(SandboxError::Timeout {
                    waited_for: "take its input",
                    waited: time,
                });
            }
            self.turn(until, &mut input)?;
        }
        Ok(())
    }

    /// Closes the program's standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line of standard output, waiting at most `time`.
    ///
    /// # Errors
    /// Faults of the service.
    pub fn read_line(&mut self, time: Duration) -> Result<Line, SandboxError> {
        let until = Instant::now() + time;
        loop {
            if let Some(line) = self.stdout.take_line() {
                return Ok(Line::Bytes(line));
            }
            if self.stdout.open_file().is_none() || !self.is_running() {
                let _ = self.stdout.read_available();
                return Ok(match self.stdout.take_line_or_rest() {
                    Some(line) => Line::Bytes(line),
                    None => Line::Ended,
                });
            }
            if Instant::now() >= until {
                return Ok(Line::NotYet);
            }
            self.turn(until, &mut &[][..])?;
        }
    }

    /// The program has not ended (nor been ended).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.end.is_none() && !self.all_dead
    }

    /// Feeds `input`, closes standard input, and waits for the program's end and everybody's death.
    ///
    /// # Errors
    /// Faults of the service; the program's time limit is no fault.
    pub fn wait(&mut self, mut input: &[u8]) -> Result<(), SandboxError> {
        loop {
            if input.is_empty() {
                self.stdin = None;
            }
            // The limit on time ends the first part; then the supervisor gets its own time.
            let service_until = self.started + self.limits.wall + SERVICE_TIME;
            if self.all_dead {
                break;
            }
            if Instant::now() >= service_until {
                return Err(SandboxError::Timeout {
                    waited_for: "end after its time was over",
                    waited: SERVICE_TIME,
                });
            }
            self.turn(service_until, &mut input)?;
        }
        self.tear_down()
    }

    /// Waits at most `time` for the program's end, so that [`Jail::end`] tells its own.
    pub(crate) fn await_end(&mut self, time: Duration) -> Result<(), SandboxError> {
        let until = Instant::now() + time;
        while self.is_running() && Instant::now() < until {
            self.turn(until, &mut &[][..])?;
        }
        Ok(())
    }

    /// Kills everything inside and waits until it is gone.
    ///
    /// # Errors
    /// Faults of the service.
    pub fn kill(&mut self) -> Result<(), SandboxError> {
        self.hang_up();
        let until = Instant::now() + SERVICE_TIME;
        while !self.all_dead {
            if Instant::now() >= until {
                return Err(SandboxError::Timeout {
                    waited_for: "die",
                    waited: SERVICE_TIME,
                });
            }
            self.turn(until, &mut &[][..])?;
        }
        self.ended(End::Killed);
        self.tear_down()
    }

    /// Reads a file of the working folder; the program should have ended, or the file may change.
    ///
    /// # Errors
    /// [`Refusal`] says why not.
    pub fn read_file(&self, path: &str, max_bytes: usize) -> Result<Vec<u8>, Refusal> {
        match &self.work_dir {
            Some(dir) => read_below(dir, path, max_bytes),
            None => Err(Refusal::Missing),
        }
    }

    /// How it ended; none while it runs.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Which limits were reached so far.
    #[must_use]
    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    /// Time from the start of the program to its end, or to now.
    #[must_use]
    pub fn wall_time(&self) -> Duration {
        self.ended_after.unwrap_or_else(|| self.started.elapsed())
    }

    /// Processor time of everything inside, where a control group counts it.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        self.cgroup.as_ref()?.cpu_time()
    }

    /// Standard output and standard error as kept so far.
    #[must_use]
    pub fn output(&self) -> (&[u8], &[u8]) {
        (self.stdout.bytes(), self.stderr.bytes())
    }

    /// Everything about a run whose end was waited for.
    pub(crate) fn into_outcome(self, files: Vec<FileOut>) -> Result<Outcome, SandboxError> {
        let end = self
            .end
            .clone()
            .ok_or_else(|| SandboxError::infra("tell the outcome", "the program still runs"))?;
        Ok(Outcome {
            end,
            stdout: self.stdout.marked(),
            stderr: self.stderr.marked(),
            flags: self.flags,
            files,
            wall: self.wall_time(),
            cpu: self.cpu_time(),
        })
    }
}

/// Reads what is there into `sink`; true at the end of the stream.
pub(crate) fn drain(file: &mut File, mut sink: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut buffer = [0; CHUNK_BYTES];
    // Bounded, so that a flood does not keep the loop from the limits.
    for _ in 0..64 {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(num_bytes) => sink(&buffer[..num_bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
