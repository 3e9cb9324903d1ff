//! The TensorBoard event files of a run, read back by TensorBoard's own reader, against `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Map, Value};

use crate::program::{self, Working, python};
use crate::run_files::{TINY, checkpoints, global_step, names, text, train_tiny};

/// Step, wall time and value, by tag.
type Scalars = BTreeMap<String, Vec<(u64, f64, f64)>>;

fn read_back(python: &str, run: &Path) -> Scalars {
    let mut command = program::quiet(python);
    let folder = run.join("tensorboard");
    command.args(["tests/read_events.py", text(&folder)]);
    let ended = program::finish(command);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("scalars by tag")
}

/// The lines of metrics.jsonl as plain JSON.
fn lines(run: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("the run wrote it");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect()
}

/// Every number of a line but the counts of its histograms and the ages that others are counted by.
fn numbers(line: &Map<String, Value>) -> Vec<f64> {
    let mut found = Vec::new();
    for value in line.values() {
        match value {
            Value::Array(entries) => {
                let objects = entries.iter().filter_map(Value::as_object);
                for mut entry in objects.cloned() {
                    entry.remove("age").expect("it is counted by age");
                    found.extend(numbers(&entry));
                }
            }
            value => found.extend(value.as_f64()),
        }
    }
    found
}

/// The event files hold the figures of every line of metrics.jsonl, and nothing else.
fn assert_equals_metrics(scalars: &Scalars, run: &Path) {
    let lines = lines(run);
    let mut by_step: BTreeMap<u64, Vec<f32>> = BTreeMap::new();
    for (step, _, value) in scalars.values().flatten() {
        by_step.entry(*step).or_default().push(*value as f32);
    }
    assert_eq!(by_step.len(), lines.len());
    for (step, line) in lines.iter().enumerate() {
        let mut expected: Vec<f32> = numbers(line).into_iter().map(|x| x as f32).collect();
        let mut found = by_step.remove(&(step as u64)).expect("every step is there");
        expected.sort_by(f32::total_cmp);
        found.sort_by(f32::total_cmp);
        assert_eq!(found, expected, "step {step}");
    }
    for (tag, key) in [
        ("reward/mean", "reward_mean"),
        ("reward/held_out_pass_rate", "held_out_pass_rate"),
        ("kl/unbiased", "kl"),
        ("mask/sequences", "masked_sequences"),
        ("training/loss", "loss"),
        ("indexer/kl", "indexer_kl"),
        ("speed/rollout_tokens_per_sec", "rollout_tokens_per_sec"),
        ("secs/rollout", "secs_rollout"),
        ("memory/peak_bytes", "peak_memory_bytes"),
    ] {
        let expected: Vec<(u64, f32)> = lines
            .iter()
            .filter_map(|line| {
                let step = line["global_step"].as_u64().expect("a number");
                Some((step, line.get(key)?.as_f64()? as f32))
            })
            .collect();
        let found: Vec<(u64, f32)> = scalars[tag]
            .iter()
            .map(|(step, _, value)| (*step, *value as f32))
            .collect();
        assert!(expected.len() > 1, "{key} is there");
        assert_eq!(found, expected, "{tag}");
    }
    let other: Vec<&String> = scalars
        .keys()
        .filter(|tag| tag.starts_with("other/"))
        .collect();
    assert!(other.is_empty(), "without a group: {other:?}");
}

/// Wall time by step.
fn wall_times(scalars: &Scalars) -> BTreeMap<u64, f64> {
    let steps = scalars["progress/global_step"].iter();
    steps.map(|(step, time, _)| (*step, *time)).collect()
}

#[test]
fn tensorboard_reads_the_figures_of_every_step() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let scalars = read_back(&python, &run);
    assert_equals_metrics(&scalars, &run);
    assert_eq!(names(&run.join("tensorboard")).len(), 1);
    let times: Vec<f64> = wall_times(&scalars).into_values().collect();
    assert!(times.is_sorted(), "{times:?}");
}

/// Leaves the beginning of a record at the end of the newest event file, as a kill may.
fn begin_a_record(run: &Path) {
    let folder = run.join("tensorboard");
    let path = folder.join(names(&folder).pop().expect("there is an event file"));
    let mut bytes = fs::read(&path).unwrap();
    // The file begins with a record of 40 bytes.
    bytes.extend_from_within(..30);
    fs::write(&path, bytes).unwrap();
}

/// Step of the newest whole checkpoint.
fn saved_step(run: &Path) -> u64 {
    let step = |name: &String| name.strip_prefix("step-")?.parse().ok();
    let saved = checkpoints(run).iter().filter_map(step).max();
    saved.expect("the run was saved")
}

#[test]
fn after_kills_and_resumes_the_events_equal_the_metrics_and_keep_their_times() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let stderr = dir.path().join("stderr");
    let mut working = Working::start(&["train", TINY, "--run", text(&run)], &stderr);
    // When the steps that are not taken back were made.
    let mut known: BTreeMap<u64, f64> = BTreeMap::new();
    for steps in [9, 14, 20] {
        assert!(working.wait_until(|| global_step(&run) >= steps));
        assert!(working.kill());
        let times = wall_times(&read_back(&python, &run));
        for (step, time) in &known {
            assert_eq!(times[step], *time, "time of step {step}");
        }
        let saved = saved_step(&run);
        known = times
            .into_iter()
            .filter(|(step, _)| *step <= saved)
            .collect();
        assert_eq!(known.len() as u64, saved + 1);
        begin_a_record(&run);
        working = Working::start(&["resume", text(&run)], &stderr);
    }
    assert!(working.end().success(), "{}", working.said());
    let scalars = read_back(&python, &run);
    assert_equals_metrics(&scalars, &run);
    let times = wall_times(&scalars);
    assert!(known.iter().all(|(step, time)| times[step] == *time));
}

#[test]
fn a_tensorboard_that_looks_on_follows_a_run_through_its_resume() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [run, stderr] = ["run", "stderr"].map(|name| dir.path().join(name));
    let mut working = Working::start(&["train", TINY, "--run", text(&run)], &stderr);
    assert!(working.wait_until(|| global_step(&run) >= 15));
    assert!(working.kill());

    let mut command = program::quiet(&python);
    let folder = run.join("tensorboard");
    command.args(["tests/read_events.py", text(&folder), "--again"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut reader = command.spawn().expect("the reader starts");
    let mut output = BufReader::new(reader.stdout.take().expect("piped"));
    let mut read = || -> Scalars {
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).expect("scalars by tag")
    };
    let num_steps = wall_times(&read()).len();
    assert!((15..27).contains(&num_steps), "{num_steps}");

    program::succeed(&["resume", text(&run)]);
    drop(reader.stdin.take());
    assert_equals_metrics(&read(), &run);
    assert!(reader.wait().expect("our child").success());
}
