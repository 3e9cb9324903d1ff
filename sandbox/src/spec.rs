//! What to run and within which limits: plain data that crosses to the launcher as JSON.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::SandboxError;

/// How much isolation a jail has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    /// Own user, mount, process, network, IPC and host-name namespaces with a root of their own,
    /// plus everything that `Lite` has.
    Full,
    /// Landlock, a filter of system calls, resource limits and, for root, an own user id: for hosts
    /// that forbid namespaces (a container).
    Lite,
}

/// Limits of one jail. A limit that is reached shows in [`Flags`](crate::Flags).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of all processes together, files on the jail's memory file system included.
    pub memory_bytes: u64,
    /// Processes and threads alive at once.
    pub num_tasks: u64,
    /// Processor seconds of all processes together.
    pub cpu_secs: u64,
    /// Processor cores at once; only a control group enforces it.
    pub cpus: f64,
    /// Seconds from start to end, whatever the program does.
    pub wall: Duration,
    /// Bytes of all files written (/job, /tmp and /dev/shm together).
    pub disk_bytes: u64,
    /// Bytes kept of standard output, and as many of standard error; the rest is read and dropped.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            num_tasks: 64,
            cpu_secs: 30,
            cpus: 1.0,
            wall: Duration::from_secs(30),
            disk_bytes: 64 << 20,
            output_bytes: 1 << 20,
        }
    }
}

/// A program to run in a jail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JailSpec {
    /// Program and arguments; the program is looked for in the jail's own PATH.
    pub command: Vec<String>,
    /// Added to (or replacing) the jail's clean environment.
    pub env: Vec<(String, String)>,
    /// Limits.
    pub limits: Limits,
    /// Folders of the host that the program may read and run files from, beside the system's own
    /// (/usr and what /bin, /lib and the like point to).
    pub readable: Vec<String>,
}

impl JailSpec {
    /// A command with default limits.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// # Errors
    /// [`SandboxError::BadSpec`] names the first value that cannot be.
    pub(crate) fn validate(&self) -> Result<(), SandboxError> {
        let bad = |why: &str| Err(SandboxError::BadSpec(why.to_owned()));
        if self.command.is_empty() || self.command[0].is_empty() {
            return bad("the command is empty");
        }
        let strings = self.command.iter().chain(self.readable.iter());
        let pairs = self.env.iter().flat_map(|(key, value)| [key, value]);
        if strings.chain(pairs).any(|text| text.contains('\0')) {
            return bad("a zero byte in the command or the environment");
        }
        if self
            .env
            .iter()
            .any(|(key, _)| key.is_empty() || key.contains('='))
        {
            return bad("an environment name that is empty or holds '='");
        }
        if self.readable.iter().any(|path| !path.starts_with('/')) {
            return bad("a readable folder that is not an absolute path");
        }
        if self.limits.num_tasks == 0 || self.limits.memory_bytes == 0 || self.limits.cpu_secs == 0
        {
            return bad("a limit of zero");
        }
        if !(self.limits.cpus > 0.0 && self.limits.cpus.is_finite()) {
            return bad("cpus must be a positive number");
        }
        Ok(())
    }
}

/// A file put into the working folder before the program starts.
#[derive(Clone, Debug, PartialEq)]
pub struct FileIn {
    /// Path below the working folder, such as `src/main.py`.
    pub path: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// May be executed.
    pub executable: bool,
}

impl FileIn {
    /// A plain file.
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.into(),
            bytes: bytes.into(),
            executable: false,
        }
    }

    /// # Errors
    /// [`SandboxError::BadSpec`] when the path could leave the working folder.
    pub(crate) fn validate(&self) -> Result<(), SandboxError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if self.path.contains('\0') || !self.path.split('/').all(plain) {
            return Err(SandboxError::BadSpec(format!(
                "{:?} is not a plain path below the working folder",
                self.path
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_working_folder_are_refused() {
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "a/.",
            "a\0b",
        ] {
            assert!(FileIn::new(path, "").validate().is_err(), "{path:?}");
        }
        assert!(FileIn::new("a/b.py", "").validate().is_ok());
    }

    #[test]
    fn an_empty_command_or_a_zero_limit_is_refused() {
        assert!(JailSpec::new([""; 0]).validate().is_err());
        let mut spec = JailSpec::new(["true"]);
        assert!(spec.validate().is_ok());
        spec.limits.num_tasks = 0;
        assert!(spec.validate().is_err());
    }
}
