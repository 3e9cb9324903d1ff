//! A wall clock that is set forward and back while a run works: nothing depends on it but what the log
//! says and how old a lock is called.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::program::{self, quiet};
use crate::run_files::{TINY, assert_same_results, global_step, metrics, text, train_tiny};

/// Compiles the library that makes the clock jump.
fn jumping_clock(dir: &Path) -> PathBuf {
    let library = dir.join("jumping_clock.so");
    let mut cc = quiet("cc");
    cc.args([
        "-shared",
        "-fPIC",
        "-o",
        text(&library),
        "tests/fixtures/jumping_clock.c",
        "-ldl",
    ]);
    let ended = program::finish(cc);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    library
}

fn with_clock(library: &Path, args: &[&str]) -> Command {
    let mut command = program::command(args);
    command.env("LD_PRELOAD", library);
    command
}

#[test]
fn a_run_under_a_clock_that_jumps_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, run] = ["undisturbed", "run"].map(|name| dir.path().join(name));
    train_tiny(&undisturbed);
    let library = jumping_clock(dir.path());

    let train = ["train", TINY, "--run", text(&run)];
    let mut child = with_clock(&library, &train)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while global_step(&run) < 17 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Its lock was taken last year or next year.
    let status = program::succeed(&["status", text(&run)]).stdout;
    assert!(
        status.contains(&format!("running: process {}, for ", child.id())),
        "{status}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = program::finish(with_clock(&library, &["resume", text(&run)]));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_same_results(&run, &undisturbed);

    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    let years: BTreeSet<&str> = log.lines().filter_map(|line| line.get(..4)).collect();
    assert!(years.len() >= 3, "the clock did not jump: {years:?}");
    assert_eq!(global_step(&run), 27);
    for step in metrics(&run) {
        let secs = &step.secs;
        let parts = [
            secs.rollout,
            secs.reference,
            secs.train,
            secs.evaluation,
            secs.total,
        ];
        for secs in parts.into_iter().flatten() {
            assert!(
                (0.0..600.0).contains(&secs),
                "step {}: {secs} s",
                step.global_step
            );
        }
    }
}
