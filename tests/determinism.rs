//! What a run gives is decided by its configuration and seed alone.

use crate::program;
use crate::run_files::{assert_same_results, results, text};

fn smoke(run: &std::path::Path, seed: u64) {
    let seed = format!("seed={seed}");
    let threads = "threads=1";
    program::succeed(&[
        "train",
        "configs/smoke.ron",
        "--run",
        text(run),
        "--set",
        threads,
        "--set",
        &seed,
    ]);
}

#[test]
fn same_seed_gives_the_same_bytes_and_another_seed_others() {
    let dir = tempfile::tempdir().unwrap();
    let [once, again, other] = ["once", "again", "other"].map(|name| dir.path().join(name));
    smoke(&once, 1);
    smoke(&again, 1);
    smoke(&other, 2);
    assert_same_results(&once, &again);
    let (once, other) = (results(&once), results(&other));
    for file in [
        "metrics.jsonl",
        "model/model.safetensors",
        "checkpoints/step-000013/weights.safetensors",
        "rollouts/step-000010.parquet",
    ] {
        let file = std::path::Path::new(file);
        assert!(once[file] != other[file], "{} is the same", file.display());
    }
}
