//! Receives what to run, writes its files into the working folder and starts the program's stage.
//! Shared by process 1 (full) and the supervisor (lite).
//!
//! Two pipes go to the program's stage by number: the gate, on which it reads its order once all is
//! in place, and the status, on which it reports why it could not start; executing the program
//! closes the status, so that an empty one means success.

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{PROGRAM, report, supervise};
use crate::SandboxError;
use crate::error::While;
use crate::spec::{Backend, JailSpec};
use crate::wire::{self, Ended, Order, Program, Report};

/// The library's order, as received.
pub(super) struct Prepared {
    pub(super) spec: JailSpec,
    pub(super) program: Program,
    pub(super) work_dir: Option<String>,
    pub(super) limit_data: bool,
    stdin: OwnedFd,
}

/// All that starting needs.
pub(super) struct Launch {
    pub(super) backend: Backend,
    pub(super) slot_id: Option<u32>,
    pub(super) work_dir: String,
    pub(super) order: Prepared,
}

/// What the program's stage reads from the gate.
#[derive(Serialize, Deserialize)]
pub(super) struct ProgramOrder {
    pub(super) backend: Backend,
    /// Taken by the program's stage itself (lite).
    pub(super) slot_id: Option<u32>,
    pub(super) work_dir: String,
    pub(super) spec: JailSpec,
    pub(super) program: Program,
    pub(super) limit_data: bool,
}

fn receive_order() -> Result<(Order, Option<OwnedFd>), SandboxError> {
    wire::receive::<Order>(io::stdin())
        .while_trying("read an order")?
        .ok_or_else(|| SandboxError::infra("read an order", "the library hung up"))
}

pub(super) fn receive_prepare() -> Result<Prepared, SandboxError> {
    match receive_order()? {
        (
            Order::Prepare {
                spec,
                program,
                work_dir,
                limit_data,
            },
            Some(stdin),
        ) => Ok(Prepared {
            spec,
            program,
            work_dir,
            limit_data,
            stdin,
        }),
        _ => Err(SandboxError::infra("read the order", "not the one due")),
    }
}

/// Starts the program; none (after a report) when it is the program's own fault that it does not
/// start. `before_go` gets the process id and returns once the program may start.
pub(super) fn start(
    launch: &Launch,
    before_go: impl FnOnce(i32) -> Result<(), SandboxError>,
) -> Result<Option<Pid>, SandboxError> {
    let (gate, mut gate_writer) = io::pipe().while_trying("make a pipe")?;
    let (mut status, status_writer) = io::pipe().while_trying("make a pipe")?;
    // No other thread runs here, so nothing else can inherit the two.
    fcntl_setfd(&gate, FdFlags::empty()).while_trying("pass a pipe on")?;
    fcntl_setfd(&status_writer, FdFlags::empty()).while_trying("pass a pipe on")?;
    let stdin = launch
        .order
        .stdin
        .try_clone()
        .while_trying("pass standard input on")?;
    let child = Command::new("/proc/self/exe")
        .arg(PROGRAM)
        .args([
            gate.as_raw_fd().to_string(),
            status_writer.as_raw_fd().to_string(),
        ])
        .stdin(Stdio::from(stdin))
        .env_clear()
        .spawn()
        .while_trying("start the program's stage")?;
    drop((gate, status_writer));
    let pid = child.id().cast_signed();
    before_go(pid)?;
    let order = ProgramOrder {
        backend: launch.backend,
        slot_id: launch.slot_id,
        work_dir: launch.work_dir.clone(),
        spec: launch.order.spec.clone(),
        program: launch.order.program.clone(),
        limit_data: launch.order.limit_data,
    };
    let bytes = serde_json::to_vec(&order).while_trying("write the program's order")?;
    // A stage killed before it reads is told apart below, by its silence and its end.
    let _ = gate_writer.write_all(&bytes);
    drop(gate_writer);
    let mut answer = Vec::new();
    status
        .read_to_end(&mut answer)
        .while_trying("hear from the program's stage")?;
    let pid = Pid::from_raw(pid);
    if answer.is_empty() {
        return Ok(Some(pid));
    }
    let _ = waitpid(pid, None);
    let told: Report = serde_json::from_slice(&answer).while_trying("read a stage's report")?;
    report(&told, None)?;
    Ok(None)
}

/// Writes files until the library says go.
pub(super) fn receive_files(launch: &Launch) -> Result<(), SandboxError> {
    loop {
        match receive_order()?.0 {
            Order::Go => return Ok(()),
            Order::File {
                path,
                num_bytes,
                executable,
            } => write_file(launch, &path, num_bytes, executable)?,
            _ => return Err(SandboxError::infra("read an order", "not the one due")),
        }
    }
}

/// The program has not started, so nothing in the folder can be a trap yet.
fn write_file(
    launch: &Launch,
    path: &str,
    num_bytes: u64,
    executable: bool,
) -> Result<(), SandboxError> {
    let owner = match launch.backend {
        Backend::Full => None,
        Backend::Lite => launch.slot_id,
    };
    let root = Path::new(&launch.work_dir);
    let full = root.join(path);
    let failed = || format!("write {path} into the working folder");
    let parents: Vec<_> = full
        .ancestors()
        .skip(1)
        .take_while(|parent| *parent != root)
        .collect();
    for parent in parents.into_iter().rev().filter(|parent| !parent.exists()) {
        DirBuilder::new()
            .mode(0o755)
            .create(parent)
            .while_trying(failed())?;
        supervise::give_to_slot(parent, owner)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if executable { 0o755 } else { 0o644 })
        .open(&full)
        .while_trying(failed())?;
    let mut left = num_bytes;
    while left > 0 {
        let (bytes, _) = wire::receive_bytes(io::stdin()).while_trying(failed())?;
        if bytes.is_empty() || bytes.len() as u64 > left {
            return Err(SandboxError::infra(failed(), "its bytes did not come"));
        }
        file.write_all(&bytes).while_trying(failed())?;
        left -= bytes.len() as u64;
    }
    supervise::give_to_slot(&full, owner)
}

/// Collects ended children; the end of `main` when that is among them. Without a flag it waits.
pub(super) fn reap(main: Pid, flag: Option<WaitPidFlag>) -> Result<Option<Ended>, SandboxError> {
    loop {
        match waitpid(None, flag) {
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(status) if status.pid() == Some(main) => {
                if let Some(ended) = supervise::ended(status) {
                    return Ok(Some(ended));
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SandboxError::infra("wait for the program", errno)),
        }
    }
}
