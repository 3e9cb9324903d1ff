//! Process 1 of the full backend's process namespace: builds the root, starts the program, reaps.
//! It has the program's user id, but is out of its reach: the kernel shields process 1 from
//! signals of its own namespace, and being undumpable it shows nothing in /proc.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::os::fd::AsFd;

use super::launch::{self, Launch};
use super::{drop_capabilities, report, root};
use crate::SandboxError;
use crate::error::While;
use crate::spec::Backend;
use crate::wire::Report;

pub(super) fn run() -> Result<(), SandboxError> {
    prctl::set_pdeathsig(Signal::SIGKILL).while_trying("follow the supervisor")?;
    let order = launch::receive_prepare()?;
    let job = root::build(&order.spec)?;
    drop_capabilities()?;
    prctl::set_dumpable(false).while_trying("become undumpable")?;
    report(&Report::Ready, Some(job.as_fd()))?;
    drop(job);
    let launch = Launch {
        backend: Backend::Full,
        slot_id: None,
        work_dir: root::WORK_DIR.to_owned(),
        order,
    };
    // The library sends them once this process is in its control group. Only then a child is started,
    // or it would stay outside.
    launch::receive_files(&launch)?;
    let Some(pid) = launch::start(&launch, |_| Ok(()))? else {
        return Ok(());
    };
    match launch::reap(pid, None)? {
        Some(ended) => report(&Report::Ended(ended), None),
        None => Ok(()),
    }
}
