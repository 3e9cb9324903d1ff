//! Building a jail: slot, control group, pipes, supervisor, files, and the word to go.

use rustix::fs::OFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Jail, SERVICE_TIME};
use crate::SandboxError;
use crate::cgroup::Cgroup;
use crate::error::While;
use crate::outcome::{Captured, Flags};
use crate::sandbox::Sandbox;
use crate::slot::Slot;
use crate::spec::{Backend, FileIn, JailSpec};
use crate::watch::Watch;
use crate::wire::{self, CHUNK_BYTES, Order, Program, Report};

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
}

fn unblocked(fd: OwnedFd) -> Result<File, SandboxError> {
    rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK).while_trying("unblock a pipe")?;
    Ok(fd.into())
}
