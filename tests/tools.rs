//! A tiny policy that calls a tool: rollouts of several turns, in files and in training, worked out again by `baleen replay`.

use std::collections::BTreeSet;
use std::path::Path;

use rollout::rollout_file;

use crate::program;
use crate::replay::{checked_by_python, replay};
use crate::run_files::{metrics, text};

const CONFIG: &str = "configs/tools_smoke.ron";

fn train(run: &Path, changes: &[&str]) {
    let mut args = vec!["train", CONFIG, "--run", text(run)];
    for change in changes {
        args.extend(["--set", change]);
    }
    program::succeed(&args);
}

/// Level 2 asks for the value behind the call, so results of tools stand between what is drawn. Shorter completions are
/// paid more: a policy that can't look up yet has something to learn.
#[test]
fn given_tokens_carry_no_loss_and_a_replay_agrees_with_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train(
        &run,
        &[
            "environments=[(family: lookup, level: 2)]",
            "stages=[sft(steps: 60, documents_per_step: 8, learning_rate: (peak: 3e-3, warmup_steps: 10)), \
             grpo(steps: 2, prompts_per_step: 4, group_size: 4, learning_rate: (peak: 1e-4))]",
            "rewards.agent=(length: 0.5, length_buffer_tokens: 250)",
            "sampling.max_new_tokens=250",
            "evaluation.prompts=4",
        ],
    );
    let lines = metrics(&run);
    let last = lines.last().unwrap();
    assert!(last.episodes.tool_calls_mean > Some(0.0), "{last:?}");
    assert!(last.invalid_samples == Some(0), "{last:?}");
    assert!(
        last.reward_parts
            .iter()
            .any(|part| part.part == "length" && part.mean < 0.0),
        "{last:?}"
    );

    let file = rollout_file::read(&run.join("rollouts/step-000062.parquet")).unwrap();
    let samples = || file.groups.iter().flat_map(|group| &group.samples);
    let mut num_given = 0;
    for sample in samples() {
        for given in &sample.given {
            num_given += given.len();
            assert!(
                sample.sampler_logprobs[given.clone()]
                    .iter()
                    .all(|&p| p == 0.0)
            );
        }
        let paid = sample.paid.as_ref().expect("a part of its length");
        assert_eq!(paid.reward, paid.parts.values().sum::<f64>());
    }
    assert!(num_given > 0, "some tool has answered");

    let json = dir.path().join("step.json");
    replay(&run, 62, &json);
    let (code, said) = checked_by_python(&json);
    assert_eq!(code, 0, "{said}");
    let replayed: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let mut with_given = BTreeSet::new();
    for sample in replayed["samples"].as_array().unwrap() {
        let given = sample["num_given"].as_u64().unwrap();
        let positions = sample["positions"].as_array().unwrap().len();
        assert_eq!(positions, sample["tokens"].as_array().unwrap().len());
        with_given.insert(given > 0);
    }
    assert!(
        with_given.contains(&true),
        "no replayed sample has given tokens"
    );
}
