//! Taking a jail down: everybody dead, checked, and nothing left on the host.

use nix::unistd::Pid;
use std::time::{Duration, Instant};

use super::{Jail, SERVICE_TIME};
use crate::SandboxError;
use crate::error::While;
use crate::outcome::End;
use crate::slot::Slot;
use crate::spec::Backend;

impl Jail {
    /// Everybody is dead by the supervisor's word: checks it, and collects what is left.
    pub(super) fn tear_down(&mut self) -> Result<(), SandboxError> {
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
                Ok(Some(status)) if status.code().is_some() => return Ok(()),
                // Only its own end says that everybody inside is dead.
                Ok(Some(status)) => {
                    return Err(SandboxError::infra("keep its supervisor", status));
                }
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
