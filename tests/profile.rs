//! `--profile`: the timeline of a step, as a program that opens it reads it.

use std::fs;

use serde_json::Value;

use crate::program;
use crate::refusal::{WRONG_INPUT, refused};
use crate::run_files::{TINY, text};

/// One grpo stage whose third step has every phase.
const STAGES: &str = "stages=[grpo(steps: 3, prompts_per_step: 4, group_size: 4, kl_beta: 1e-2, \
                      learning_rate: (peak: 1e-3))]";

/// The ranges of our own in a timeline: name, start and end in microseconds.
fn ranges(timeline: &Value) -> Vec<(String, f64, f64)> {
    let events = timeline["traceEvents"].as_array().expect("a list");
    let named = events
        .iter()
        .filter(|event| event["cat"] == "user_annotation");
    let range = |event: &Value| {
        let name = event["name"].as_str().expect("a name");
        let start = event["ts"].as_f64().expect("a time");
        let duration = event["dur"].as_f64().expect("a duration");
        (name.to_string(), start, start + duration)
    };
    named.map(range).collect()
}

#[test]
fn the_phases_of_one_step_are_on_the_timeline() {
    let dir = tempfile::tempdir().unwrap();
    let (run, file) = (dir.path().join("run"), dir.path().join("profile.json"));
    let profiled = ["train", TINY, "--run", text(&run), "--profile", text(&file)];
    let set = ["--set", STAGES, "--set", "checkpoints.every=1"];
    let ended = program::succeed(&[profiled.as_slice(), &set].concat());
    assert!(!ended.stderr.contains("ERROR"), "{}", ended.stderr);
    assert!(ended.stderr.contains(text(&file)), "{}", ended.stderr);

    let timeline: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let ranges = ranges(&timeline);
    let named = |name: &str| -> Vec<(f64, f64)> {
        let found = ranges.iter().filter(|(found, ..)| found == name);
        found.map(|(_, start, end)| (*start, *end)).collect()
    };
    let [step] = named("step")[..] else {
        panic!("one step: {ranges:?}");
    };
    for name in [
        "rollout",
        "prefill",
        "decode",
        "learn",
        "reference",
        "optimizer",
        "evaluation",
        "checkpoint",
    ] {
        let found = named(name);
        assert!(!found.is_empty(), "{name} is not in {ranges:?}");
        for (start, end) in found {
            assert!(step.0 <= start && end <= step.1, "{name} outside the step");
        }
    }
    let (rollout, learn) = (named("rollout")[0], named("learn")[0]);
    assert!(rollout.1 <= learn.0, "sampling comes before learning");
}

/// The sampler's thread is not the one that starts the recording.
#[test]
fn what_a_rollout_thread_does_is_on_the_timeline_too() {
    let dir = tempfile::tempdir().unwrap();
    let (run, file) = (dir.path().join("run"), dir.path().join("profile.json"));
    let stages = STAGES.replace("kl_beta: 1e-2", "asynchronous: (max_policy_age: 1)");
    let stages = stages.replace("steps: 3", "steps: 8");
    let profiled = ["train", TINY, "--run", text(&run), "--profile", text(&file)];
    program::succeed(&[profiled.as_slice(), &["--set", &stages]].concat());
    let timeline: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let thread_of = |name: &str| {
        let events = timeline["traceEvents"].as_array().expect("a list");
        let found = events.iter().find(|event| event["name"] == name);
        found.map(|event| event["tid"].clone())
    };
    let (learner, sampler) = (thread_of("learn"), thread_of("decode"));
    assert!(learner.is_some() && sampler.is_some());
    assert_ne!(learner, sampler);
}

#[test]
fn a_profile_that_cannot_be_written_costs_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let (run, file) = (
        dir.path().join("run"),
        dir.path().join("absent/profile.json"),
    );
    let profiled = ["train", TINY, "--run", text(&run), "--profile", text(&file)];
    let parts = [
        "can't write the profile",
        text(&file),
        "No such file",
        "a folder that exists",
    ];
    refused(&profiled, WRONG_INPUT, &parts);
    assert!(!run.exists(), "nothing was to be run");
}
