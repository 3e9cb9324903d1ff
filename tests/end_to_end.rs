//! `configs/smoke.ron` from start to end, then every command on what it left behind.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::program;
use crate::run_files::{checkpoints, metrics, names, text};

/// Steps of the stages in `configs/smoke.ron`.
const STEPS: [(&str, usize); 4] = [
    ("indexer_warmup", 3),
    ("sparse_training", 3),
    ("sft", 3),
    ("grpo", 4),
];

fn train_smoke(run: &Path) {
    program::succeed(&[
        "train",
        "configs/smoke.ron",
        "--run",
        text(run),
        "--set",
        "threads=1",
    ]);
}

/// The lines of metrics.jsonl as plain JSON.
fn lines(run: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("the run wrote it");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a JSON object"))
        .collect()
}

#[test]
fn smoke_run_leaves_every_documented_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_smoke(&run);
    assert_eq!(
        names(&run),
        [
            "checkpoints",
            "config.ron",
            "learned",
            "lock",
            "log.txt",
            "metrics.jsonl",
            "model",
            "rollouts",
            "tensorboard"
        ]
    );
    assert_eq!(
        checkpoints(&run),
        ["reference-stage-3", "step-000011", "step-000013"]
    );
    assert_eq!(
        names(&run.join("checkpoints/step-000011")),
        [
            "manifest.json",
            "optimizer.safetensors",
            "state.json",
            "weights.safetensors"
        ]
    );
    assert_eq!(
        names(&run.join("rollouts")),
        [10, 11, 12, 13].map(|step| format!("step-{step:06}.parquet"))
    );
    assert_eq!(
        names(&run.join("model")),
        [
            "config.json",
            "generation_config.json",
            "manifest.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    assert!(
        log.contains("grpo 4/4") && log.contains("final policy exported"),
        "{log}"
    );
    check_metrics(&run);
    check_replay_cost(&run);
    check_learning(&run);
    check_status(&run);
}

/// Two layers of two experts, 2 bytes each, for every token that was forwarded: the last one is not.
fn check_replay_cost(run: &Path) {
    let lines = lines(run);
    let grpo: Vec<_> = lines
        .iter()
        .filter(|line| line["stage"] == "grpo")
        .collect();
    assert_eq!(grpo.len(), 4);
    for line in grpo {
        let figure = |key: &str| line[key].as_f64().expect("a number");
        let completion = figure("completion_tokens_mean");
        let forwarded = figure("prompt_tokens_mean") + completion - 1.0;
        let difference = figure("routing_bytes_per_token") - 8.0 * forwarded / completion;
        assert!(difference.abs() < 1e-9, "{difference}");
        assert!(
            !line.contains_key("kept_bytes_per_token"),
            "nothing is truncated"
        );
    }
}

/// A line a step with the figures of its stage and no others.
fn check_metrics(run: &Path) {
    let lines = lines(run);
    let mut expected: Vec<(String, usize)> = vec![("start".to_string(), 0)];
    for (stage, steps) in STEPS {
        expected.extend((1..=steps).map(|step| (stage.to_string(), step)));
    }
    let found = lines.iter().map(|line| {
        let step = line["step"].as_u64().expect("a number") as usize;
        (line["stage"].as_str().expect("a name").to_string(), step)
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);

    let indexer = ["indexer_kl", "indexer_grad_norm"];
    let language = ["loss", "grad_norm"];
    let training = [
        "learning_rate",
        "keys_selected_share",
        "train_tokens_per_sec",
        "secs_train",
    ];
    let reward = [
        "policy_age",
        "reward_mean",
        "reward_std",
        "pass_rate",
        "invalid_samples",
        "kl",
        "ratio_mean",
        "ratio_max",
        "clipped_share",
        "masked_sequences",
        "masked_tokens",
        "logprob_gap_mean",
        "logprob_gap_max",
        "routing_agreement_free",
        "routing_agreement_replay",
        "entropy",
        "prompt_tokens_mean",
        "completion_tokens_mean",
        "finished_share",
        "preemptions",
        "rollout_tokens_per_sec",
        "secs_rollout",
        "secs_reference",
    ];
    for (global_step, line) in lines.iter().enumerate() {
        assert_eq!(line["global_step"].as_u64(), Some(global_step as u64));
        let (stage, step) = &expected[global_step];
        let is_last = STEPS.contains(&(stage.as_str(), *step));
        let has = |part: &[&str], present: bool| {
            for figure in part {
                let number = line.get(*figure).and_then(Value::as_f64);
                assert_eq!(number.is_some(), present, "{figure} of {stage} {step}");
            }
        };
        has(&training, stage != "start");
        has(&["secs_total", "peak_memory_bytes"], stage != "start");
        has(
            &language,
            ["sparse_training", "sft", "grpo"].contains(&stage.as_str()),
        );
        has(
            &indexer,
            ["indexer_warmup", "sparse_training"].contains(&stage.as_str()),
        );
        has(&reward, stage == "grpo");
        let evaluates = stage == "start" || (is_last && stage != "indexer_warmup");
        has(&["held_out_pass_rate", "secs_evaluation"], evaluates);
        // A line tells what the checkpoint before it took: one every second step and one where a stage ends.
        let (_, step_before) = global_step.checked_sub(1).map_or(("", 0), |before| {
            (expected[before].0.as_str(), expected[before].1)
        });
        let follows_checkpoint = step_before > 0 && (*step == 1 || step_before % 2 == 0);
        has(&["secs_checkpoint"], follows_checkpoint);
    }
}

/// The indexer comes closer to the attention it imitates, the loss of worked solutions falls, and
/// the trainer computes the log-probs that the sampler did.
fn check_learning(run: &Path) {
    let steps = metrics(run);
    let series = |stage: &str, figure: fn(&trainer::metrics::StepMetrics) -> Option<f64>| {
        let steps = steps.iter().filter(|step| step.stage == stage);
        steps
            .map(|step| figure(step).expect("the stage has it"))
            .collect::<Vec<_>>()
    };
    let indexer_kl = series("indexer_warmup", |step| step.indexer_kl);
    assert!(indexer_kl[2] < 0.8 * indexer_kl[0], "{indexer_kl:?}");
    let loss = series("sft", |step| step.loss);
    assert!(loss[2] < loss[0] - 0.1, "{loss:?}");
    let gap = series("grpo", |step| step.logprob_gap_max);
    assert!(gap.iter().all(|gap| *gap < 1e-4), "{gap:?}");
    let replay = series("grpo", |step| step.routing_agreement_replay);
    assert!(replay.iter().all(|share| *share == 1.0), "{replay:?}");
}

fn check_status(run: &Path) {
    let status = program::succeed(&["status", text(run)]).stdout;
    for part in [
        "run smoke: complete, 13 steps",
        "held-out pass rate",
        "step-000013",
    ] {
        assert!(status.contains(part), "{part} in {status}");
    }
    // What the run itself said at its end, looked at again later.
    let again = program::succeed(&["resume", text(run)]).stdout;
    assert!(status.contains(again.trim()), "{again}in {status}");
}

/// One line of `baleen score`.
struct Score(Map<String, Value>);

impl Score {
    fn logprobs(&self) -> Vec<f64> {
        let values = self.0["logprobs"].as_array().expect("a list");
        values
            .iter()
            .map(|value| value.as_f64().expect("a number"))
            .collect()
    }

    /// `[layer][token][...]`
    fn ids(&self, name: &str) -> Vec<Vec<Vec<u64>>> {
        serde_json::from_value(self.0[name].clone()).expect("[layer][token][ids]")
    }
}

fn score(model: &Path, sequences: &[&[u32]], options: &[&str]) -> Vec<Score> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let input = dir.path().join("input.jsonl");
    let lines = sequences
        .iter()
        .map(|tokens| format!("{{\"tokens\": {tokens:?}}}\n"));
    fs::write(&input, lines.collect::<String>()).expect("written");
    let fixed = [
        "score",
        text(model),
        "--input",
        text(&input),
        "--threads",
        "1",
    ];
    let ended = program::succeed(&[&fixed, options].concat());
    let line = |line: &str| Score(serde_json::from_str(line).expect("a JSON object"));
    let scores: Vec<Score> = ended.stdout.lines().map(line).collect();
    assert_eq!(scores.len(), sequences.len());
    scores
}

#[test]
fn exported_policy_scores_generates_and_plays() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_smoke(&run);
    let model = run.join("model");

    let long: Vec<u32> = (0..40).map(|i| 97 + i % 26).collect();
    let scores = score(
        &model,
        &[&long, &[65]],
        &["--logits", "--routing", "--selected", "--dtype", "f32"],
    );
    let logprobs = scores[0].logprobs();
    assert_eq!(logprobs.len(), 39);
    let logits: Vec<Vec<f64>> = serde_json::from_value(scores[0].0["logits"].clone()).unwrap();
    assert_eq!((logits.len(), logits[39].len()), (40, 320));
    for (t, logprob) in logprobs.iter().enumerate() {
        let sum: f64 = logits[t].iter().map(|logit| logit.exp()).sum();
        let expected = logits[t][long[t + 1] as usize] - sum.ln();
        assert!((logprob - expected).abs() < 1e-5, "{logprob} {expected}");
    }
    assert!(
        logprobs
            .iter()
            .all(|logprob| logprob.is_finite() && *logprob < 0.0)
    );
    // 2 layers, 4 experts of which 2 are chosen.
    let routing = scores[0].ids("routing");
    assert_eq!((routing.len(), routing[0].len()), (2, 40));
    for experts in routing.iter().flatten() {
        assert!(experts.len() == 2 && experts[0] != experts[1] && experts.iter().all(|&e| e < 4));
    }
    // At most 8 keys, all of them while there are no more, none from the future, ascending.
    let selected = scores[0].ids("selected");
    assert_eq!((selected.len(), selected[0].len()), (2, 40));
    for layer in &selected {
        for (position, keys) in layer.iter().enumerate() {
            assert_eq!(keys.len(), (position + 1).min(8));
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{keys:?}");
            assert!(keys.iter().all(|&key| key <= position as u64), "{keys:?}");
        }
    }
    assert_eq!(scores[1].logprobs(), Vec::<f64>::new());
    // A run folder stands for its final policy.
    let of_run = score(&run, &[&long], &["--dtype", "f32"]);
    assert_eq!(of_run[0].logprobs(), logprobs);

    let generate = |seed: &str| {
        let fixed = [
            "generate",
            text(&model),
            "--prompt",
            "What is 2 + 3?",
            "--threads",
            "1",
        ];
        let more = ["--max-new-tokens", "8", "--samples", "2", "--seed", seed];
        program::succeed(&[fixed, more].concat()).stdout
    };
    assert!(generate("1").contains("--- sample 1"));
    assert_eq!(generate("1"), generate("1"));
    assert_ne!(generate("1"), generate("2"));

    let table = program::succeed(&["eval", text(&run), "--threads", "1"]).stdout;
    assert!(table.contains("sums             1       16"), "{table}");
    let fixed = ["eval", text(&model), "--prompts", "4", "--threads", "1"];
    let families = [
        "--family",
        "sums",
        "--family",
        "gcd",
        "--max-new-tokens",
        "4",
    ];
    let table = program::succeed(&[&fixed[..], &families].concat()).stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
}

#[test]
fn a_dense_policy_becomes_sparse_by_import_without_changing_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let [run, sparse, trained] = ["run", "sparse", "trained"].map(|name| dir.path().join(name));
    // The shape of the smoke run without experts and indexer, trained for one step.
    program::succeed(&[
        "train",
        "configs/smoke.ron",
        "--run",
        text(&run),
        "--set",
        "threads=1",
        "--set",
        "model.source.Random.moe=None",
        "--set",
        "model.source.Random.model_type=llama",
        "--set",
        "model.source.Random.dsa=None",
        "--set",
        "stages=[sft(steps: 1, learning_rate: (peak: 1e-3))]",
        "--set",
        "evaluation.prompts=0",
    ]);
    let dense = run.join("model");
    program::succeed(&[
        "import",
        text(&dense),
        text(&sparse),
        "--upcycle",
        "experts=4,top_k=2",
        "--dsa",
        "heads=2,dim=8,topk=4",
    ]);
    let tokens: Vec<u32> = (0..24).map(|i| 97 + i * 7 % 26).collect();
    let of_dense = score(&dense, &[&tokens], &["--dtype", "f32"]);
    let options = ["--dtype", "f32", "--attention", "dense", "--routing"];
    let of_sparse = score(&sparse, &[&tokens], &options);
    // Each expert is a copy of the dense feed-forward, and the gates sum to 1.
    for (sparse, dense) in of_sparse[0].logprobs().iter().zip(of_dense[0].logprobs()) {
        assert!((sparse - dense).abs() < 1e-4, "{sparse} against {dense}");
    }
    assert_eq!(of_sparse[0].ids("routing")[0][0].len(), 2);

    // The imported folder is a policy to train from.
    let source = format!("model.source=Path({:?})", text(&sparse));
    program::succeed(&[
        "train",
        "configs/smoke.ron",
        "--run",
        text(&trained),
        "--set",
        "threads=1",
        "--set",
        &source,
        "--set",
        "evaluation.prompts=0",
    ]);
    assert_eq!(
        metrics(&trained).last().map(|step| step.global_step),
        Some(13)
    );
}
