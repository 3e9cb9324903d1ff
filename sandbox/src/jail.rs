//! One running jail, seen from the library: pipes, limits, the end. Everything waits with a
//! deadline, in one loop over the jail's descriptors; no thread is started.

use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::SandboxError;
use crate::cgroup::Cgroup;
use crate::error::While;
use crate::outcome::{Captured, End, FileOut, Flags, Outcome};
use crate::outputs::{Refusal, read_below};
use crate::sandbox::Sandbox;
use crate::slot::Slot;
use crate::spec::{Backend, FileIn, JailSpec, Limits};
use crate::watch::Watch;
use crate::wire::{self, CHUNK_BYTES, Ended, Order, Program, Report};

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
    /// Builds a jail and starts the program in it.
    pub(crate) fn start(
        sandbox: &Sandbox,
        backend: Backend,
        spec: &JailSpec,
        files: &[FileIn],
        program: Program,
    ) -> Result<Self, SandboxError> {
        spec.validate()?;
        files.iter().try_for_each(FileIn::validate)?;
        let slot = sandbox.slots.take()?;
        let cgroup = match &sandbox.cgroups {
            Some(home) => Some(Cgroup::make(home, slot.index, &spec.limits)?),
            None => None,
        };
        let work_path = match backend {
            Backend::Full => None,
            Backend::Lite => Some(slot.make_work_dir()?),
        };
        let pipe = || io::pipe().while_trying("make a pipe");
        let ((stdin_read, stdin_write), (stdout_read, stdout_write), (stderr_read, stderr_write)) =
            (pipe()?, pipe()?, pipe()?);
        let (control, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .while_trying("make a socket pair")?;
        for timeout in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&control, timeout, Some(SERVICE_TIME))
                .while_trying("bound the waiting")?;
        }
        let supervisor = Command::new(&sandbox.launcher)
            .arg(crate::stage::SUPERVISE)
            .env_clear()
            .env(
                "BALEEN_SANDBOX_SECRET",
                "the launcher must not pass this on",
            )
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(OwnedFd::from(stdout_write)))
            .stderr(Stdio::from(OwnedFd::from(stderr_write)))
            .spawn()
            .while_trying(format!("start {}", sandbox.launcher.display()))?;
        let mut jail = Self {
            supervisor,
            control,
            stdin: Some(unblocked(OwnedFd::from(stdin_write))?),
            stdout: Captured::new(
                unblocked(OwnedFd::from(stdout_read))?,
                spec.limits.output_bytes,
            ),
            stderr: Captured::new(
                unblocked(OwnedFd::from(stderr_read))?,
                spec.limits.output_bytes,
            ),
            work_dir: None,
            watch: Watch::new(work_path.clone()),
            slot: Some(slot),
            cgroup,
            backend,
            limits: spec.limits.clone(),
            started: Instant::now(),
            ended_after: None,
            flags: Flags::default(),
            end: None,
            all_dead: false,
            torn_down: false,
        };
        let slot_id = jail.slot.as_ref().and_then(Slot::id);
        let order = Order::Prepare {
            spec: spec.clone(),
            program,
            work_dir: work_path
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned()),
            limit_data: jail.cgroup.is_none(),
        };
        let size = serde_json::to_vec(&order).map_or(0, |bytes| bytes.len());
        if size > wire::MESSAGE_BYTES {
            return Err(SandboxError::BadSpec(format!(
                "command and environment take {size} bytes, more than {}; pass a file instead",
                wire::MESSAGE_BYTES
            )));
        }
        let first = Order::Supervise { backend, slot_id };
        let lock = jail.slot.as_ref().and_then(Slot::lock);
        let sent = wire::send(&jail.control, &first, lock);
        jail.told_or(sent, "give the supervisor its order")?;
        jail.order(&order, Some(stdin_read.as_fd()))?;
        drop(stdin_read);
        jail.await_ready()?;
        if let Some(path) = work_path {
            jail.work_dir = Some(
                File::open(path)
                    .while_trying("open the working folder")?
                    .into(),
            );
        }
        for file in files {
            jail.order(
                &Order::File {
                    path: file.path.clone(),
                    num_bytes: file.bytes.len() as u64,
                    executable: file.executable,
                },
                None,
            )?;
            for chunk in file.bytes.chunks(CHUNK_BYTES) {
                let sent = wire::send_bytes(&jail.control, chunk, None);
                jail.told_or(sent, "send a file into the jail")?;
            }
        }
        jail.order(&Order::Go, None)?;
        jail.started = Instant::now();
        Ok(jail)
    }

    fn order(&mut self, order: &Order, fd: Option<BorrowedFd<'_>>) -> Result<(), SandboxError> {
        let sent = wire::send(&self.control, order, fd);
        self.told_or(sent, "give the jail an order")
    }

    /// When sending fails the jail has mostly said why already.
    fn told_or(&mut self, sent: io::Result<()>, action: &str) -> Result<(), SandboxError> {
        let Err(error) = sent else { return Ok(()) };
        while let Ok(Some((told, _))) = wire::receive::<Report>(&self.control) {
            self.hear(told)?;
        }
        Err(SandboxError::infra(action, error))
    }

    /// Waits for both marks of a jail that is built, in either order.
    fn await_ready(&mut self) -> Result<(), SandboxError> {
        let (mut is_ready, mut pid) = (false, None);
        while !is_ready || pid.is_none() {
            let received =
                wire::receive::<Report>(&self.control).map_err(|error| match error.kind() {
                    io::ErrorKind::WouldBlock => SandboxError::Timeout {
                        waited_for: "get ready",
                        waited: SERVICE_TIME,
                    },
                    _ => SandboxError::infra("hear from the launcher", error),
                })?;
            match received {
                Some((Report::Ready, fd)) => {
                    is_ready = true;
                    self.work_dir = fd;
                }
                Some((Report::Started { pid: started }, _)) => {
                    pid = Some(started);
                    if let Some(cgroup) = &self.cgroup {
                        cgroup.add(started)?;
                    }
                }
                Some((other, _)) => self.hear(other)?,
                None => {
                    let _ = self.stderr.read_available();
                    let words = String::from_utf8_lossy(self.stderr.bytes()).into_owned();
                    return Err(SandboxError::infra(
                        "start",
                        format!("the launcher ended at once: {words}"),
                    ));
                }
            }
        }
        Ok(())
    }

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

    /// Everybody is dead by the supervisor's word: checks it, and collects what is left.
    fn tear_down(&mut self) -> Result<(), SandboxError> {
        if self.torn_down {
            return Ok(());
        }
        let deadline = Instant::now() + SERVICE_TIME;
        self.reap_supervisor(deadline)?;
        for stream in [&mut self.stdout, &mut self.stderr] {
            self.flags.output_cut |= stream.read_available().while_trying("read output")?;
        }
        if let Some(cgroup) = &self.cgroup {
            if !cgroup.wait_empty(deadline) {
                return Err(SandboxError::infra(
                    "end the jail",
                    "its control group is not empty",
                ));
            }
            self.flags.out_of_memory |= cgroup.was_out_of_memory();
            self.flags.out_of_tasks |= cgroup.was_out_of_tasks();
        } else if let Some(id) = self.slot.as_ref().and_then(Slot::id)
            && crate::processes::user_has_processes(id)
        {
            return Err(SandboxError::infra(
                "end the jail",
                "processes of its user remain",
            ));
        }
        self.flags.out_of_cpu |= self.end == Some(End::Signalled(libc::SIGXCPU));
        // Only the kernel's own killing for memory takes process 1 away before it reports.
        self.ended(End::Killed);
        self.torn_down = true;
        Ok(())
    }

    fn reap_supervisor(&mut self, deadline: Instant) -> Result<(), SandboxError> {
        loop {
            match self.supervisor.try_wait() {
                Ok(Some(_)) => return Ok(()),
                Ok(None) if Instant::now() > deadline => {
                    return Err(SandboxError::Timeout {
                        waited_for: "end its supervisor",
                        waited: SERVICE_TIME,
                    });
                }
                Ok(None) => std::thread::sleep(Duration::from_micros(200)),
                Err(error) => return Err(SandboxError::infra("wait for the supervisor", error)),
            }
        }
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

    fn release(&mut self) -> Result<(), SandboxError> {
        self.work_dir = None;
        if self.backend == Backend::Lite
            && let Some(slot) = &self.slot
        {
            crate::tree::remove(&slot.work_dir()).while_trying("remove the working folder")?;
        }
        // Before the slot is free, since its next jail has a group of the same name.
        match self.cgroup.take() {
            Some(cgroup) => cgroup.remove(),
            None => Ok(()),
        }
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let result = if self.torn_down { Ok(()) } else { self.kill() };
        if result.is_err()
            && self
                .supervisor
                .try_wait()
                .is_ok_and(|ended| ended.is_none())
        {
            // Process 1 (full) and the program itself (lite) follow their parent.
            let _ = nix::sys::signal::kill(
                Pid::from_raw(self.supervisor.id().cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
            let _ = self.supervisor.wait();
        }
        let settled = self.tear_down().and_then(|()| self.release());
        // A slot whose jail may still live is not given to another one.
        if settled.is_err()
            && let Some(slot) = self.slot.take()
        {
            slot.quarantine();
        }
    }
}

fn unblocked(fd: OwnedFd) -> Result<File, SandboxError> {
    rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK).while_trying("unblock a pipe")?;
    Ok(fd.into())
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
