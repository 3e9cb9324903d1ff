//! First stage: outside the jail, one for each. Takes the slot's user id, enters new namespaces,
//! starts the next stage, and outlives everything inside. When the library hangs up (on purpose or
//! because it died) all of the jail is killed.
//!
//! Full: process 1 of the new process namespace takes every other process with it when it dies.
//! Lite: this process is the subreaper, so orphans become its children; no child left means that
//! nothing is left.

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, getgid, getuid, setgroups, setresgid, setresuid, setsid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use rustix::thread as thr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::launch::{self, Launch};
use super::{INIT, SWEEP, report};
use crate::SandboxError;
use crate::error::While;
use crate::processes;
use crate::spec::Backend;
use crate::wire::{self, Ended, Order, Report};

/// User and group id that the program sees in the full backend.
const INSIDE_ID: u32 = 1000;
/// Time for the dead to be reaped.
const SWEEP_TIME: Duration = Duration::from_secs(5);

pub(super) fn run() -> Result<(), SandboxError> {
    close_leaked_descriptors()?;
    // The slot's lock comes along: it is held until this process ends.
    let (order, _lock) = wire::receive::<Order>(io::stdin())
        .while_trying("read the first order")?
        .ok_or_else(|| SandboxError::infra("read the first order", "the library hung up"))?;
    let Order::Supervise { backend, slot_id } = order else {
        return Err(SandboxError::infra("read the first order", "not the first"));
    };
    // Away from the library's terminal and its process group's signals.
    setsid().while_trying("start a session")?;
    match backend {
        Backend::Full => supervise_full(slot_id)?,
        Backend::Lite => supervise_lite(slot_id)?,
    }
    report(&Report::Gone, None)
}

/// The library's process may hold descriptors that are inherited by mistake.
fn close_leaked_descriptors() -> Result<(), SandboxError> {
    let listed = fs::read_dir("/proc/self/fd").while_trying("list descriptors")?;
    let numbers: Vec<i32> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Becomes the slot's user for good.
pub(super) fn become_slot(slot_id: u32) -> Result<(), SandboxError> {
    let (uid, gid) = (Uid::from_raw(slot_id), Gid::from_raw(slot_id));
    setgroups(&[]).while_trying("drop groups")?;
    setresgid(gid, gid, gid).while_trying("take the slot's group id")?;
    setresuid(uid, uid, uid).while_trying("take the slot's user id")
}

fn supervise_full(slot_id: Option<u32>) -> Result<(), SandboxError> {
    if let Some(slot_id) = slot_id {
        become_slot(slot_id)?;
        // Changing the user id made /proc/self root's, where the id maps are written below.
        prctl::set_dumpable(true).while_trying("own /proc/self")?;
    }
    prctl::set_no_new_privs().while_trying("set no_new_privs")?;
    let (uid, gid) = (getuid(), getgid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .while_trying("enter new namespaces")?;
    fs::write("/proc/self/setgroups", "deny").while_trying("deny setgroups")?;
    fs::write("/proc/self/uid_map", format!("{INSIDE_ID} {uid} 1"))
        .while_trying("map the user id")?;
    fs::write("/proc/self/gid_map", format!("{INSIDE_ID} {gid} 1"))
        .while_trying("map the group id")?;
    keep_capabilities_for_init()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(INIT).env_clear().current_dir("/");
    let child = command.spawn().while_trying("start process 1")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    report(&Report::Started { pid: pid.as_raw() }, None)?;
    let pidfd = pidfd_of(pid)?;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(SandboxError::infra("wait for process 1", errno)),
        }
        if hung_up_or_exited(&pidfd, None)? {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            return Ok(());
        }
    }
}

/// Capabilities in the new user namespace are lost when a process that is not root inside executes
/// a program, unless they are ambient.
fn keep_capabilities_for_init() -> Result<(), SandboxError> {
    let kept = thr::CapabilitySet::SYS_ADMIN | thr::CapabilitySet::SETPCAP;
    let mut sets = thr::capabilities(None).while_trying("read capabilities")?;
    sets.inheritable = kept;
    thr::set_capabilities(None, sets).while_trying("keep capabilities")?;
    for capability in kept.iter() {
        thr::configure_capability_in_ambient_set(capability, true)
            .while_trying("keep capabilities")?;
    }
    Ok(())
}

fn pidfd_of(pid: Pid) -> Result<std::os::fd::OwnedFd, SandboxError> {
    let raw = rustix::process::Pid::from_raw(pid.as_raw())
        .ok_or_else(|| SandboxError::infra("watch a process", "its id is 0"))?;
    pidfd_open(raw, PidfdFlags::empty()).while_trying("watch a process")
}

/// Waits until the library hangs up (true), the process ends, or the time is over.
fn hung_up_or_exited(pidfd: impl AsFd, time: Option<Duration>) -> Result<bool, SandboxError> {
    let stdin = io::stdin();
    let mut fds = [
        PollFd::new(&stdin, PollFlags::RDHUP),
        PollFd::new(&pidfd, PollFlags::IN),
    ];
    let timeout = time.map(|time| Timespec {
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: time.subsec_nanos().into(),
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(SandboxError::infra("wait for events", errno)),
    }
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    Ok(fds[0].revents().intersects(gone))
}

fn supervise_lite(slot_id: Option<u32>) -> Result<(), SandboxError> {
    prctl::set_child_subreaper(true).while_trying("become the reaper")?;
    let order = launch::receive_prepare()?;
    let work_dir = order
        .work_dir
        .clone()
        .ok_or_else(|| SandboxError::infra("prepare", "no working folder"))?;
    report(&Report::Ready, None)?;
    let launch = Launch {
        backend: Backend::Lite,
        slot_id,
        work_dir,
        order,
    };
    let started = launch::start(&launch, |pid| {
        report(&Report::Started { pid }, None)?;
        launch::receive_files(&launch)
    });
    let result = started.and_then(|pid| match pid {
        Some(pid) => wait_lite(pid),
        None => Ok(()),
    });
    kill_all(slot_id)?;
    result
}

fn wait_lite(pid: Pid) -> Result<(), SandboxError> {
    let pidfd = pidfd_of(pid)?;
    loop {
        match launch::reap(pid, Some(WaitPidFlag::WNOHANG))? {
            Some(ended) => return report(&Report::Ended(ended), None),
            // Now and then orphans that ended are collected.
            None => {
                if hung_up_or_exited(&pidfd, Some(Duration::from_millis(100)))? {
                    return Ok(());
                }
            }
        }
    }
}

/// Kills every process of the jail and waits until none is left.
fn kill_all(slot_id: Option<u32>) -> Result<(), SandboxError> {
    let deadline = Instant::now() + SWEEP_TIME;
    loop {
        match slot_id {
            Some(slot_id) => sweep_slot(slot_id)?,
            None => processes::kill_descendants(std::process::id().cast_signed()),
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(()),
                Err(errno) => return Err(SandboxError::infra("reap", errno)),
            }
        }
        if Instant::now() > deadline {
            return Err(SandboxError::infra(
                "end the jail",
                "processes survive being killed",
            ));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A child with the slot's user id signals all of that user at once, which no fork outruns.
fn sweep_slot(slot_id: u32) -> Result<(), SandboxError> {
    let mut child = Command::new("/proc/self/exe")
        .args([SWEEP, &slot_id.to_string()])
        .current_dir("/")
        .spawn()
        .while_trying("start the sweep")?;
    child.wait().while_trying("wait for the sweep")?;
    Ok(())
}

/// Stage of its own: kills every process of the slot's user, and nobody else's.
pub(super) fn sweep(arguments: &[String]) -> Result<(), SandboxError> {
    let slot_id: u32 = arguments
        .first()
        .and_then(|text| text.parse().ok())
        .filter(|id| *id >= crate::slot::MIN_ID)
        .ok_or_else(|| SandboxError::infra("sweep", "no slot id"))?;
    become_slot(slot_id)?;
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(SandboxError::infra("kill the slot's processes", errno)),
    }
}

/// How a wait status reads for the outcome; none while the process lives.
pub(super) fn ended(status: WaitStatus) -> Option<Ended> {
    match status {
        WaitStatus::Exited(_, code) => Some(Ended::Exited(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Ended::Signalled(signal as i32)),
        _ => None,
    }
}

/// A folder below the working folder gets the slot as its owner.
pub(super) fn give_to_slot(path: &Path, slot_id: Option<u32>) -> Result<(), SandboxError> {
    match slot_id {
        Some(id) => std::os::unix::fs::lchown(path, Some(id), Some(id))
            .while_trying(format!("give {} to the slot", path.display())),
        None => Ok(()),
    }
}
