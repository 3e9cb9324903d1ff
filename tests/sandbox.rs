//! `baleen sandbox doctor`, and configurations whose families need a sandbox.

use std::process::Command;

use crate::program;
use crate::refusal::{FAILED, WRONG_INPUT};
use crate::run_files::{TINY, text};

/// `baleen ARGS...` on a machine without the launcher: no sandbox works there.
pub fn without_launcher(args: &[&str]) -> Command {
    let mut command = program::command(args);
    command.env("BALEEN_SANDBOX", "/no/launcher");
    command
}

#[test]
fn the_doctor_tells_of_every_backend_what_the_launchers_own_does() {
    let ended = program::finish(program::command(&["sandbox", "doctor"]));
    let launcher = program::path().with_file_name("baleen-sandbox");
    let mut own = program::quiet(launcher);
    own.arg("doctor");
    let own = program::finish(own);
    assert_eq!(ended.code, own.code, "{}{}", ended.stdout, own.stderr);
    // Numbers of descriptors and of processes differ.
    let attempts = |said: &str| -> Vec<String> {
        let lines = said.lines().map(|line| line.chars().take(46).collect());
        lines.collect()
    };
    assert_eq!(attempts(&ended.stdout), attempts(&own.stdout));
    for line in [
        "sandbox on this machine",
        "  kernel  ",
        "\nFull\n",
        "\nLite\n",
    ] {
        assert!(ended.stdout.contains(line), "{}", ended.stdout);
    }
    match ended.code {
        0 => assert!(
            ended
                .stdout
                .contains("Untrusted programs run with the backend")
        ),
        _ => {
            eprintln!(
                "SKIPPED: no sandbox works on this machine: {}",
                ended.stdout
            );
            assert!(
                ended
                    .stderr
                    .contains("no backend of the sandbox holds here")
            );
        }
    }
}

#[test]
fn a_missing_launcher_is_told_with_where_it_was_looked_for() {
    let ended = program::finish(without_launcher(&["sandbox", "doctor"]));
    assert_eq!(ended.code, FAILED, "{}", ended.stderr);
    for part in [
        "error: the launcher baleen-sandbox was not found",
        "/no/launcher",
        "cargo build -p sandbox",
    ] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
}

#[test]
fn families_that_run_code_are_refused_before_a_run_where_no_sandbox_works() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mixed = "environments=[(family: sums, level: 1), (family: repair_program, level: 2)]";
    let train = ["train", TINY, "--run", text(&run), "--set", mixed];
    let dry = [&train[..], &["--dry-run"]].concat();
    let doctor = ["doctor", TINY, "--set", mixed];
    let out = dir.path().join("out");
    let rollout = ["rollout", TINY, "--out", text(&out), "--set", mixed];
    let eval = [
        "eval",
        "models/none",
        "--family",
        "sums",
        "--family",
        "repair_program",
    ];
    for args in [&train[..], &dry, &doctor, &rollout, &eval] {
        let ended = program::finish(without_launcher(args));
        assert_eq!(ended.code, WRONG_INPUT, "{args:?}: {}", ended.stderr);
        for part in [
            "error: environments[1].family is repair_program: ",
            "none works on this machine: the launcher baleen-sandbox was not found",
            "`baleen sandbox doctor`",
        ] {
            assert!(ended.stderr.contains(part), "{args:?}: {}", ended.stderr);
        }
    }
    assert!(!run.exists(), "nothing was to be run");
    // Families that run nothing need no sandbox.
    let sums = ["train", TINY, "--run", text(&run), "--dry-run"];
    let ended = program::finish(without_launcher(&sums));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}
