//! A disk that fills up while a checkpoint, a rollout or a line of metrics is written: what was saved before
//! stays usable, and with more space the run ends with the bytes of an undisturbed one.
//!
//! The small disk is a tmpfs that only the child sees, in a mount namespace of its own: nothing is
//! left mounted, whatever happens. Where the system allows no such namespace, the test says so and
//! is skipped.

use std::path::{Path, PathBuf};

use crate::program::{self, Ended, quiet};
use crate::run_files::{
    TINY, assert_same_results, checkpoints, files, global_step, names, text, train_tiny,
};

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

/// An undisturbed run, and what is left of one whose disk was too small.
struct Runs {
    _dir: tempfile::TempDir,
    undisturbed: PathBuf,
    rescued: PathBuf,
}

/// Trains on disks that the shell script `mounts` sets up: it finds the folder of the run to be in `$RUN`.
/// `None` where there are no namespaces.
fn train_on(mounts: &str) -> Option<(Runs, Ended)> {
    let Some(options) = namespace() else {
        eprintln!("SKIPPED: no mount namespace for a small disk (unshare --mount is not allowed)");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, disk, rescued] =
        ["undisturbed", "disk", "rescued"].map(|name| dir.path().join(name));
    std::fs::create_dir(&disk).unwrap();
    train_tiny(&undisturbed);

    let script = format!(
        "RUN=\"$0/run\"; set -e; {mounts}; set +e
         \"$1\" train \"$2\" --run \"$RUN\"; code=$?
         cp -R \"$RUN\" \"$3\" && exit $code"
    );
    let mut command = quiet("unshare");
    command.args(options).args([
        "sh",
        "-c",
        &script,
        text(&disk),
        text(program::path()),
        TINY,
        text(&rescued),
    ]);
    let runs = Runs {
        _dir: dir,
        undisturbed,
        rescued,
    };
    Some((runs, program::finish(command)))
}

/// As [`train_on`]; the run must end with an error of the disk that names `culprit`.
fn out_of_space(mounts: &str, culprit: &str) -> Option<Runs> {
    let (runs, Ended { code, stderr, .. }) = train_on(mounts)?;
    assert_eq!(code, 1, "{stderr}");
    for part in [
        "error: ",
        culprit,
        "No space left",
        "hint: check free space",
    ] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    Some(runs)
}

impl Runs {
    /// Goes on where there is space; the result must be that of the undisturbed run.
    fn resume(&self) {
        let saved = checkpoints(&self.rescued);
        assert!(!saved.is_empty());
        assert!(saved.iter().all(|name| !name.contains('.')), "{saved:?}");
        let ended = program::succeed(&["resume", text(&self.rescued)]);
        let newest = saved.iter().rfind(|name| name.starts_with("step-"));
        let newest = Path::new("checkpoints").join(newest.expect("a checkpoint"));
        let resumed = format!("resumed from {}", self.rescued.join(newest).display());
        assert!(ended.stderr.contains(&resumed), "{}", ended.stderr);
        assert_same_results(&self.rescued, &self.undisturbed);
    }
}

#[test]
fn a_full_disk_ends_the_run_with_an_error_and_keeps_earlier_checkpoints() {
    // Holds two checkpoints of the second stage, which has the optimizer state of every parameter,
    // but no third beside them.
    let mount = "mount -t tmpfs -o size=1500k tmpfs \"$0\"";
    if let Some(runs) = out_of_space(mount, "checkpoints/step-") {
        runs.resume();
    }
}

/// Folders of a run on disks of their own; the lock lets a new run take a folder that is not empty.
const RUN_ON_DISKS: &str =
    "mkdir -p \"$RUN\"; mount -t tmpfs -o size=$ROOT tmpfs \"$RUN\"; touch \"$RUN/lock\"
    for part in rollouts learned checkpoints tensorboard; do mkdir \"$RUN/$part\"; done
    mount -t tmpfs -o size=50m tmpfs \"$RUN/checkpoints\"; mount -t tmpfs -o size=50m tmpfs \"$RUN/learned\"
    mount -t tmpfs -o size=$ROLLOUTS tmpfs \"$RUN/rollouts\"
    mount -t tmpfs -o size=${EVENTS:-50m} tmpfs \"$RUN/tensorboard\"";

#[test]
fn a_full_disk_of_rollouts_loses_none_that_was_written() {
    let mounts = format!("ROOT=50m; ROLLOUTS=300k; {RUN_ON_DISKS}");
    let Some(runs) = out_of_space(&mounts, "rollouts/step-") else {
        return;
    };
    let whole = files(&runs.undisturbed.join("rollouts"));
    let written: Vec<String> = names(&runs.rescued.join("rollouts"))
        .into_iter()
        .filter(|name| name.ends_with(".parquet"))
        .collect();
    assert!((2..12).contains(&written.len()), "{written:?}");
    for (path, content) in files(&runs.rescued.join("rollouts")) {
        if path.extension().is_some_and(|ending| ending == "parquet") {
            assert!(content == whole[&path], "{} differs", path.display());
        }
    }
    // Every step that the metrics tell of has its samples.
    let last = format!("step-{:06}.parquet", global_step(&runs.rescued));
    assert_eq!(written.last(), Some(&last));
    let checked = program::succeed(&["fsck", text(&runs.rescued)]).stdout;
    assert!(checked.contains("ok       rollouts: "), "{checked}");
    runs.resume();
}

#[test]
fn a_full_disk_of_metrics_loses_no_line_that_was_written() {
    let mounts = format!("ROOT=32k; ROLLOUTS=50m; {RUN_ON_DISKS}");
    let Some(runs) = out_of_space(&mounts, "metrics.jsonl") else {
        return;
    };
    let steps = global_step(&runs.rescued);
    assert!((4..27).contains(&steps), "{steps}");
    // The last line may be cut; everything before it reads well.
    let status = program::succeed(&["status", text(&runs.rescued)]).stdout;
    assert!(status.contains("last step: "), "{status}");
    let checked = program::succeed(&["fsck", text(&runs.rescued)]).stdout;
    assert!(
        checked.contains(&format!("up to step {steps}")),
        "{checked}"
    );
    runs.resume();
}

#[test]
fn a_full_disk_of_events_costs_the_run_one_warning() {
    let mounts = format!("ROOT=50m; ROLLOUTS=50m; EVENTS=12k; {RUN_ON_DISKS}");
    let Some((runs, Ended { code, stderr, .. })) = train_on(&mounts) else {
        return;
    };
    assert_eq!(code, 0, "{stderr}");
    let warning =
        "No space left on device (os error 28); the run goes on without TensorBoard events";
    assert_eq!(stderr.matches(warning).count(), 1, "{stderr}");
    assert_same_results(&runs.rescued, &runs.undisturbed);
}
