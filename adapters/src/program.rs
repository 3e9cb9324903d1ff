//! Server programs: started in a process group of their own with a small environment, and ended with everything that
//! they started.

use std::fs::{File, OpenOptions};
use std::io;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::config::Program;

/// Variables that a server inherits: to be found and to find its files, and no secrets.
pub(crate) const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];
/// How long a server may take to end once its input is closed, and again once it is told to.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the server's standard error goes.
pub(crate) fn stderr_of(program: &Program) -> io::Result<Stdio> {
    let open = |path| OpenOptions::new().create(true).append(true).open(path);
    let log: Option<File> = program.log.as_ref().map(open).transpose()?;
    Ok(log.map_or_else(Stdio::null, Stdio::from))
}

/// The variables that the server sees.
pub(crate) fn variables_of(program: &Program) -> Vec<(String, String)> {
    let inherited = INHERITED
        .iter()
        .filter_map(|name| Some(((*name).to_string(), std::env::var(name).ok()?)));
    let own = program.env.iter();
    inherited
        .chain(own.map(|(name, value)| (name.clone(), value.clone())))
        .collect()
}

/// A server that runs. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Group,
}

impl Running {
    pub(crate) fn start(program: &Program) -> io::Result<(Running, ChildStdin, ChildStdout)> {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new(&program.command[0])
            .args(&program.command[1..])
            .env_clear()
            .envs(variables_of(program))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr_of(program)?)
            .process_group(0)
            .spawn()?;
        let group = Group::of(child.id());
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = child.stdout.take().expect("it is piped");
        Ok((Running { child, group }, stdin, stdout))
    }

    /// Its process number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        self.group.signal(Signal::KILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its input is closed by now, which a sound server takes for the end.
        if !self.group.has_ended_within(PATIENCE) {
            self.group.signal(Signal::TERM);
            self.group.has_ended_within(PATIENCE);
        }
        // What it started may outlive it. Until it is waited for, nobody else gets its number.
        self.group.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A process group by its leader, which nobody has waited for yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    pub(crate) fn of(leader: u32) -> Group {
        Group(i32::try_from(leader).ok().and_then(Pid::from_raw))
    }

    pub(crate) fn signal(self, signal: Signal) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, signal);
        }
    }

    fn has_ended_within(self, patience: Duration) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let give_up = Instant::now() + patience;
        let Some(leader) = self.0 else { return true };
        loop {
            match waitid(WaitId::Pid(leader), options) {
                Ok(None) if Instant::now() < give_up => sleep(Duration::from_millis(2)),
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }
}
