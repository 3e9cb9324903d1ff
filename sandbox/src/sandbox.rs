//! Finds the launcher, finds out what works on this machine, and runs programs.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::SandboxError;
use crate::cgroup::{Cgroup, CgroupHome};
use crate::error::While;
use crate::jail::Jail;
use crate::outcome::{FileOut, Outcome};
use crate::slot::SlotHome;
use crate::spec::{Backend, FileIn, JailSpec, Limits};
use crate::stage::Check;
use crate::wire::Program;

const LAUNCHER: &str = "baleen-sandbox";
const LAUNCHER_VARIABLE: &str = "BALEEN_SANDBOX";

/// What a backend's self-test found.
#[derive(Debug)]
pub struct SelfTest {
    /// The backend.
    pub backend: Backend,
    /// Every attempt from inside, or why no jail came up.
    pub checks: Result<Vec<Check>, SandboxError>,
}

impl SelfTest {
    /// Everything was held back.
    #[must_use]
    pub fn passes(&self) -> bool {
        let all_held = |checks: &Vec<Check>| !checks.is_empty() && checks.iter().all(|c| c.held);
        self.checks.as_ref().is_ok_and(all_held)
    }

    /// Why not, in a line.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.checks {
            Err(error) => error.to_string(),
            Ok(checks) => {
                let open = checks.iter().filter(|check| !check.held);
                let words: Vec<_> = open
                    .map(|check| format!("{} ({})", check.attempt, check.seen))
                    .collect();
                format!("not held back: {}", words.join("; "))
            }
        }
    }
}

/// Runs untrusted programs with the strongest backend that works here.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub(crate) launcher: PathBuf,
    backend: Backend,
    pub(crate) slots: SlotHome,
    pub(crate) cgroups: Option<CgroupHome>,
}

impl Sandbox {
    /// Chooses the backend by self-tests.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when none passes, with the reasons.
    pub fn open() -> Result<Self, SandboxError> {
        let launcher = find_launcher()?;
        let mut reasons = Vec::new();
        for backend in [Backend::Full, Backend::Lite] {
            match Self::with_backend(&launcher, backend) {
                Err(SandboxError::Refused { reason }) => reasons.push(reason),
                other => return other,
            }
        }
        Err(SandboxError::Refused {
            reason: format!(
                "{}; `baleen sandbox doctor` says what to change",
                reasons.join("; ")
            ),
        })
    }

    /// One backend, if its self-test passes.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] with the reason.
    pub fn with_backend(launcher: &Path, backend: Backend) -> Result<Self, SandboxError> {
        let sandbox = Self::untested(launcher, backend)?;
        let test = sandbox.self_test();
        if test.passes() {
            return Ok(sandbox);
        }
        Err(SandboxError::Refused {
            reason: format!("{backend:?}: {}", test.reason()),
        })
    }

    /// For the self-test itself: nothing else may use what has not passed it.
    pub(crate) fn untested(launcher: &Path, backend: Backend) -> Result<Self, SandboxError> {
        let slots = SlotHome::of_user()?;
        let cgroups = CgroupHome::find().ok();
        for slot in slots.stale() {
            // What cannot be removed yet is removed by the slot's next jail.
            let _ = crate::tree::remove(&slot.work_dir());
            if let Some(home) = &cgroups {
                Cgroup::remove_leftover(home, slot.index);
            }
        }
        Ok(Self {
            launcher: launcher.to_path_buf(),
            backend,
            slots,
            cgroups,
        })
    }

    /// The same, but as on a host where control groups may not be made.
    #[must_use]
    pub fn without_cgroups(mut self) -> Self {
        self.cgroups = None;
        self
    }

    /// The backend in use.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Whether control groups bound memory and tasks (else resource limits and a watch do).
    #[must_use]
    pub fn has_cgroups(&self) -> bool {
        self.cgroups.is_some()
    }

    /// Starts a program that lives until it ends, reaches a limit, or the jail is dropped.
    ///
    /// # Errors
    /// Faults of the service; what the program does is no error.
    pub fn spawn(&self, spec: &JailSpec, files: &[FileIn]) -> Result<Jail, SandboxError> {
        Jail::start(self, self.backend, spec, files, Program::Command)
    }

    /// Runs a program to its end, with everything that it started. `outputs` are paths below the
    /// working folder to read back, each up to the limit on files.
    ///
    /// # Errors
    /// Faults of the service; what the program does is no error.
    pub fn run(
        &self,
        spec: &JailSpec,
        files: &[FileIn],
        stdin: &[u8],
        outputs: &[&str],
    ) -> Result<Outcome, SandboxError> {
        let mut jail = self.spawn(spec, files)?;
        jail.wait(stdin)?;
        let max_bytes = usize::try_from(spec.limits.disk_bytes).unwrap_or(usize::MAX);
        let files = outputs
            .iter()
            .map(|path| FileOut {
                path: (*path).to_owned(),
                bytes: jail.read_file(path, max_bytes),
            })
            .collect();
        jail.into_outcome(files)
    }

    /// Tries to break out by the launcher's own hand.
    #[must_use]
    pub fn self_test(&self) -> SelfTest {
        SelfTest {
            backend: self.backend,
            checks: self.try_self_test(),
        }
    }

    fn try_self_test(&self) -> Result<Vec<Check>, SandboxError> {
        // Things that an escape would reach.
        let tcp = TcpListener::bind("127.0.0.1:0").while_trying("listen for the self-test")?;
        let port = tcp
            .local_addr()
            .while_trying("listen for the self-test")?
            .port();
        let unique = format!(
            "{}-{:?}",
            std::process::id(),
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos()
        );
        let abstract_name = format!("baleen-sandbox-{unique}");
        let _listener = SocketAddr::from_abstract_name(&abstract_name)
            .and_then(|address| UnixListener::bind_addr(&address))
            .while_trying("listen for the self-test")?;
        self.slots.prepare()?;
        let sealed = Sealed::make(self.slots.dir.join(format!("sealed-{unique}")))?;
        let spec = JailSpec {
            command: vec!["self-test".to_owned()],
            limits: Limits {
                wall: Duration::from_secs(10),
                ..Limits::default()
            },
            ..JailSpec::default()
        };
        let program = Program::SelfTest {
            sealed_path: sealed.0.to_string_lossy().into_owned(),
            port,
            abstract_name,
            harness_pid: std::process::id().cast_signed(),
        };
        let mut jail = Jail::start(self, self.backend, &spec, &[], program)?;
        jail.wait(&[])?;
        let (stdout, stderr) = jail.output();
        serde_json::from_slice(stdout).map_err(|error| {
            let words = String::from_utf8_lossy(stderr).into_owned();
            SandboxError::infra("test itself", format!("{error} ({:?}) {words}", jail.end()))
        })
    }
}

/// A file that anybody on the host could read and nobody in a jail must.
struct Sealed(PathBuf);

impl Sealed {
    fn make(path: PathBuf) -> Result<Self, SandboxError> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .while_trying("seal a file")?;
        file.write_all(b"sealed").while_trying("seal a file")?;
        Ok(Self(path))
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        if let Some(dir) = self.0.parent() {
            // Only when no slot is in use.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The launcher: named in `BALEEN_SANDBOX`, or beside the running program, or (for programs that
/// cargo puts into `deps`) one folder above.
///
/// # Errors
/// [`SandboxError::NoLauncher`] lists where it was looked for.
pub fn find_launcher() -> Result<PathBuf, SandboxError> {
    if let Some(named) = std::env::var_os(LAUNCHER_VARIABLE) {
        let path = PathBuf::from(named);
        return match path.is_file() {
            true => Ok(path),
            false => Err(SandboxError::NoLauncher {
                looked_at: vec![path],
            }),
        };
    }
    let own = std::env::current_exe().while_trying("find the running program")?;
    let looked_at: Vec<PathBuf> = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(LAUNCHER))
        .collect();
    match looked_at.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(SandboxError::NoLauncher { looked_at }),
    }
}
