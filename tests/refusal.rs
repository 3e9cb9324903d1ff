//! What every wrong input must come to: the documented exit code, one error that names the culprit
//! and says what to do, no panic.

use std::fs;
use std::path::Path;

use crate::program;
use crate::run_files::{TINY, text};

/// Exit code of a command that failed while running.
pub const FAILED: i32 = 1;
/// Exit code of wrong usage, configuration or model.
pub const WRONG_INPUT: i32 = 2;

/// Runs `baleen ARGS...`, which must be refused with `code` and one error that holds all `parts`.
pub fn refused(args: &[&str], code: i32, parts: &[&str]) -> String {
    let ended = program::finish(program::command(args));
    let stderr = ended.stderr;
    assert_eq!(ended.code, code, "baleen {args:?}: {stderr}");
    let errors = stderr
        .lines()
        .filter(|line| line.starts_with("error:"))
        .count();
    assert_eq!(errors, 1, "baleen {args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(
            stderr.contains(part),
            "baleen {args:?}: {part:?} is not in:\n{stderr}"
        );
    }
    stderr
}

/// Trains [`TINY`] with changes in a new folder, which must be refused; then the same folder must
/// take a run that is right.
pub fn train_refused(set: &[&str], code: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let run = dir.path().join("run");
    let mut args = vec!["train", TINY, "--run", text(&run)];
    for change in set {
        args.extend(["--set", change]);
    }
    refused(&args, code, parts);
    let one_step = "stages=[sft(steps: 1, learning_rate: (peak: 1e-3))]";
    program::succeed(&["train", TINY, "--run", text(&run), "--set", one_step]);
}

/// Replaces text in a file of `folder`.
pub fn spoil(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let content = fs::read_to_string(&path).expect("a text file of the folder");
    assert!(
        content.contains(from),
        "{from} is not in {}",
        path.display()
    );
    fs::write(path, content.replace(from, to)).expect("written");
}
