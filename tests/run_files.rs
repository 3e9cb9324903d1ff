//! Run folders as tests see them: paths, metrics, and equality bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use trainer::metrics::{StepMetrics, without_timings};

use crate::program;

/// All four stages in seconds; the rollouts are truncated, so that kept tokens are recorded.
pub const TINY: &str = "tests/fixtures/tiny.ron";

/// Steps of [`TINY`]'s stages.
pub const TINY_STEPS: [usize; 4] = [4, 5, 6, 12];

/// As an argument of a command line.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// Trains [`TINY`] in `run` without interruption.
pub fn train_tiny(run: &Path) {
    program::succeed(&["train", TINY, "--run", text(run)]);
}

/// The metrics of a run, none when it has not come so far.
pub fn metrics(run: &Path) -> Vec<StepMetrics> {
    let path = run.join("metrics.jsonl");
    match path.exists() {
        true => trainer::metrics::read(&path).unwrap_or_else(|error| panic!("{error}")),
        false => Vec::new(),
    }
}

/// Optimizer steps in the metrics of a run.
pub fn global_step(run: &Path) -> u64 {
    metrics(run).last().map_or(0, |step| step.global_step)
}

/// Names in `run/checkpoints`, sorted.
pub fn checkpoints(run: &Path) -> Vec<String> {
    names(&run.join("checkpoints"))
}

/// Names in `folder`, sorted; none when there is no such folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Every file below `folder` by its path there.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for name in names(&next) {
            let path = next.join(name);
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).expect("a file that was listed");
                let inside = path.strip_prefix(folder).expect("it lies below");
                found.insert(inside.to_path_buf(), content);
            }
        }
    }
    found
}

/// The results of a run: every file but log, lock and the copy of the metrics that tells times; the
/// metrics without their timings.
pub fn results(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = files(run);
    let tells_times = ["log.txt", "lock", "tensorboard"];
    files.retain(|path, _| !tells_times.iter().any(|name| path.starts_with(name)));
    if let Some(metrics) = files.get_mut(Path::new("metrics.jsonl")) {
        *metrics = String::from_utf8_lossy(metrics)
            .lines()
            .map(|line| without_timings(line).expect("a metrics line") + "\n")
            .collect::<String>()
            .into_bytes();
    }
    files
}

/// Both runs must have the same result files with the same bytes.
pub fn assert_same_results(run: &Path, expected: &Path) {
    let (run, expected) = (results(run), results(expected));
    let paths = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&run), paths(&expected));
    let lines = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<String> {
        let text = String::from_utf8_lossy(&files[Path::new("metrics.jsonl")]);
        text.lines().map(str::to_string).collect()
    };
    for (line, expected) in lines(&run).iter().zip(lines(&expected)) {
        assert_eq!(*line, expected);
    }
    for (path, content) in &run {
        assert!(*content == expected[path], "{} differs", path.display());
    }
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    for (path, content) in files(from) {
        let path = to.join(path);
        fs::create_dir_all(path.parent().expect("it lies below")).expect("created");
        fs::write(path, content).expect("written");
    }
}
