//! A GRPO step on random prompts: sampling, and learning from what was sampled, without a reference policy.
//!
//! Lengths are forced: no token ends a completion, every group counts. The host has read results of each
//! phase before its clock stops, so that a GPU has finished.

use std::path::Path;
use std::sync::Arc;

use environments::{Family, FamilyKey, Split, Tasks};
use kernels::profiler::range;
use rollout::{
    GenerationSettings, GenerationStats, GradingConfig, Group, GuardedGrader, MemorySettings,
    Prompt, SamplingConfig, Vocabulary,
};

use super::timing::{median_parts, secs};
use super::work::{self, Tokens, Work};
use super::workloads::{LEARNING_RATE, Subject, decode_steps, run_config};
use crate::config::{Decay, GrpoConfig, LearningRate, RunConfig};
use crate::error::TrainerError;
use crate::learner::{GrpoLearner, GrpoStep};
use crate::optimizer::AdamW;
use crate::step_profile::recorded;

/// The batch of a GRPO step, and how it is learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpoShape {
    /// Prompts.
    pub prompts: usize,
    /// Samples of each.
    pub group: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens of a completion.
    pub new_tokens: usize,
    /// Tokens forwarded at once in learning.
    pub micro_batch_tokens: usize,
    /// Compute each layer again in the backward pass.
    pub activation_checkpointing: bool,
}

impl Default for GrpoShape {
    /// A step of some seconds on two cores.
    fn default() -> GrpoShape {
        GrpoShape {
            prompts: 8,
            group: 8,
            prompt_tokens: 30,
            new_tokens: 24,
            micro_batch_tokens: 2048,
            activation_checkpointing: false,
        }
    }
}

impl GrpoShape {
    /// Samples of a step.
    pub fn samples(&self) -> usize {
        self.prompts * self.group
    }

    /// Tokens sampled in a step.
    pub fn completion_tokens(&self) -> usize {
        self.samples() * self.new_tokens
    }

    /// Prompt and completion of every sample: what an implementation forwards that does not share the
    /// prompt within a group.
    pub fn sequence_tokens(&self) -> usize {
        self.samples() * (self.prompt_tokens + self.new_tokens)
    }
}

/// Seconds of the parts of a rollout.
#[derive(Clone, Copy, Debug, Default)]
pub struct RolloutSecs {
    /// Forward passes of the prompts, and the draws of first tokens.
    pub prefill: f64,
    /// Decode steps with their draws.
    pub decode: f64,
    /// Requests, grading.
    pub other: f64,
}

impl RolloutSecs {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.prefill + self.decode + self.other
    }

    fn of([prefill, decode, other]: [f64; 3]) -> RolloutSecs {
        RolloutSecs {
            prefill,
            decode,
            other,
        }
    }
}

/// A step as measured: seconds of the median run, figures of the last.
#[derive(Debug)]
pub struct MeasuredStep {
    /// Sampling.
    pub rollout: RolloutSecs,
    /// Learning: packing, forward and backward, AdamW.
    pub learning_secs: f64,
    /// Tokens forwarded in learning: a group's prompt once for each micro-batch that it is in.
    pub forwarded_tokens: usize,
    /// |learner - sampler| log-prob before the update, nats: mean and largest.
    pub logprob_gap: [f64; 2],
}

/// What a GRPO step needs.
#[derive(Clone, Copy, Debug)]
pub struct GrpoWork {
    /// Prompts, each once.
    pub prefill: Work,
    /// Decode steps; the first token comes from the prefill.
    pub decode: Work,
    /// Learning; a group's prompt is trained on once, the last token of a sample never forwarded.
    pub learning: Work,
}

impl Subject<'_> {
    /// Sampling and grading of the step's groups.
    ///
    /// # Errors
    /// A prompt that doesn't fit, or logits that are not finite.
    pub fn rollout(&self) -> Result<RolloutSecs, TrainerError> {
        let bench = GrpoBench::new(self);
        median_parts(self.timing, || Ok(bench.sample()?.1)).map(RolloutSecs::of)
    }

    /// A whole step.
    ///
    /// # Errors
    /// Sampling, or gradients that are not finite.
    pub fn step(&self) -> Result<MeasuredStep, TrainerError> {
        let bench = GrpoBench::new(self);
        let mut optimizer = AdamW::new(&bench.config.optimizer);
        let mut last = GrpoStep::default();
        let [prefill, decode, other, learning_secs] = median_parts(self.timing, || {
            let (step, secs) = bench.step(&mut optimizer)?;
            last = step;
            Ok::<_, TrainerError>(secs)
        })?;
        Ok(MeasuredStep {
            rollout: RolloutSecs::of([prefill, decode, other]),
            learning_secs,
            forwarded_tokens: last.num_tokens,
            logprob_gap: [last.logprob_gap_mean, last.logprob_gap_max],
        })
    }

    /// Writes the timeline of the second of two steps to `path`.
    ///
    /// # Errors
    /// As [`Subject::step`], or a file that can't be written.
    pub fn profiled_step(&self, path: &Path) -> Result<(), TrainerError> {
        let bench = GrpoBench::new(self);
        let mut optimizer = AdamW::new(&bench.config.optimizer);
        bench.step(&mut optimizer)?;
        recorded(path, self.policy.device(), || {
            let _step = range("step");
            bench.step(&mut optimizer).map(|_| ())
        })
    }
}

/// What [`Subject::step`] needs.
pub fn grpo_work(subject: &Subject) -> GrpoWork {
    let shape = subject.shape;
    let (config, kind) = (subject.config(), subject.policy.kind());
    let prompts = (0..shape.prompts).flat_map(|_| 0..shape.prompt_tokens);
    let prompts = Tokens::at(prompts, shape.prompts, config, subject.attention);
    let branch = || shape.prompt_tokens..shape.prompt_tokens + shape.new_tokens - 1;
    let group = || (0..shape.prompt_tokens).chain((0..shape.group).flat_map(move |_| branch()));
    let positions = (0..shape.prompts).flat_map(|_| group());
    let predicted = shape.completion_tokens();
    let tokens = Tokens::at(positions, predicted, config, subject.attention);
    GrpoWork {
        prefill: work::forward(config, kind, prompts),
        decode: decode_steps(
            subject,
            shape.samples(),
            shape.prompt_tokens,
            shape.new_tokens - 1,
        ),
        learning: work::training_step(config, kind, tokens),
    }
}

/// A subject with what its steps share.
struct GrpoBench<'a> {
    subject: &'a Subject<'a>,
    config: RunConfig,
    stage: GrpoConfig,
    settings: GenerationSettings,
    grader: GuardedGrader,
}

impl<'a> GrpoBench<'a> {
    fn new(subject: &'a Subject<'a>) -> GrpoBench<'a> {
        let shape = &subject.shape;
        let settings = GenerationSettings {
            sampling: SamplingConfig {
                max_new_tokens: shape.new_tokens,
                ..SamplingConfig::default()
            },
            attention: subject.attention,
            stop_tokens: Vec::new(),
            vocabulary: Vocabulary::all(subject.config().vocab_size),
            seed: 0,
            policy_version: 0,
            max_batch_sequences: shape.samples(),
            memory: MemorySettings::default(),
            record_selection: false,
        };
        GrpoBench {
            subject,
            config: run_config(shape),
            stage: stage_config(shape),
            settings,
            grader: GuardedGrader::new(Arc::new(Tasks::default()), &GradingConfig::default()),
        }
    }

    /// Graded groups, and seconds of prefill, decode and the rest.
    fn sample(&self) -> Result<(Vec<Group>, [f64; 3]), TrainerError> {
        let shape = &self.subject.shape;
        let prompts: Vec<Prompt> = (0..shape.prompts as u64)
            .map(|id| self.prompt(id))
            .collect();
        let mut sampled = None;
        let total = secs(|| {
            let _rollout = range("rollout");
            sampled = Some(rollout::sample_groups(
                self.subject.policy,
                prompts,
                shape.group,
                &self.settings,
                rollout::Judge {
                    decode: &|_| String::new(),
                    grader: &self.grader,
                    episodes: None,
                    rewards: None,
                },
                &mut |_, _| {},
            ));
        });
        let (groups, stats) = sampled.expect("assigned above")?;
        let GenerationStats {
            prefill_secs,
            decode_secs,
            ..
        } = stats;
        let other = total - prefill_secs - decode_secs;
        Ok((groups, [prefill_secs, decode_secs, other]))
    }

    /// A step, with seconds of prefill, decode, the rest of the rollout, and learning.
    fn step(&self, optimizer: &mut AdamW) -> Result<(GrpoStep, [f64; 4]), TrainerError> {
        let (groups, [prefill, decode, other]) = self.sample()?;
        let learner = GrpoLearner {
            config: &self.config,
            stage: &self.stage,
            attention: self.subject.attention,
            policy: self.subject.policy,
            reference: None,
            policy_version: 0,
        };
        // Random text earns nothing; these advantages let every group be learnt from.
        let signs = [Some(0.5), Some(-0.5)].into_iter().cycle();
        let advantages = vec![signs.take(groups[0].samples.len()).collect(); groups.len()];
        let mut taken = Ok(GrpoStep::default());
        let learning = secs(|| {
            taken = learner.step(optimizer, &groups, &advantages, |_| LEARNING_RATE);
            // The update itself: nothing reads it here.
            kernels::runtime::synchronize(self.subject.policy.device());
        });
        Ok((taken?, [prefill, decode, other, learning]))
    }

    fn prompt(&self, id: u64) -> Prompt {
        Prompt {
            id,
            task: FamilyKey {
                family: Family::Sums,
                split: Split::Train,
                level: 1,
                seed: id,
            }
            .into(),
            question: String::new(),
            tokens: self
                .subject
                .random_tokens(id, self.subject.shape.prompt_tokens),
        }
    }
}

fn stage_config(shape: &GrpoShape) -> GrpoConfig {
    GrpoConfig {
        steps: 1,
        prompts_per_step: shape.prompts,
        group_size: shape.group,
        mini_batches: 1,
        learning_rate: LearningRate {
            peak: LEARNING_RATE,
            warmup_steps: 0,
            decay: Decay::Constant,
        },
        clip_epsilon: 0.2,
        kl_beta: 0.0,
        off_policy_delta: Some(0.1),
        keep_routing: true,
        keep_sampling_mask: true,
        train_indexer: false,
        max_invalid_share: 1.0,
        asynchronous: None,
    }
}
