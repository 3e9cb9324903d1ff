//! A disk that fills up while a checkpoint is written: what was saved before stays usable.
//!
//! The small disk is a tmpfs that only the child sees, in a mount namespace of its own: nothing is
//! left mounted, whatever happens. Where the system allows no such namespace, the test says so and
//! is skipped.

use std::path::Path;

use crate::program::{self, quiet};
use crate::run_files::{TINY, assert_same_results, checkpoints, text, train_tiny};

/// Holds two checkpoints of the second stage, which has the optimizer state of every parameter,
/// but no third beside them.
const DISK_KB: usize = 1500;

/// Options of `unshare` that give a mount namespace here.
fn namespace() -> Option<Vec<&'static str>> {
    [vec!["--mount"], vec!["--map-root-user", "--mount"]]
        .into_iter()
        .find(|options| {
            let mut probe = quiet("unshare");
            probe.args(options);
            probe.args(["sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]);
            probe.output().is_ok_and(|output| output.status.success())
        })
}

#[test]
fn a_full_disk_ends_the_run_with_an_error_and_keeps_earlier_checkpoints() {
    let Some(options) = namespace() else {
        eprintln!("SKIPPED: no mount namespace for a small disk (unshare --mount is not allowed)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, disk, rescued] =
        ["undisturbed", "disk", "rescued"].map(|name| dir.path().join(name));
    std::fs::create_dir(&disk).unwrap();
    train_tiny(&undisturbed);

    let mut command = quiet("unshare");
    command.args(options).args([
        "sh",
        "-c",
        "mount -t tmpfs -o size=$0k tmpfs \"$1\" || exit 99
         \"$2\" train \"$3\" --run \"$1/run\"; code=$?
         cp -R \"$1/run\" \"$4\" && exit $code",
        &DISK_KB.to_string(),
        text(&disk),
        text(program::path()),
        TINY,
        text(&rescued),
    ]);
    let ended = program::finish(command);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    for part in [
        "error: ",
        "checkpoints/step-",
        "No space left",
        "hint: check free space",
    ] {
        assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    let saved = checkpoints(&rescued);
    assert!(!saved.is_empty(), "{}", ended.stderr);
    assert!(saved.iter().all(|name| !name.contains('.')), "{saved:?}");

    let ended = program::succeed(&["resume", text(&rescued)]);
    let newest = Path::new("checkpoints").join(&saved[saved.len() - 1]);
    let resumed = format!("resumed from {}", rescued.join(newest).display());
    assert!(ended.stderr.contains(&resumed), "{}", ended.stderr);
    assert_same_results(&rescued, &undisturbed);
}
