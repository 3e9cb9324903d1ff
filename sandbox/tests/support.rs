#![allow(dead_code, reason = "each test program uses a part")]
//! A sandbox for each test, attacks in Python, and what may not change on the host.

use sandbox::{Backend, End, FileIn, JailSpec, Limits, Outcome, Sandbox, SandboxError};
use std::path::PathBuf;
use std::time::Duration;

/// Which sandbox a test runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    pub backend: Backend,
    pub cgroups: bool,
}

/// The launcher built with the tests, or the one named in `BALEEN_SANDBOX` (a copy that another user
/// may reach).
fn launcher() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_baleen-sandbox"));
    std::env::var_os("BALEEN_SANDBOX").map_or_else(built, PathBuf::from)
}

/// The sandbox of a variant, or none with the reason on standard error.
pub fn open(variant: Variant) -> Option<Sandbox> {
    let skip = |reason: &str| eprintln!("SKIPPED on this machine: {variant:?}: {reason}");
    match Sandbox::with_backend(&launcher(), variant.backend) {
        Ok(sandbox) if !variant.cgroups => Some(sandbox.without_cgroups()),
        Ok(sandbox) if sandbox.has_cgroups() => Some(sandbox),
        Ok(_) => {
            skip("control groups may not be made here");
            None
        }
        Err(SandboxError::Refused { reason }) => {
            skip(&reason);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// One test for each backend, with control groups where they can be had.
#[macro_export]
macro_rules! on_both_backends {
    ($($attack:ident),* $(,)?) => {$(
        mod $attack {
            use sandbox::Backend;
            #[test]
            fn full() {
                $crate::support::run_one(Backend::Full, super::$attack);
            }
            #[test]
            fn lite() {
                $crate::support::run_one(Backend::Lite, super::$attack);
            }
        }
    )*};
}

/// One test for each backend, with and without control groups.
#[macro_export]
macro_rules! on_all_variants {
    ($($attack:ident),* $(,)?) => {$(
        mod $attack {
            use sandbox::Backend;
            use $crate::support::{Variant, open};
            fn run(backend: Backend, cgroups: bool) {
                let variant = Variant { backend, cgroups };
                if let Some(sandbox) = open(variant) {
                    super::$attack(&sandbox);
                }
            }
            #[test]
            fn full() {
                run(Backend::Full, true);
            }
            #[test]
            fn lite() {
                run(Backend::Lite, true);
            }
            #[test]
            fn full_without_cgroups() {
                run(Backend::Full, false);
            }
            #[test]
            fn lite_without_cgroups() {
                run(Backend::Lite, false);
            }
        }
    )*};
}

/// Prefers control groups, does without where there are none.
pub fn run_one(backend: Backend, attack: fn(&Sandbox)) {
    match Sandbox::with_backend(&launcher(), backend) {
        Ok(sandbox) => attack(&sandbox),
        Err(SandboxError::Refused { reason }) => {
            eprintln!("SKIPPED on this machine: {backend:?}: {reason}");
        }
        Err(error) => panic!("{error}"),
    }
}

/// Limits that end a test soon.
pub fn small_limits() -> Limits {
    Limits {
        memory_bytes: 128 << 20,
        num_tasks: 24,
        cpu_secs: 5,
        wall: Duration::from_secs(20),
        disk_bytes: 16 << 20,
        output_bytes: 64 << 10,
        ..Limits::default()
    }
}

/// Puts the helper `attempt` before an attack and its file into the jail.
pub fn python(source: &str) -> (JailSpec, Vec<FileIn>) {
    let spec = JailSpec {
        limits: small_limits(),
        ..JailSpec::new(["/usr/bin/python3", "-S", "attack.py"])
    };
    let helper = include_str!("attacks/attempt.py");
    (
        spec,
        vec![FileIn::new("attack.py", format!("{helper}\n{source}"))],
    )
}

/// Runs an attack whose every attempt must fail; it prints `finished` when it came to its end.
pub fn assert_all_blocked(sandbox: &Sandbox, source: &str, arguments: &[&str]) -> Outcome {
    let (mut spec, files) = python(source);
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    spec.command.extend(arguments);
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    let text = words(&outcome);
    assert_eq!(outcome.end, End::Exited(0), "{text}");
    assert!(text.contains("finished"), "{text}");
    assert!(text.contains("blocked"), "{text}");
    assert!(!text.contains("ESCAPED"), "{text}");
    outcome
}

/// Both streams as text.
pub fn words(outcome: &Outcome) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}", text(&outcome.stdout), text(&outcome.stderr))
}

/// A shell command in small limits.
pub fn shell(script: &str) -> JailSpec {
    JailSpec {
        limits: small_limits(),
        ..JailSpec::new(["/bin/sh", "-c", script])
    }
}

/// Host processes whose command line holds the text.
pub fn host_processes_with(text: &str) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
        })
        .collect()
}

/// Children of a process.
pub fn host_processes_below(parent: u32) -> Vec<u32> {
    let parent_line = format!("PPid:\t{parent}\n");
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| status.contains(&parent_line))
        })
        .collect()
}
