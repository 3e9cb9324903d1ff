//! Where the servers of the tests are, and servers that a test starts itself.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use adapters::{AgentEnv, ServerConfig};
use environments::{Episode, ExternalTasks, Split, Task};
use serde_json::{Value, json};

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The command that runs a Python server of the repository.
pub fn python(path: &str, arguments: &[&str]) -> Vec<String> {
    let script = repository(path).display().to_string();
    let mut command = vec!["python3".to_string(), script];
    command.extend(arguments.iter().map(|argument| (*argument).to_string()));
    command
}

/// A server's configuration from its keys.
pub fn config(keys: Value) -> ServerConfig {
    serde_json::from_value(keys).expect("a sound configuration")
}

/// The faulty server, with what `keys` add to its configuration.
pub fn faulty(log: &Path, options: &[&str], keys: Value) -> ServerConfig {
    let mut arguments = vec![log.to_str().expect("plain")];
    arguments.extend(options);
    let command = python("adapters/tests/servers/faulty.py", &arguments);
    let mut all = json!({"name": "faulty", "command": command});
    let all_keys = all.as_object_mut().expect("an object");
    all_keys.extend(keys.as_object().expect("an object").clone());
    config(all)
}

pub fn task(server: &AgentEnv, seed: u64) -> Task {
    let key = server.key(Split::Train, 1, seed);
    server.task(&key).expect("a task")
}

pub fn episode(server: &AgentEnv, seed: u64) -> Episode {
    Episode::open(&task(server, seed)).expect("a session")
}

/// Whether a process runs, a zombie not counted.
pub fn runs(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < give_up, "not within 20 s: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// A server that is not the client's own; killed at the end.
pub struct Apart {
    child: Child,
}

impl Apart {
    pub fn start(command: &[String]) -> Apart {
        Apart::of(command, &[], Stdio::null())
    }

    /// Starts a server that prints its address in its first line.
    pub fn announced(command: &[String], env: &[(&str, &str)]) -> (Apart, String) {
        let mut apart = Apart::of(command, env, Stdio::piped());
        let stdout = apart.child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it prints");
        let address = line.split_whitespace().last().expect("an address");
        (apart, address.to_string())
    }

    fn of(command: &[String], env: &[(&str, &str)], stdout: Stdio) -> Apart {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .envs(env.iter().copied())
            .stdout(stdout)
            .spawn();
        let child = child.expect("python3 is there");
        Apart { child }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python of the tests, if it has that package; else says that the test is skipped.
pub fn python_with(package: &str) -> Option<String> {
    let python = std::env::var("BALEEN_TEST_PYTHON").unwrap_or_default();
    let script = format!(
        "import importlib.util, sys; sys.exit(importlib.util.find_spec({package:?}) is None)"
    );
    let has_it = Command::new(&python)
        .args(["-c", &script])
        .status()
        .is_ok_and(|status| status.success());
    if !has_it {
        eprintln!(
            "SKIPPED: BALEEN_TEST_PYTHON names no Python with {package}; scripts/test.sh makes one"
        );
    }
    has_it.then_some(python)
}
