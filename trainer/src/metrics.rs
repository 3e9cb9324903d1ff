//! One [`StepMetrics`] a step: a line of `metrics.jsonl` and a line for people.
//!
//! A figure that a stage doesn't have is absent from its line, never 0. Every line is flushed, and
//! after a resume [`MetricsWriter::resume`] drops the lines that the checkpoint doesn't know, so
//! the file of a resumed run equals that of an uninterrupted one but for [`without_timings`].

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rollout::crash_point;
use serde::{Deserialize, Serialize};

use crate::episode_figures::{EnvironmentFigures, EpisodeFigures, RewardPart};
use crate::off_policy::OffPolicy;
use crate::run_folder::replace_file;

/// Figures of one step. Rewards, losses and norms are dimensionless; KL and log-probs in nats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepMetrics {
    /// Kind of stage: `grpo` and so on.
    pub stage: String,
    /// Index of the stage in the configuration, from 0.
    pub stage_index: usize,
    /// Step within the stage, from 1.
    pub step: usize,
    /// Steps of all stages so far, this one included.
    pub global_step: u64,
    /// Version of the policy after the step.
    pub policy_version: u64,
    /// Versions between the policy that drew a sample's first token and the one it trained, mean over samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_age: Option<f64>,
    /// The same, largest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_age_max: Option<u64>,
    /// Samples whose tokens come from more than one version of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spanning_samples: Option<usize>,

    /// Mean of what the graded samples were paid: the verdict's reward, or that and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_mean: Option<f64>,
    /// Its standard deviation over all graded samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_std: Option<f64>,
    /// Share of graded samples whose verdict is a full solution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_rate: Option<f64>,
    /// Share of held-out prompts solved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_pass_rate: Option<f64>,
    /// Samples that failed through no fault of the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid_samples: Option<usize>,
    /// Means of the parts of what was paid, where a run pays for more than the verdict.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reward_parts: Vec<RewardPart>,
    /// The same by environment, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_environment: Vec<EnvironmentFigures>,
    /// Turns and tool calls.
    #[serde(flatten)]
    pub episodes: EpisodeFigures,

    /// Loss that was minimised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Unbiased KL to the reference policy, a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Mean of pi / pi_old over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_mean: Option<f64>,
    /// Largest pi / pi_old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_max: Option<f64>,
    /// Share of tokens whose ratio was clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clipped_share: Option<f64>,
    /// Tokens whose KL term exceeds 10 nats; they are counted, their gradient is not clamped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extreme_kl_tokens: Option<u64>,
    /// Sequences dropped by the off-policy mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_sequences: Option<usize>,
    /// Tokens of those sequences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_tokens: Option<usize>,
    /// Drift of the sequences, and what the off-policy mask did.
    #[serde(flatten)]
    pub off_policy: OffPolicy,
    /// Groups of two or more valid samples that all earned the same reward: without advantage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_spread_groups: Option<usize>,
    /// |trainer log-prob - sampler log-prob| before the first update of the step, mean over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_gap_mean: Option<f64>,
    /// The same, largest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_gap_max: Option<f64>,
    /// Share of expert choices that the trainer would repeat if free to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_agreement_free: Option<f64>,
    /// Share of expert choices that the trainer did repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_agreement_replay: Option<f64>,
    /// Keys attended over keys visible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_selected_share: Option<f64>,
    /// Entropy of the policy, nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    /// Tokens that truncation left to choose from, mean over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_tokens_mean: Option<f64>,
    /// Bytes that the recorded experts take, of the prompt too, over completion tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_bytes_per_token: Option<f64>,
    /// Bytes that the recorded kept tokens take, over completion tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_bytes_per_token: Option<f64>,
    /// Prompt length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_mean: Option<f64>,
    /// Completion length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_mean: Option<f64>,
    /// Share of completions that ended by a stop token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_share: Option<f64>,

    /// Gradient norm of the language model before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Gradient norm of the indexer before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexer_grad_norm: Option<f64>,
    /// KL of the indexer to the attention it imitates, mean over layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexer_kl: Option<f64>,
    /// Learning rate of the last update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,

    /// Sequences taken out of a cache without a free page, to be run through the model again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<usize>,
    /// Sampled tokens a second of rollout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_tokens_per_sec: Option<f64>,
    /// Tokens (prompts included) a second of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_tokens_per_sec: Option<f64>,
    /// Where the time went.
    #[serde(flatten)]
    pub secs: StepSecs,
    /// Largest resident memory of the process so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// Seconds of each part of a step; parts that a stage doesn't have are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepSecs {
    /// Generation and grading.
    #[serde(rename = "secs_rollout", skip_serializing_if = "Option::is_none")]
    pub rollout: Option<f64>,
    /// Log-probs of the reference policy.
    #[serde(rename = "secs_reference", skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
    /// Forward and backward passes and the optimizer.
    #[serde(rename = "secs_train", skip_serializing_if = "Option::is_none")]
    pub train: Option<f64>,
    /// Held-out evaluation.
    #[serde(rename = "secs_evaluation", skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<f64>,
    /// The whole step up to here.
    #[serde(rename = "secs_total", skip_serializing_if = "Option::is_none")]
    pub total: Option<f64>,
    /// Saving the checkpoint before this step, which the total leaves out: a step's own checkpoint covers its
    /// line and comes after it.
    #[serde(rename = "secs_checkpoint", skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<f64>,
}

impl StepMetrics {
    /// One line for people, within 100 columns: stage and step, then the figures that matter most
    /// for the stage, in the same columns from step to step. Step 0 stands for the time before any.
    pub fn summary(&self, stage_steps: usize) -> String {
        let width = stage_steps.to_string().len();
        let mut line = match self.step {
            0 => self.stage.clone(),
            step => format!("{} {step:>width$}/{stage_steps}", self.stage),
        };
        let mut add = |label: &str, value: Option<f64>, decimals: usize| {
            if let Some(value) = value {
                line.push_str(&format!("  {label} {value:.decimals$}"));
            }
        };
        add("reward", self.reward_mean, 3);
        add("eval", self.held_out_pass_rate, 3);
        if self.reward_mean.is_none() {
            add("loss", self.loss, 4);
        }
        add("indexer kl", self.indexer_kl, 4);
        add("kl", self.kl, 4);
        add("len", self.completion_tokens_mean, 1);
        add("grad", self.grad_norm, 2);
        if let Some(masked) = self.masked_sequences.filter(|&masked| masked > 0) {
            line.push_str(&format!("  masked {masked}"));
        }
        if let Some(secs) = self.secs.total {
            line.push_str(&format!("  {secs:.1} s"));
        }
        line
    }
}

/// Appends to `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    out: crash_point::Writer,
}

impl MetricsWriter {
    /// Starts an empty file.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn create(path: &Path) -> io::Result<MetricsWriter> {
        Ok(MetricsWriter {
            path: path.to_path_buf(),
            out: crash_point::Writer::new(crash_point::create(path, false)?),
        })
    }

    /// Continues after a checkpoint taken at `global_step`: later lines, and a last line cut short
    /// by a kill, are dropped.
    ///
    /// # Errors
    /// The file can't be read or written, or a line before its last is not a metrics line.
    pub fn resume(path: &Path, global_step: u64) -> io::Result<MetricsWriter> {
        let kept: String = if path.exists() {
            let text = fs::read_to_string(path)?;
            let mut kept = String::new();
            for line in text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
            {
                if parse_line(line)?.global_step <= global_step {
                    kept.push_str(line);
                }
            }
            kept
        } else {
            String::new()
        };
        replace_file(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(MetricsWriter {
            path: path.to_path_buf(),
            out: crash_point::Writer::new(file),
        })
    }

    /// Makes every line written so far survive a power cut.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn sync(&self) -> io::Result<()> {
        crash_point::sync(self.out.file(), &self.path)
    }

    /// Appends one line and hands it to the operating system.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        let mut line = serde_json::to_string(metrics)?;
        line.push('\n');
        // One call, so that a kill can cut at most this line.
        self.out.write_all(line.as_bytes())?;
        self.out.flush()
    }
}

/// The steps of a `metrics.jsonl`, oldest first; a last line cut short is left out.
///
/// # Errors
/// The file can't be read, or a line before its last is not a metrics line.
pub fn read(path: &Path) -> io::Result<Vec<StepMetrics>> {
    fs::read_to_string(path)?
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(parse_line)
        .collect()
}

/// The step of one line.
///
/// # Errors
/// It is not a metrics line.
pub(crate) fn parse_line(line: &str) -> io::Result<StepMetrics> {
    serde_json::from_str(line).map_err(|error| {
        let problem = format!("not a metrics line ({error}): {}", line.trim_end());
        io::Error::new(io::ErrorKind::InvalidData, problem)
    })
}

/// A metrics line without the figures that differ between two equal runs: times, speeds, memory.
///
/// # Errors
/// `line` is not a JSON object.
pub fn without_timings(line: &str) -> serde_json::Result<String> {
    let mut figures: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)?;
    figures.retain(|name, _| {
        !name.starts_with("secs_") && !name.ends_with("_per_sec") && name != "peak_memory_bytes"
    });
    serde_json::to_string(&figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(global_step: u64) -> StepMetrics {
        StepMetrics {
            stage: "grpo".to_string(),
            step: global_step as usize,
            global_step,
            reward_mean: Some(0.25),
            secs: StepSecs {
                total: Some(1.5),
                ..StepSecs::default()
            },
            ..StepMetrics::default()
        }
    }

    #[test]
    fn a_line_is_flat_and_leaves_out_what_is_absent() {
        let line = serde_json::to_string(&step(3)).expect("serialisable");
        assert_eq!(
            line,
            r#"{"stage":"grpo","stage_index":0,"step":3,"global_step":3,"policy_version":0,"reward_mean":0.25,"secs_total":1.5}"#
        );
        assert_eq!(parse_line(&line).expect("a metrics line"), step(3));
    }

    #[test]
    fn resuming_drops_later_lines_and_a_cut_one() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).expect("created");
        for global_step in 1..=4 {
            writer.write(&step(global_step)).expect("written");
        }
        let whole = fs::read_to_string(&path).expect("readable");
        // A kill in the middle of line 4.
        fs::write(&path, &whole[..whole.len() - 20]).expect("written");
        let mut writer = MetricsWriter::resume(&path, 2).expect("resumed");
        for global_step in 3..=4 {
            writer.write(&step(global_step)).expect("written");
        }
        assert_eq!(fs::read_to_string(&path).expect("readable"), whole);
        assert_eq!(read(&path).expect("readable").len(), 4);
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_that_quotes_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"stage\"\n{}\n").expect("written");
        let error = MetricsWriter::resume(&path, 2).expect_err("damaged");
        assert!(error.to_string().contains("{\"stage\""), "{error}");
    }

    #[test]
    fn timings_are_dropped_and_results_kept() {
        let line = r#"{"step":1,"loss":0.5,"secs_total":2.0,"train_tokens_per_sec":9.0,"peak_memory_bytes":7}"#;
        assert_eq!(
            without_timings(line).expect("an object"),
            r#"{"step":1,"loss":0.5}"#
        );
    }

    #[test]
    fn summary_tells_the_stage_in_at_most_100_columns() {
        let grpo = StepMetrics {
            held_out_pass_rate: Some(0.5),
            kl: Some(0.00123),
            completion_tokens_mean: Some(17.25),
            grad_norm: Some(12.345),
            masked_sequences: Some(12),
            ..step(7)
        };
        let line = grpo.summary(1000);
        assert_eq!(
            line,
            "grpo    7/1000  reward 0.250  eval 0.500  kl 0.0012  len 17.2  \
             grad 12.35  masked 12  1.5 s"
        );
        assert!(line.len() <= 100);
        let warmup = StepMetrics {
            stage: "indexer_warmup".to_string(),
            indexer_kl: Some(0.5),
            reward_mean: None,
            loss: Some(0.5),
            ..step(1)
        };
        assert_eq!(
            warmup.summary(5),
            "indexer_warmup 1/5  loss 0.5000  indexer kl 0.5000  1.5 s"
        );
    }
}
