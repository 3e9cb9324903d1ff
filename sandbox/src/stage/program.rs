//! Last stage: limits and confinement of this process, then it becomes the program.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::launch::ProgramOrder;
use super::{drop_capabilities, filter, paths, self_test, supervise};
use crate::SandboxError;
use crate::error::While;
use crate::processes;
use crate::spec::Backend;
use crate::wire::{Program, Report};

/// Descriptors a process may have open.
const NUM_DESCRIPTORS: u64 = 256;

/// Its arguments: the numbers of the gate's and the status's descriptors.
pub(super) fn run(arguments: &[String]) -> Result<(), SandboxError> {
    let [gate, status] = arguments else {
        return Err(SandboxError::infra("start the program", "bad arguments"));
    };
    let mut gate = adopt(gate, OpenOptions::new().read(true))?;
    let mut status = adopt(status, OpenOptions::new().write(true))?;
    let told = match start(&mut gate) {
        Ok(never) => match never {},
        Err(NotStarted::Program(cause)) => Report::NotStarted { cause },
        Err(NotStarted::Jail(SandboxError::Infra { action, cause })) => {
            Report::Failed { action, cause }
        }
        Err(NotStarted::Jail(other)) => Report::Failed {
            action: "start the program".to_owned(),
            cause: other.to_string(),
        },
    };
    let bytes = serde_json::to_vec(&told).while_trying("write a report")?;
    status.write_all(&bytes).while_trying("write a report")?;
    std::process::exit(125)
}

/// An inherited descriptor, opened anew so that executing the program closes it.
fn adopt(number: &str, options: &OpenOptions) -> Result<File, SandboxError> {
    let file = options
        .open(format!("/proc/self/fd/{number}"))
        .while_trying("take over a pipe")?;
    let number: i32 = number.parse().while_trying("take over a pipe")?;
    nix::unistd::close(number).while_trying("take over a pipe")?;
    Ok(file)
}

enum NotStarted {
    /// The program's own fault.
    Program(String),
    Jail(SandboxError),
}

impl From<SandboxError> for NotStarted {
    fn from(error: SandboxError) -> Self {
        Self::Jail(error)
    }
}

fn start(gate: &mut File) -> Result<std::convert::Infallible, NotStarted> {
    let mut bytes = Vec::new();
    gate.read_to_end(&mut bytes)
        .while_trying("read the program's order")?;
    let order: ProgramOrder =
        serde_json::from_slice(&bytes).while_trying("read the program's order")?;
    nix::unistd::setsid().while_trying("start a session")?;
    // On a host without user separation the limit on tasks counts the user's other tasks too.
    let others = match (order.backend, order.slot_id) {
        (Backend::Lite, None) => processes::num_tasks_of_own_user(),
        // The supervisor and process 1.
        (Backend::Full, _) => 2,
        (Backend::Lite, Some(_)) => 0,
    };
    if let Some(slot_id) = order.slot_id {
        supervise::become_slot(slot_id)?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL).while_trying("follow the launcher")?;
    umask(Mode::from_bits_truncate(0o022));
    std::env::set_current_dir(&order.work_dir).while_trying("enter the working folder")?;
    prctl::set_no_new_privs().while_trying("set no_new_privs")?;
    drop_capabilities()?;
    limit(&order, others)?;
    paths::confine(order.backend, &order.work_dir, &order.spec.readable)?;
    filter::install(order.backend)?;
    let environment = environment(&order);
    if let Program::SelfTest { .. } = order.program {
        self_test::run(&order.program, &environment);
    }
    let [name, arguments @ ..] = order.spec.command.as_slice() else {
        return Err(NotStarted::Program("the command is empty".to_owned()));
    };
    let error = Command::new(name)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .exec();
    Err(match error.kind() {
        ErrorKind::NotFound => NotStarted::Program(format!("{name}: not found in the jail")),
        _ => NotStarted::Program(format!("{name}: {error}")),
    })
}

/// The jail's own environment: nothing of the harness's is in it.
fn environment(order: &ProgramOrder) -> Vec<(String, String)> {
    let temporary = match order.backend {
        Backend::Full => "/tmp",
        Backend::Lite => &order.work_dir,
    };
    let own = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", &order.work_dir),
        ("TMPDIR", temporary),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("PYTHONHASHSEED", "0"),
        ("SOURCE_DATE_EPOCH", "0"),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // A later pair replaces an earlier one.
    own.into_iter()
        .chain(order.spec.env.iter().cloned())
        .collect()
}

fn limit(order: &ProgramOrder, others: u64) -> Result<(), SandboxError> {
    let limits = &order.spec.limits;
    let mut bounds = vec![
        (Resource::RLIMIT_NOFILE, NUM_DESCRIPTORS, NUM_DESCRIPTORS),
        (Resource::RLIMIT_FSIZE, limits.disk_bytes, limits.disk_bytes),
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_MEMLOCK, 64 << 10, 64 << 10),
        // SIGXCPU first, then SIGKILL.
        (Resource::RLIMIT_CPU, limits.cpu_secs, limits.cpu_secs + 1),
        (
            Resource::RLIMIT_NPROC,
            limits.num_tasks + others,
            limits.num_tasks + others,
        ),
    ];
    if order.limit_data {
        // Unlike the address space, this does not count what is only reserved.
        bounds.push((
            Resource::RLIMIT_DATA,
            limits.memory_bytes,
            limits.memory_bytes,
        ));
    }
    for (resource, soft, hard) in bounds {
        setrlimit(resource, soft, hard).while_trying(format!("set {resource:?}"))?;
    }
    Ok(())
}
