//! `baleen replay`, `baleen rollout` and `baleen export` on a tiny run, and another program's word on the
//! arithmetic.

use std::fs;
use std::path::Path;

use rollout::rollout_file;
use serde_json::Value;

use crate::program::{self, quiet};
use crate::run_files::{TINY, TINY_STEPS, checkpoints, files, metrics, text, train_tiny};

const KEEP: &str = "checkpoints=(every: 3, keep: 9)";

/// Steps of the run before its grpo stage.
fn before_grpo() -> usize {
    TINY_STEPS[..3].iter().sum()
}

pub fn replay(run: &Path, step: usize, json: &Path) -> String {
    let step = step.to_string();
    let args = ["replay", text(run), "--step", &step, "--json", text(json)];
    program::succeed(&args).stdout
}

/// What scripts/check_replay.py says of a file: exit code and output.
pub fn checked_by_python(json: &Path) -> (i32, String) {
    let mut command = quiet("python3");
    command.arg("scripts/check_replay.py").arg(json);
    let ended = program::finish(command);
    (ended.code, ended.stdout + &ended.stderr)
}

#[test]
fn a_replayed_step_is_that_of_the_run_and_another_program_agrees_with_its_arithmetic() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    program::succeed(&["train", TINY, "--run", text(&run), "--set", KEEP]);
    let before = files(&run);
    let json = dir.path().join("step.json");
    let first = before_grpo() + 1;
    let last = first + TINY_STEPS[3] - 1;
    // The first step begins at the stage's own checkpoint; the last lies two steps behind one.
    for step in [first, first + 4, last] {
        let said = replay(&run, step, &json);
        assert!(said.contains("bit for bit"), "{said}");
        let (code, python) = checked_by_python(&json);
        assert_eq!(code, 0, "{python}");
        let found: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        assert_eq!(found["step"], step as u64);
        assert_eq!(found["largest_difference"], 0.0);
        assert_eq!(found["losses"].as_array().unwrap().len(), 2, "mini-batches");
        let line = metrics(&run)
            .into_iter()
            .find(|l| l.global_step == step as u64);
        let loss = line.unwrap().loss.unwrap();
        let losses = found["losses"].as_array().unwrap();
        let mean = losses.iter().map(|l| l.as_f64().unwrap()).sum::<f64>() / 2.0;
        assert_eq!(mean, loss, "the loss of the run, bit for bit");
        assert_eq!(found["recorded_loss"], loss);
        assert!(
            found["samples"]
                .as_array()
                .unwrap()
                .iter()
                .any(|s| s["advantage"] != 0.0)
        );
    }
    assert!(before == files(&run), "a replay only reads");

    // A number that is wrong is found: the other program would say so.
    let whole = fs::read_to_string(&json).unwrap();
    for (key, wrong) in [("ratio", 1.5), ("kl", 0.5), ("logprobs", -0.25)] {
        let mut damaged: Value = serde_json::from_str(&whole).unwrap();
        damaged["samples"][0][key][0] = wrong.into();
        fs::write(&json, damaged.to_string()).unwrap();
        let (code, python) = checked_by_python(&json);
        assert_eq!(code, 1, "{key}: {python}");
        assert!(python.contains("differs: prompt "), "{python}");
    }

    // Tokens of one prompt.
    let rollout = run.join(format!("rollouts/step-{last:06}.parquet"));
    let group = rollout_file::read(&rollout).unwrap().groups.remove(0);
    let (step, id) = (last.to_string(), group.prompt.id.to_string());
    let said = program::succeed(&["replay", text(&run), "--step", &step, "--prompt", &id]).stdout;
    let tokens: usize = group.samples.iter().map(|sample| sample.tokens.len()).sum();
    assert!(said.lines().count() > tokens, "{said}");
    assert!(said.contains("sampler_logprob"), "{said}");
}

#[test]
fn what_can_not_be_replayed_is_said_with_what_can() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let first = before_grpo() + 1;
    let refused = |step: usize| {
        let step = step.to_string();
        let ended = program::finish(program::command(&["replay", text(&run), "--step", &step]));
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        ended.stderr
    };
    let error = refused(3);
    assert!(error.contains("it is a step of indexer_warmup"), "{error}");
    let error = refused(999);
    assert!(error.contains("has no such step"), "{error}");
    // checkpoints.keep is 2: the stage's first checkpoints are gone.
    let error = refused(first + 1);
    assert!(
        error.contains("no intact checkpoint of its stage"),
        "{error}"
    );
    assert!(error.contains("checkpoints.keep is 2"), "{error}");
    let json = dir.path().join("step.json");
    let said = replay(&run, first + TINY_STEPS[3] - 1, &json);
    assert!(said.contains("bit for bit"), "{said}");
}

#[test]
fn rollout_samples_what_the_first_step_of_a_run_samples() {
    let dir = tempfile::tempdir().unwrap();
    let [run, out, later] = ["run", "out", "later"].map(|name| dir.path().join(name));
    let grpo_alone =
        "stages=[grpo(steps: 2, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-3))]";
    program::succeed(&["train", TINY, "--run", text(&run), "--set", grpo_alone]);
    let args = [
        "rollout",
        TINY,
        "--out",
        text(&out),
        "--steps",
        "2",
        "--set",
        grpo_alone,
    ];
    let said = program::succeed(&args).stdout;
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        said.contains("32 samples of 4 prompts, 0 invalid"),
        "{said}"
    );
    let read = |root: &Path, step: u64| {
        rollout_file::read(&root.join(format!("rollouts/step-{step:06}.parquet"))).unwrap()
    };
    assert!(
        read(&out, 1) == read(&run, 1),
        "the same samples as the run's"
    );
    let ids = |root: &Path, step| -> Vec<u64> {
        read(root, step)
            .groups
            .iter()
            .map(|g| g.prompt.id)
            .collect()
    };
    assert_eq!(ids(&out, 2), [4, 5, 6, 7]);
    assert_ne!(
        read(&out, 2).groups,
        read(&run, 2).groups,
        "nothing was trained between the steps"
    );

    // Of a run: its newest policy, and the prompts that come next.
    program::succeed(&["rollout", text(&run), "--out", text(&later)]);
    assert_eq!(ids(&later, 3), [8, 9, 10, 11]);
    let versions = &read(&later, 3).groups[0].samples[0].policy_versions;
    assert!(versions.iter().all(|&version| version == 2));

    let again = program::finish(program::command(&["rollout", TINY, "--out", text(&out)]));
    assert_eq!(again.code, 2, "{}", again.stderr);
    assert!(again.stderr.contains("not empty"), "{}", again.stderr);
}

#[test]
fn any_checkpoint_can_be_exported_and_the_last_one_is_the_final_policy() {
    let dir = tempfile::tempdir().unwrap();
    let [run, last, earlier] = ["run", "last", "earlier"].map(|name| dir.path().join(name));
    train_tiny(&run);
    program::succeed(&["export", text(&run), text(&last)]);
    assert!(files(&last) == files(&run.join("model")), "the same bytes");
    let names = checkpoints(&run);
    let steps: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .collect();
    let step = steps[0].to_string();
    let args = [
        "export",
        text(&run),
        text(&earlier),
        "--step",
        &step,
        "--dtype",
        "f32",
    ];
    let said = program::succeed(&args).stdout;
    assert!(said.contains(&format!("after step {step}")), "{said}");
    assert!(files(&earlier) != files(&last));
    program::succeed(&[
        "eval",
        text(&earlier),
        "--family",
        "sums",
        "--level",
        "1",
        "--prompts",
        "4",
    ]);

    let again = program::finish(program::command(&["export", text(&run), text(&last)]));
    assert_eq!(again.code, 2, "{}", again.stderr);
    let nowhere = dir.path().join("nowhere");
    let args = ["export", text(&run), text(&nowhere), "--step", "1"];
    let missing = program::finish(program::command(&args));
    assert_eq!(missing.code, 1, "{}", missing.stderr);
    assert!(
        missing.stderr.contains("no intact checkpoint of step 1"),
        "{}",
        missing.stderr
    );
    assert!(
        missing.stderr.contains(&names[names.len() - 1]),
        "{}",
        missing.stderr
    );
}
