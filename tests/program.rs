//! Finds the program `baleen` and runs it as a child, on one thread.
//!
//! The program lies beside the test binary, `target/<profile>/baleen`, and the launcher of the sandbox beside it. When
//! one is missing or older than a source that `baleen.d` lists, they are built once; cargo's own lock lets tests in
//! several processes do so at once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Nothing that these tests wait for takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Root of the workspace; children run there, so that `configs/smoke.ron` is found.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
}

/// The program, built if need be.
pub fn path() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("the test binary has a path");
        // target/PROFILE/deps/all-HASH
        let profile = test.ancestors().nth(2).expect("cargo's folder layout");
        let program = profile.join("baleen");
        if is_stale(&program) || is_stale(&profile.join("baleen-sandbox")) {
            build(profile);
        }
        assert!(program.is_file(), "no program at {}", program.display());
        program
    })
}

/// Whether the program is missing or a source of it is newer or gone.
fn is_stale(program: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let Ok(built) = modified(program) else {
        return true;
    };
    let Ok(list) = fs::read_to_string(program.with_extension("d")) else {
        return true;
    };
    // `program: source source ...`, blanks within a path escaped.
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources);
    sources
        .replace("\\ ", "\0")
        .split_whitespace()
        .map(|source| source.replace('\0', " "))
        .any(|source| modified(Path::new(&source)).map_or(true, |time| time > built))
}

fn build(profile: &Path) {
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = profile.parent().expect("cargo's folder layout");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "trainer", "--bin", "baleen"])
        .args(["--package", "sandbox", "--bin", "baleen-sandbox"])
        .args(["--profile", name, "--target-dir"])
        .arg(target)
        .current_dir(workspace())
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo can't build the program: {status}");
}

/// A child that computes on one thread without spinning, and prints no backtraces.
pub fn quiet(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(workspace())
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .env("OMP_NUM_THREADS", "1")
        .env("RUST_BACKTRACE", "0")
        .env_remove("BALEEN_LOG")
        .stdin(Stdio::null());
    command
}

/// `baleen ARGS...`.
pub fn command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = quiet(path());
    command.args(args);
    command
}

/// A Python with the packages of `tests/requirements.txt`; `None`, said so, where none is named.
pub fn python() -> Option<String> {
    let python = std::env::var("BALEEN_TEST_PYTHON").unwrap_or_default();
    if python.is_empty() {
        eprintln!(
            "SKIPPED: BALEEN_TEST_PYTHON is not set; to run this test: \
             export BALEEN_TEST_PYTHON=\"$(scripts/test_python.sh)\""
        );
    }
    Some(python).filter(|python| !python.is_empty())
}

/// How a child ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `command` to its end.
pub fn finish(mut command: Command) -> Ended {
    let output = command.output().expect("the child starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs `baleen ARGS...`, which must succeed.
pub fn succeed<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(args: &[S]) -> Ended {
    let ended = finish(command(args));
    assert_eq!(ended.code, 0, "baleen {args:?}: {}", ended.stderr);
    ended
}

/// A child at work. It is killed when dropped, so that a failing test leaves none behind.
#[derive(Debug)]
pub struct Working {
    child: Child,
    stderr: PathBuf,
}

impl Working {
    /// Starts `baleen ARGS...`; what it says goes into the file `stderr`.
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: &[S], stderr: &Path) -> Working {
        let file = File::create(stderr).expect("the file can be made");
        let child = command(args)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("the child starts");
        Working {
            child,
            stderr: stderr.to_path_buf(),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `condition`, looking often enough to see a file that exists for a millisecond.
    /// False when the child ended first.
    pub fn wait_until(&mut self, mut condition: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while !condition() {
            if self.child.try_wait().expect("it is our child").is_some() {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "in vain: {}", self.said());
            sleep(Duration::from_micros(200));
        }
        true
    }

    /// SIGKILL. False when the child had ended before.
    pub fn kill(&mut self) -> bool {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child").code().is_none()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let status = Command::new("sh")
            .args(["-c", "kill -TERM \"$0\"", &self.id().to_string()])
            .status()
            .expect("there is a shell");
        assert!(status.success(), "SIGTERM can be sent");
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("it is our child")
    }

    /// Its standard error so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).expect("it was made at the start")
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // Only to leave nothing behind: a child that ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
