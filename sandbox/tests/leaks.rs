//! Many jails at once leave nothing behind. Alone in its program, because it counts what the process
//! holds, which other tests change.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use sandbox::{Backend, End, Jail, PythonLimits, PythonSession};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Variant, open, shell};

/// A jail that cannot be removed (a control group or a working folder that is not empty) keeps its
/// slot's lock open, so the descriptors count those too.
fn held() -> (usize, String) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    (descriptors, mounts)
}

/// Run by the test below in a process of its own, which is then killed.
#[test]
#[ignore = "a part of another test"]
fn harness_to_be_killed() {
    let Ok(marker) = std::env::var("BALEEN_TEST_MARKER") else {
        return;
    };
    let [full, lite] = [Backend::Full, Backend::Lite].map(|backend| {
        open(Variant {
            backend,
            cgroups: false,
        })
    });
    let script = format!("(setsid sleep {marker} &); exec sleep {marker}");
    let _jails: Vec<_> = [full, lite]
        .into_iter()
        .flatten()
        .map(|sandbox| sandbox.spawn(&shell(&script), &[]).unwrap())
        .collect();
    std::thread::sleep(Duration::from_secs(60));
}

/// One test, so that its parts do not run side by side.
#[test]
fn nothing_is_left_behind() {
    many_at_once_leave_nothing();
    python_sessions_leave_nothing();
    a_killed_harness_takes_its_jails_along();
}

fn a_killed_harness_takes_its_jails_along() {
    let marker = format!("2000.{}", std::process::id());
    let num_backends = [Backend::Full, Backend::Lite]
        .into_iter()
        .filter(|backend| {
            open(Variant {
                backend: *backend,
                cgroups: false,
            })
            .is_some()
        })
        .count();
    let mut harness = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harness_to_be_killed", "--ignored"])
        .env("BALEEN_TEST_MARKER", &marker)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let sleepers = format!("sleep\0{marker}");
    let wait_for = |num: usize| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while support::host_processes_with(&sleepers).len() != num {
            assert!(Instant::now() < deadline, "never {num} processes");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(2 * num_backends);
    harness.kill().unwrap();
    harness.wait().unwrap();
    wait_for(0);
    // The next one finds nothing in its way.
    for backend in [Backend::Full, Backend::Lite] {
        if let Some(sandbox) = open(Variant {
            backend,
            cgroups: false,
        }) {
            let outcome = sandbox
                .run(&shell("echo fresh; ls -A"), &[], &[], &[])
                .unwrap();
            assert_eq!(outcome.stdout, b"fresh\n");
        }
    }
}

fn many_at_once_leave_nothing() {
    let backends = [Backend::Full, Backend::Lite];
    let variants =
        backends.map(|backend| [true, false].map(|cgroups| Variant { backend, cgroups }));
    for sandbox in variants.into_iter().flatten().filter_map(open) {
        let before = held();
        let mut jails: Vec<_> = (0..24)
            .map(|_| sandbox.spawn(&shell("exec sleep 60"), &[]).unwrap())
            .collect();
        assert!(jails.iter().all(Jail::is_running));
        assert_ne!(held().0, before.0);
        jails.truncate(12);
        for jail in &mut jails {
            jail.kill().unwrap();
            assert_eq!(jail.end(), Some(&End::Killed));
        }
        drop(jails);
        assert_eq!(held(), before);
        let own = std::process::id();
        let children = support::host_processes_below(own);
        assert_eq!(children, Vec::<u32>::new());
    }
}

fn python_sessions_leave_nothing() {
    let marker = format!("3000.{}", std::process::id());
    let code =
        format!("import subprocess\nsubprocess.Popen(['setsid', 'sleep', '{marker}'])\nNone");
    let variants = [Backend::Full, Backend::Lite].map(|backend| Variant {
        backend,
        cgroups: false,
    });
    for sandbox in variants.into_iter().filter_map(open) {
        let before = held();
        let mut sessions: Vec<_> = (0..8)
            .map(|_| PythonSession::new(&sandbox, PythonLimits::default(), Vec::new()))
            .collect();
        for session in &mut sessions {
            assert!(session.run(&code).unwrap().is_success());
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while support::host_processes_with(&marker).len() < 8 {
            assert!(Instant::now() < deadline, "the processes never came up");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(sessions);
        assert_eq!(support::host_processes_with(&marker), Vec::<i32>::new());
        assert_eq!(held(), before);
        let children = support::host_processes_below(std::process::id());
        assert_eq!(children, Vec::<u32>::new());
    }
}
