//! Every knob of a run: [`RunConfig`], its defaults and their meaning.
//!
//! A run is described by one RON file ([`crate::config_file`] reads it). Unknown keys are errors.
//! [`RunConfig::validate`] rejects contradictions once, at the edge; later code trusts the values.

use environments::RewardConfig;
use model::{DsaConfig, ModelConfig};
use rollout::{CacheMemory, EpisodesConfig, GradingConfig, MemorySettings, SamplingConfig};
use serde::{Deserialize, Serialize};

pub use crate::environment_config::{EnvironmentConfig, TaskSource};

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Names the run folder, `runs/NAME`.
    pub name: String,
    /// Every random draw of the run derives from it.
    #[serde(default)]
    pub seed: u64,
    /// The starting policy.
    pub model: PolicyConfig,
    /// Where tasks come from; keys in `environment_config.rs`.
    pub environments: Vec<EnvironmentConfig>,
    /// System message of every prompt; `None` leaves the chat template's own default.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// How rollouts draw tokens.
    #[serde(default)]
    pub sampling: SamplingConfig,
    /// How long the grading of a sample may take.
    #[serde(default)]
    pub grading: GradingConfig,
    /// What completions of each domain are paid for beside the verdict on them.
    #[serde(default)]
    pub rewards: RewardConfig,
    /// How episodes of several turns are run.
    #[serde(default)]
    pub episodes: EpisodesConfig,
    /// Sequences decoded at once, at most.
    #[serde(default = "defaults::max_batch_sequences")]
    pub max_batch_sequences: usize,
    /// Memory for the keys and values of those sequences, at most: `auto`, `share(0.5)` of what is free when sampling
    /// starts, or `bytes(8000000000)`. Where it is short, sequences are taken out and run again later.
    #[serde(default)]
    pub cache_memory: CacheMemory,
    /// Tokens run through the model at once when samples start, at most: longer prompts go in parts. In between, live
    /// sequences decode a token each. Bounds the memory of activations and how long the others wait.
    #[serde(default = "defaults::max_prefill_tokens")]
    pub max_prefill_tokens: usize,
    /// Text for the stages that train on text.
    #[serde(default)]
    pub text: TextConfig,
    /// Stages in order.
    pub stages: Vec<StageConfig>,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Held-out evaluation.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoints: CheckpointConfig,
    /// Type of the forward and backward computation; master weights are always f32.
    #[serde(default)]
    pub compute: Compute,
    /// Tokens of one micro-batch, at most (one document more may not be split).
    #[serde(default = "defaults::micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Recompute each layer's activations in backward: less memory, a third more compute.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// CPU threads; 0 takes all cores.
    #[serde(default)]
    pub threads: usize,
}

impl RunConfig {
    /// What sampling may take.
    pub fn memory(&self) -> MemorySettings {
        MemorySettings {
            cache: self.cache_memory,
            max_prefill_tokens: self.max_prefill_tokens,
            ..MemorySettings::default()
        }
    }
}

/// The starting policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Weights.
    pub source: PolicySource,
    /// Turn a dense model into a mixture of experts.
    #[serde(default)]
    pub upcycle: Option<UpcycleConfig>,
    /// Attach a lightning indexer.
    #[serde(default)]
    pub dsa: Option<DsaConfig>,
    /// Search the source for weights that are NaN or infinite first, and refuse them; reads it twice.
    #[serde(default)]
    pub check_finite: bool,
}

impl PolicyConfig {
    /// What `source` holds, as it is.
    pub fn unchanged(source: PolicySource) -> PolicyConfig {
        PolicyConfig {
            source,
            upcycle: None,
            dsa: None,
            check_finite: false,
        }
    }
}

/// Where the starting weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PolicySource {
    /// A Hugging Face folder or a `.gguf` file.
    Path(String),
    /// Random weights of this shape, with a byte-level tokenizer (smoke runs and tests).
    Random(Box<ModelConfig>),
}

/// Dense to mixture of experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpcycleConfig {
    /// Experts per layer, each a copy of the dense feed-forward at the start.
    pub experts: usize,
    /// Experts chosen per token.
    pub top_k: usize,
}

/// Text of `indexer_warmup`, `sparse_training` and `sft`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum TextConfig {
    /// The environments' worked solutions, chat-encoded; for a row of a dataset without one, its answer.
    #[default]
    Solutions,
    /// Completions sampled from the policy, as it is at that step, on training prompts.
    PolicySamples,
    /// Files: plain text (a document a blank-line-separated block), `.jsonl` (key `text`), `.parquet` (column `text`).
    Files(Vec<String>),
}

/// One stage of the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StageConfig {
    /// Dense attention, only the indexer trains: KL to the head-summed attention (report 2.1.1).
    #[serde(rename = "indexer_warmup")]
    IndexerWarmup(TextStageConfig),
    /// Sparse attention, everything trains; the indexer by its own KL on the selected set.
    #[serde(rename = "sparse_training")]
    SparseTraining(TextStageConfig),
    /// Cold start: cross-entropy on the completions of worked solutions.
    #[serde(rename = "sft")]
    Sft(TextStageConfig),
    /// Group relative policy optimisation with the report's stabilisers.
    #[serde(rename = "grpo")]
    Grpo(GrpoConfig),
}

impl StageConfig {
    /// Name of the kind of stage, as in the RON file.
    pub fn name(&self) -> &'static str {
        match self {
            StageConfig::IndexerWarmup(_) => "indexer_warmup",
            StageConfig::SparseTraining(_) => "sparse_training",
            StageConfig::Sft(_) => "sft",
            StageConfig::Grpo(_) => "grpo",
        }
    }

    /// Steps of the stage.
    pub fn steps(&self) -> usize {
        match self {
            StageConfig::IndexerWarmup(stage)
            | StageConfig::SparseTraining(stage)
            | StageConfig::Sft(stage) => stage.steps,
            StageConfig::Grpo(stage) => stage.steps,
        }
    }
}

/// Knobs of a stage that trains on text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextStageConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Documents a step.
    #[serde(default = "defaults::documents_per_step")]
    pub documents_per_step: usize,
    /// Learning rate.
    pub learning_rate: LearningRate,
    /// Overrides the run's `text` for this stage.
    #[serde(default)]
    pub text: Option<TextConfig>,
}

/// Learning rate over a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Highest value.
    pub peak: f64,
    /// Steps of linear rise from 0.
    #[serde(default)]
    pub warmup_steps: usize,
    /// What follows.
    #[serde(default)]
    pub decay: Decay,
}

/// Shape of the learning rate after its warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// Stays at the peak.
    #[default]
    Constant,
    /// Half a cosine from the peak to this share of it at the last step.
    Cosine {
        /// Final learning rate over peak.
        floor: f64,
    },
}

/// Knobs of the `grpo` stage. Where each default comes from: docs/algorithm.md, "Options".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpoConfig {
    /// Rollouts (each followed by `mini_batches` optimizer steps).
    pub steps: usize,
    /// Prompts a rollout.
    pub prompts_per_step: usize,
    /// Samples a prompt, G.
    pub group_size: usize,
    /// Optimizer steps per rollout, over disjoint sets of whole groups.
    #[serde(default = "defaults::one")]
    pub mini_batches: usize,
    /// Learning rate, counted in optimizer steps.
    pub learning_rate: LearningRate,
    /// Ratio clip, symmetric: min(r A, clip(r, 1 - eps, 1 + eps) A) (report, equation 5).
    #[serde(default = "defaults::clip_epsilon")]
    pub clip_epsilon: f64,
    /// Strength of the unbiased KL (report, equation 7) to the policy as it was when the stage began; 0 drops the reference model.
    #[serde(default = "defaults::kl_beta")]
    pub kl_beta: f64,
    /// Off-policy sequence mask (report, equation 9), nats a token; `None` turns it off.
    #[serde(default = "defaults::off_policy_delta")]
    pub off_policy_delta: Option<f64>,
    /// Force the recorded experts in training (report 3.1, Keep Routing).
    #[serde(default = "defaults::yes")]
    pub keep_routing: bool,
    /// Restrict training log-probs to the tokens that truncation kept (report 3.1, Keep Sampling Mask).
    #[serde(default = "defaults::yes")]
    pub keep_sampling_mask: bool,
    /// Keep training the indexer by its own KL; otherwise it is frozen in RL.
    #[serde(default)]
    pub train_indexer: bool,
    /// Share of a rollout's samples that may fail through no fault of the policy; above it the run stops.
    #[serde(default = "defaults::max_invalid_share")]
    pub max_invalid_share: f64,
    /// Sample the next steps' prompts while this step's are trained on; `None`: each step waits for its own.
    #[serde(default)]
    pub asynchronous: Option<AsynchronousConfig>,
}

/// Rollout beside learning, in one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AsynchronousConfig {
    /// Steps by which sampling may run ahead, at least 1: a sample is trained at most so many steps after the
    /// policy that began it.
    pub max_policy_age: usize,
    /// CPU threads of the sampler; the learner has the others. 0 takes half.
    pub sampler_threads: usize,
}

impl Default for AsynchronousConfig {
    fn default() -> Self {
        AsynchronousConfig {
            max_policy_age: 1,
            sampler_threads: 0,
        }
    }
}

/// AdamW and gradient clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Decay of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay (matrices only).
    pub weight_decay: f64,
    /// Global gradient norm of the language model, at most.
    pub max_grad_norm: f64,
    /// Global gradient norm of the indexer, at most.
    pub max_indexer_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            betas: (0.9, 0.95),
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            max_indexer_grad_norm: 1.0,
        }
    }
}

/// Held-out evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Held-out prompts, one sample each.
    pub prompts: usize,
    /// Steps of the grpo stage between evaluations; 0 evaluates only at the stages' ends.
    pub every: usize,
    /// Sampling temperature.
    pub temperature: f64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        EvaluationConfig {
            prompts: 256,
            every: 0,
            temperature: 1.0,
        }
    }
}

/// Run checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints within a stage; the end of every stage is always saved. 0: only there.
    pub every: usize,
    /// Newest checkpoints kept.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig { every: 10, keep: 2 }
    }
}

/// Compute type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// bf16 where the hardware multiplies it fast (AMX, CUDA), else f32.
    #[default]
    Auto,
    /// bfloat16.
    Bf16,
    /// float32.
    F32,
}

mod defaults {
    pub(super) fn max_batch_sequences() -> usize {
        64
    }
    pub(super) fn max_prefill_tokens() -> usize {
        rollout::MemorySettings::default().max_prefill_tokens
    }
    pub(super) fn micro_batch_tokens() -> usize {
        2048
    }
    pub(super) fn documents_per_step() -> usize {
        16
    }
    pub(super) fn one() -> usize {
        1
    }
    pub(super) fn clip_epsilon() -> f64 {
        0.2
    }
    pub(super) fn kl_beta() -> f64 {
        1e-3
    }
    pub(super) fn off_policy_delta() -> Option<f64> {
        Some(0.1)
    }
    pub(super) fn max_invalid_share() -> f64 {
        0.1
    }
    pub(super) fn yes() -> bool {
        true
    }
}
