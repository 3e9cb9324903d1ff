use std::path::Path;

use super::*;
use crate::config_file;

/// A run of all four stages; evaluation of 64 prompts at temperature 1.
const METRICS: &str = r#"{"stage":"start","stage_index":0,"step":0,"held_out_pass_rate":0.125,"secs_evaluation":10.0}
{"stage":"indexer_warmup","stage_index":0,"step":1,"indexer_kl":1.25,"keys_selected_share":1.0,"train_tokens_per_sec":400.0,"secs_train":1.0,"secs_total":1.5,"peak_memory_bytes":2000000000}
{"stage":"indexer_warmup","stage_index":0,"step":2,"indexer_kl":0.25,"keys_selected_share":1.0,"train_tokens_per_sec":400.0,"secs_train":1.0,"secs_total":1.5,"peak_memory_bytes":2000000000}
{"stage":"sparse_training","stage_index":1,"step":1,"loss":3.5,"indexer_kl":0.5,"keys_selected_share":0.5,"train_tokens_per_sec":100.0,"secs_train":2.0,"secs_total":2.0,"peak_memory_bytes":9000000000}
{"stage":"sparse_training","stage_index":1,"step":2,"loss":2.5,"indexer_kl":0.375,"keys_selected_share":0.75,"held_out_pass_rate":0.25,"train_tokens_per_sec":100.0,"secs_train":2.0,"secs_evaluation":8.0,"secs_total":10.0,"peak_memory_bytes":9000000000}
{"stage":"sft","stage_index":2,"step":1,"loss":1.0,"keys_selected_share":0.5,"held_out_pass_rate":0.375,"train_tokens_per_sec":100.0,"secs_train":4.0,"secs_evaluation":50.0,"secs_total":55.0,"peak_memory_bytes":9000000000}
{"stage":"grpo","stage_index":3,"step":1,"reward_mean":0.25,"loss":0.0,"kl":0.0,"clipped_share":0.0,"masked_sequences":0,"keys_selected_share":0.5,"rollout_tokens_per_sec":100.0,"train_tokens_per_sec":150.0,"secs_rollout":3.0,"secs_train":2.0,"secs_total":5.0,"peak_memory_bytes":8000000000}
{"stage":"grpo","stage_index":3,"step":2,"reward_mean":0.5,"loss":0.0,"kl":0.0,"clipped_share":0.01,"masked_sequences":3,"keys_selected_share":0.5,"rollout_tokens_per_sec":300.0,"train_tokens_per_sec":150.0,"secs_rollout":1.0,"secs_train":2.0,"secs_total":3.0,"peak_memory_bytes":8000000000}
{"stage":"grpo","stage_index":3,"step":3,"reward_mean":0.75,"held_out_pass_rate":0.625,"loss":0.0,"kl":0.0,"clipped_share":0.02,"masked_sequences":1,"keys_selected_share":0.5,"rollout_tokens_per_sec":100.0,"train_tokens_per_sec":150.0,"secs_rollout":4.0,"secs_train":2.0,"secs_evaluation":30.0,"secs_total":36.0,"peak_memory_bytes":8000000000}
"#;

fn config(stages: &str) -> RunConfig {
    let text = format!(
        r#"(
            name: "four",
            model: (source: Path("models/x")),
            environments: [(family: sums)],
            stages: [{stages}],
            evaluation: (prompts: 64),
        )"#
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("four.ron");
    std::fs::write(&path, text).expect("written");
    config_file::load(&path, &[]).expect("a sound configuration")
}

fn four_stages() -> RunConfig {
    config(
        "indexer_warmup(steps: 2, learning_rate: (peak: 1e-3)),
         sparse_training(steps: 2, learning_rate: (peak: 1e-3)),
         sft(steps: 1, learning_rate: (peak: 1e-3)),
         grpo(steps: 3, prompts_per_step: 8, group_size: 8, learning_rate: (peak: 1e-5))",
    )
}

fn steps(lines: &str) -> Vec<StepMetrics> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("a metrics line"))
        .collect()
}

fn layout() -> RunLayout {
    RunLayout::new(Path::new("runs/four"))
}

#[test]
fn table_tells_what_each_stage_moved_and_what_it_took() {
    let table = table(&four_stages(), &layout(), &steps(METRICS)).expect("complete");
    // Training: (2 x 400 + 8 x 100 + 6 x 150) tokens in 16 s; rollout: 1000 tokens in 8 s.
    assert_eq!(
        table,
        "\
run four: complete, 8 steps

held-out pass rate (64 prompts, temperature 1.0): 0.125 -> 0.625

stage             figure                                       before        after  steps     time
indexer_warmup    indexer KL, nats a token                     1.2500 ->    0.2500      2    3.0 s
sparse_training   loss, nats a token                           3.5000 ->    2.5000      2   12.0 s
                  indexer KL, nats a token                     0.5000 ->    0.3750
                  held-out pass rate                            0.125 ->     0.250
                  keys attended, share of those visible                      0.625
sft               loss, nats a token                                        1.0000      1   55.0 s
                  held-out pass rate                            0.250 ->     0.375
                  keys attended, share of those visible                      0.500
grpo              held-out pass rate                            0.375 ->     0.625      3   44.0 s
                  reward, mean of 1 step(s) at either end       0.250 ->     0.750
                  keys attended, share of those visible                      0.500
                  tokens clipped, share                                     0.0100
                  sequences dropped by the off-policy mask                       4

time              2m 04s
rollout           125 tokens/s
training          156 tokens/s
peak memory       9.00 GB

files in runs/four
  model/            final policy, a Hugging Face folder
  checkpoints/      what a stopped run continues from
  rollouts/         every prompt, sample and reward, a parquet file a step
  metrics.jsonl     the figures of every step
  tensorboard/      the same figures, for TensorBoard
  log.txt           what the console said
  config.ron        the configuration with every default written out"
    );
    assert!(table.is_ascii());
    assert!(table.lines().all(|line| line.len() <= 100));
}

#[test]
fn figures_that_were_not_measured_are_left_out() {
    let without_evaluation: Vec<StepMetrics> = steps(METRICS)
        .into_iter()
        .filter(|step| step.step > 0)
        .map(|step| StepMetrics {
            held_out_pass_rate: None,
            peak_memory_bytes: None,
            ..step
        })
        .collect();
    let table = table(&four_stages(), &layout(), &without_evaluation).expect("complete");
    for absent in ["held-out", "peak memory", "0.000"] {
        assert!(!table.contains(absent), "{absent} in\n{table}");
    }
}

#[test]
fn a_run_with_a_step_to_go_has_no_table() {
    let mut unfinished = steps(METRICS);
    unfinished.pop();
    assert_eq!(table(&four_stages(), &layout(), &unfinished), None);
    assert_eq!(table(&four_stages(), &layout(), &[]), None);
}

#[test]
fn durations_are_short_and_exact() {
    assert_eq!(duration(59.94), "59.9 s");
    assert_eq!(duration(59.96), "1m 00s");
    assert_eq!(duration(125.0), "2m 05s");
    assert_eq!(duration(3600.0 * 3.0 + 7.0 * 60.0), "3h 07m");
}
