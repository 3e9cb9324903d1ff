//! A grpo step worked out again from what the run stored: its samples, and the weights before it.
//!
//! The newest checkpoint before the step gives the weights; the steps between are learned again from their
//! stored samples, without sampling. Everything a person or another program needs to check the arithmetic comes
//! out: for every token the log-probs of policy, sampler and reference, and the terms of the objective
//!
//! ```text
//! loss of a mini-batch = - sum over its tokens of weight ( surrogate mask - kl_scale kl_beta kl )
//! ```
//! The log-probs are the learner's (f32). The terms are worked out from them in f64 by the functions of
//! [`crate::loss`]; their sum agrees with the learner's own loss up to the rounding of f32.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use kernels::tch::Tensor;
use rollout::{Group, Sample, SegmentView, rollout_file};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::config::{GrpoConfig, RunConfig, StageConfig};
use crate::error::TrainerError;
use crate::learned_file::{self, LearnedSample};
use crate::learner::GrpoStep;
use crate::loss;
use crate::metrics::{self, StepMetrics};
use crate::run_folder::RunLayout;
use crate::session::Session;
use crate::stages::{self, grpo};

/// A step, worked out again.
#[derive(Debug, Serialize)]
pub struct Replay {
    /// Name of the run.
    pub run: String,
    /// Step of the run.
    pub step: u64,
    /// Its line in metrics.jsonl says which step of which stage it is.
    pub stage_index: usize,
    /// Step of the stage, from 1.
    pub step_in_stage: usize,
    /// The checkpoint that the weights come from.
    pub checkpoint: String,
    /// Half width of the clip interval.
    pub clip_epsilon: f64,
    /// Strength of the KL term.
    pub kl_beta: f64,
    /// Off-policy sequence mask, nats a token.
    pub off_policy_delta: Option<f64>,
    /// Loss of each mini-batch, as the learner computed it.
    pub losses: Vec<f64>,
    /// The same, summed up from the terms below.
    pub losses_of_terms: Vec<f64>,
    /// Loss in the step's line of metrics.jsonl: the mean over mini-batches.
    pub recorded_loss: Option<f64>,
    /// Largest difference between a log-prob here and the one that the run stored; `None` where it stored none.
    pub largest_difference: Option<f64>,
    /// Every sample that was trained, in that order.
    pub samples: Vec<ReplayedSample>,
}

/// A sample with the terms of each of its tokens; the lists have one entry a token.
#[derive(Debug, Serialize)]
pub struct ReplayedSample {
    /// Its prompt.
    pub prompt_id: u64,
    /// Its index within the group.
    pub sample_index: usize,
    /// Which of its segments, from 0: each further message of a user begins one.
    pub segment: usize,
    /// Which of the step's optimizer steps trained it.
    pub mini_batch: usize,
    /// Versions between the policy that drew its first token and the one that was trained.
    pub policy_age: u64,
    /// Reward.
    pub reward: Option<f64>,
    /// Reward minus the group's mean.
    pub advantage: f64,
    /// Strength of its KL term relative to `kl_beta`.
    pub kl_scale: f64,
    /// mean_t(sampler_logprob - logprob), nats a token.
    pub drift: f64,
    /// 0 where the off-policy mask removed the sample from the surrogate, else 1.
    pub mask: u8,
    /// Share of each of its tokens in the objective.
    pub weight: f64,
    /// Token ids: those that were drawn.
    pub tokens: Vec<u32>,
    /// Where each of them is in the segment's completion.
    pub positions: Vec<usize>,
    /// Tokens between them that tools or the template gave; they carry no loss.
    pub num_given: usize,
    /// Log-prob under the policy being trained; f32 values, written out in full.
    pub logprobs: Vec<f64>,
    /// Log-prob at sampling time.
    pub sampler_logprobs: Vec<f64>,
    /// Log-prob under the frozen reference.
    pub ref_logprobs: Option<Vec<f64>>,
    /// exp(logprob - sampler_logprob).
    pub ratio: Vec<f64>,
    /// min(ratio A, clip(ratio) A).
    pub surrogate: Vec<f64>,
    /// ratio (exp(d) - d - 1), d = ref_logprob - logprob; 0 without a reference.
    pub kl: Vec<f64>,
}

/// Works out step `step` of the run at `layout` again. Reads only.
///
/// # Errors
/// A step of another kind of stage, or files that a replay needs and that are gone or damaged.
pub fn replay(config: &RunConfig, layout: &RunLayout, step: u64) -> Result<Replay, TrainerError> {
    let lines = metrics::read(&layout.metrics_path()).map_err(|source| TrainerError::Io {
        path: layout.metrics_path(),
        source,
    })?;
    let (line, stage) = grpo_step(config, &lines, step)?;
    let checkpoint = checkpoint_before(config, layout, line)?;
    let stop = AtomicBool::new(false);
    let mut session = Session::new(config, layout, &stop)?;
    session.restore(&checkpoint)?;
    stages::prepare(&mut session, &config.stages[line.stage_index]);
    if session.state.step_in_stage == 0 {
        session.begin_stage(&config.stages[line.stage_index])?;
    }
    loop {
        let number = session.state.global_step + 1;
        let file = rollout_file::read(&layout.rollout_path(number))?;
        let learned = grpo::learn(&mut session, stage, &file.groups)?;
        session.state.global_step = number;
        session.state.step_in_stage += 1;
        if number == step {
            return result(
                config,
                layout,
                line,
                stage,
                &checkpoint,
                &file.groups,
                &learned,
            );
        }
        tracing::info!("step {number} learned again");
    }
}

/// The line of a grpo step, and its stage.
fn grpo_step<'a>(
    config: &'a RunConfig,
    lines: &'a [StepMetrics],
    step: u64,
) -> Result<(&'a StepMetrics, &'a GrpoConfig), TrainerError> {
    let refuse = |problem: String| TrainerError::NotReplayable { step, problem };
    let of_grpo = |line: &&StepMetrics| line.stage == "grpo" && line.step > 0;
    let line = lines
        .iter()
        .find(|line| line.global_step == step && line.step > 0);
    let Some(line) = line.filter(|line| of_grpo(line)) else {
        let mut steps = lines.iter().filter(of_grpo).map(|line| line.global_step);
        return Err(refuse(match (steps.next(), steps.next_back(), line) {
            (Some(first), last, None) => format!(
                "metrics.jsonl has no such step; those of grpo are {first} to {}",
                last.unwrap_or(first)
            ),
            (Some(first), last, Some(line)) => format!(
                "it is a step of {}; those of grpo are {first} to {}",
                line.stage,
                last.unwrap_or(first)
            ),
            (None, ..) => "the run has made no step of a grpo stage yet".to_string(),
        }));
    };
    match config.stages.get(line.stage_index) {
        Some(StageConfig::Grpo(stage)) => Ok((line, stage)),
        _ => Err(refuse(format!(
            "metrics.jsonl and config.ron disagree about stage {}",
            line.stage_index
        ))),
    }
}

/// The newest checkpoint from which the step can be reached by learning alone.
fn checkpoint_before(
    config: &RunConfig,
    layout: &RunLayout,
    line: &StepMetrics,
) -> Result<Checkpoint, TrainerError> {
    let checkpoints = Checkpoints::new(&layout.checkpoints_path(), config.checkpoints.keep);
    let found = checkpoints.newest_until(line.global_step - 1)?;
    if let Some(checkpoint) = found.filter(|found| found.state.stage == line.stage_index) {
        return Ok(checkpoint);
    }
    let mut oldest = checkpoints
        .verify_all()?
        .into_iter()
        .filter_map(|(_, found)| found.ok());
    let oldest = oldest.find(|found| found.state.stage == line.stage_index);
    let reach = match oldest {
        Some(oldest) => format!(
            "the steps after {} can be replayed",
            oldest.state.global_step
        ),
        None => "no step of that stage can be replayed".to_string(),
    };
    Err(TrainerError::NotReplayable {
        step: line.global_step,
        problem: format!(
            "no intact checkpoint of its stage from before it is left (checkpoints.keep is {}); {reach}. Runs with \
             a larger checkpoints.keep can be replayed further back",
            config.checkpoints.keep
        ),
    })
}

fn result(
    config: &RunConfig,
    layout: &RunLayout,
    line: &StepMetrics,
    stage: &GrpoConfig,
    checkpoint: &Checkpoint,
    groups: &[Group],
    learned: &GrpoStep,
) -> Result<Replay, TrainerError> {
    let mut drawn = BTreeMap::new();
    for group in groups {
        for sample in &group.samples {
            for segment in sample.segments(&group.prompt) {
                let key = (group.prompt.id, sample.index, segment.number);
                drawn.insert(key, (sample, segment));
            }
        }
    }
    let samples: Vec<ReplayedSample> = learned
        .samples
        .iter()
        .map(|sample| {
            replayed(
                sample,
                drawn[&(sample.prompt_id, sample.sample_index, sample.segment)],
                stage,
            )
        })
        .collect();
    let path = layout.learned_path(line.global_step);
    let largest_difference = match path.exists() {
        true => Some(largest_difference(
            &learned_file::read(&path)?.1,
            &learned.samples,
        )),
        false => None,
    };
    let folder = checkpoint.path.file_name().unwrap_or_default();
    Ok(Replay {
        run: config.name.clone(),
        step: line.global_step,
        stage_index: line.stage_index,
        step_in_stage: line.step,
        checkpoint: folder.to_string_lossy().into_owned(),
        clip_epsilon: stage.clip_epsilon,
        kl_beta: stage.kl_beta,
        off_policy_delta: stage.off_policy_delta,
        losses: learned.losses.clone(),
        losses_of_terms: losses_of_terms(&samples, learned.losses.len(), stage.kl_beta),
        recorded_loss: line.loss,
        largest_difference,
        samples,
    })
}

fn replayed(
    learned: &LearnedSample,
    (drawn, segment): (&Sample, SegmentView),
    stage: &GrpoConfig,
) -> ReplayedSample {
    let wide = |numbers: &[f32]| -> Vec<f64> { numbers.iter().map(|&n| f64::from(n)).collect() };
    let ref_logprobs = learned.ref_logprobs.as_deref().map(wide);
    let sampled: Vec<usize> = segment.sampled().collect();
    let sampler_logprobs: Vec<f64> = sampled
        .iter()
        .map(|&t| f64::from(segment.sampler_logprobs[t]))
        .collect();
    let [logprobs, old] =
        [&wide(&learned.logprobs), &sampler_logprobs].map(|x| Tensor::from_slice(x));
    let ratio = loss::importance_ratio(&logprobs, &old);
    let advantages = ratio.ones_like() * learned.advantage;
    let surrogate = loss::clipped_surrogate(&ratio, &advantages, stage.clip_epsilon);
    let kl = match &ref_logprobs {
        Some(reference) => loss::unbiased_kl(&logprobs, &old, &Tensor::from_slice(reference)),
        None => ratio.zeros_like(),
    };
    let numbers = |tensor: Tensor| Vec::<f64>::try_from(tensor).expect("a row of f64");
    ReplayedSample {
        prompt_id: learned.prompt_id,
        sample_index: learned.sample_index,
        segment: learned.segment,
        mini_batch: learned.mini_batch,
        policy_age: learned.policy_age,
        reward: drawn.reward(),
        advantage: learned.advantage,
        kl_scale: learned.kl_scale,
        drift: learned.drift,
        mask: u8::from(!learned.is_masked),
        weight: learned.token_weight,
        tokens: sampled.iter().map(|&t| segment.tokens[t]).collect(),
        positions: sampled,
        num_given: segment.tokens.len() - segment.num_sampled(),
        logprobs: numbers(logprobs),
        sampler_logprobs,
        ref_logprobs,
        ratio: numbers(ratio),
        surrogate: numbers(surrogate),
        kl: numbers(kl),
    }
}

/// The loss of each mini-batch as the sum of its tokens' terms.
fn losses_of_terms(samples: &[ReplayedSample], num_mini_batches: usize, kl_beta: f64) -> Vec<f64> {
    let mut losses = vec![0.0; num_mini_batches];
    for sample in samples {
        let terms = sample.surrogate.iter().zip(&sample.kl);
        let terms = terms.map(|(surrogate, kl)| {
            // A masked ratio may be infinite: it must not reach the sum as 0 times infinity.
            let surrogate = if sample.mask == 1 { *surrogate } else { 0.0 };
            surrogate - sample.kl_scale * kl_beta * kl
        });
        losses[sample.mini_batch] -= sample.weight * terms.sum::<f64>();
    }
    losses
}

/// Largest difference of a log-prob; infinite where the two don't hold the same samples.
fn largest_difference(stored: &[LearnedSample], found: &[LearnedSample]) -> f64 {
    let key = |sample: &LearnedSample| (sample.prompt_id, sample.sample_index, sample.segment);
    if !stored.iter().map(key).eq(found.iter().map(key)) {
        return f64::INFINITY;
    }
    let numbers = |samples: &[LearnedSample]| -> Vec<f32> {
        let all = samples
            .iter()
            .flat_map(|s| s.logprobs.iter().chain(s.ref_logprobs.iter().flatten()));
        all.copied().collect()
    };
    let (stored, found) = (numbers(stored), numbers(found));
    if stored.len() != found.len() {
        return f64::INFINITY;
    }
    let differences = stored
        .iter()
        .zip(&found)
        .map(|(a, b)| f64::from((a - b).abs()));
    differences.fold(0.0, f64::max)
}
