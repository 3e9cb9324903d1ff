//! What a run spends its time on, on random tokens: prefill, decode, training. GRPO is in [`super::grpo`].
//!
//! Each returns seconds. Results are read by the host before the clock stops, so that a GPU has
//! finished.

use kernels::tch::Tensor;
use model::{Attention, ForwardOptions, KvCache, ModelConfig, Routing, Transformer};
use rollout::sampler::sample_batch;
use rollout::{CacheMemory, GradingConfig, MemorySettings, SamplingConfig, Vocabulary, draws};

use super::ceilings::wait_for;
use super::grpo::GrpoShape;
use super::timing::{Timing, median_parts, secs};
use super::work::{self, Tokens, Work};
use crate::batch::TextDocument;
use crate::config::{
    CheckpointConfig, Compute, EvaluationConfig, OptimizerConfig, PolicyConfig, PolicySource,
    RunConfig, TextConfig,
};
use crate::error::TrainerError;
use crate::learner::{self, TextObjective};
use crate::optimizer::AdamW;

/// Tokens of the prefill.
pub const PREFILL_TOKENS: usize = 512;
/// Tokens that each sequence holds before decoding.
pub const DECODE_CONTEXT: usize = 64;
/// Tokens of a completion.
pub const NEW_TOKENS: usize = 24;
/// Documents of the training step and their tokens: 1024 together.
pub const TRAIN_DOCUMENTS: [usize; 2] = [8, 128];
/// Small enough that repeated steps leave the weights as they are for all that speed depends on.
pub(super) const LEARNING_RATE: f64 = 1e-7;

/// The policy to measure.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Policy.
    pub policy: &'a Transformer,
    /// Its attention.
    pub attention: Attention,
    /// How often to measure.
    pub timing: Timing,
    /// Batch and micro-batches of GRPO; micro-batches and checkpointing of the training step too.
    pub shape: GrpoShape,
}

impl Subject<'_> {
    pub(super) fn config(&self) -> &ModelConfig {
        self.policy.config()
    }

    fn inference(&self) -> ForwardOptions {
        ForwardOptions {
            routing: Routing::Record,
            attention: self.attention,
            ..ForwardOptions::inference()
        }
    }

    fn cache(&self, slots: usize, capacity: usize) -> KvCache {
        let policy = self.policy;
        KvCache::new(
            self.config(),
            slots,
            capacity,
            policy.kind(),
            policy.device(),
        )
    }

    /// A prompt of [`PREFILL_TOKENS`], to the logits of its next token.
    pub fn prefill(&self) -> f64 {
        let prompt = self.random_tokens(0, PREFILL_TOKENS);
        let mut cache = self.cache(1, PREFILL_TOKENS);
        let options = self.inference();
        self.median(|| {
            let output = self.policy.prefill(&mut cache, &[0], &[&prompt], &options);
            let last = output.hidden.narrow(0, PREFILL_TOKENS as i64 - 1, 1);
            wait_for(&self.policy.logits(&last));
        })
    }

    /// [`NEW_TOKENS`] for each of `batch` sequences, drawn with their log-probs.
    pub fn decode(&self, batch: usize) -> f64 {
        let prompt = self.random_tokens(1, DECODE_CONTEXT);
        let mut cache = self.cache(batch, DECODE_CONTEXT + NEW_TOKENS);
        let options = self.inference();
        self.policy.prefill(&mut cache, &[0], &[&prompt], &options);
        for slot in 1..batch {
            cache.share_slot(0, slot);
        }
        let sampling = SamplingConfig::default();
        let vocabulary = Vocabulary::all(self.config().vocab_size);
        let first = vec![i64::from(prompt[0]); batch];
        self.median(|| {
            (0..batch).for_each(|slot| cache.pages.truncate(slot, DECODE_CONTEXT));
            let mut tokens = first.clone();
            for position in 0..NEW_TOKENS as u64 {
                let input = Tensor::from_slice(&tokens).to_device(self.policy.device());
                let output = self.policy.decode(&mut cache, &input, &options);
                let logits = self.policy.logits(&output.hidden);
                let draws: Vec<f64> = (0..batch as u64)
                    .map(|sample| draws::uniform(0, 0, sample, position))
                    .collect();
                tokens = sample_batch(&logits, &sampling, &draws, &vocabulary)
                    .iter()
                    .map(|token| i64::from(token.id))
                    .collect();
            }
        })
    }

    /// One step on packed text: forward, backward, AdamW.
    ///
    /// # Errors
    /// Gradients that are not finite.
    pub fn train(&self) -> Result<f64, TrainerError> {
        let objective = TextObjective {
            attention: self.attention,
            language_loss: true,
            indexer_loss: false,
        };
        self.train_on(TRAIN_DOCUMENTS, objective, &run_config(&self.shape))
    }

    /// One step on one document of `len` tokens, each layer computed again in the backward pass.
    ///
    /// # Errors
    /// Gradients that are not finite.
    pub fn train_document(
        &self,
        len: usize,
        objective: TextObjective,
    ) -> Result<f64, TrainerError> {
        let config = RunConfig {
            activation_checkpointing: true,
            micro_batch_tokens: len,
            ..run_config(&self.shape)
        };
        self.train_on([1, len], objective, &config)
    }

    /// Seconds of a step on `count` documents of `len` random tokens.
    fn train_on(
        &self,
        [count, len]: [usize; 2],
        objective: TextObjective,
        config: &RunConfig,
    ) -> Result<f64, TrainerError> {
        let documents: Vec<TextDocument> = (0..count as u64)
            .map(|index| TextDocument {
                given: Vec::new(),
                tokens: self.random_tokens(index, len),
                loss_from: 1,
            })
            .collect();
        let mut optimizer = AdamW::new(&config.optimizer);
        let [secs] = median_parts(self.timing, || {
            let mut taken = Ok(());
            let secs = secs(|| {
                taken = learner::text_step(
                    config,
                    self.policy,
                    &mut optimizer,
                    &documents,
                    objective,
                    LEARNING_RATE,
                )
                .map(|_| ());
            });
            taken.map(|()| [secs])
        })?;
        Ok(secs)
    }

    pub(super) fn random_tokens(&self, document: u64, len: usize) -> Vec<u32> {
        let vocab = self.config().vocab_size as f64;
        (0..len as u64)
            .map(|position| (draws::uniform(1, document, 0, position) * vocab) as u32)
            .collect()
    }

    fn median(&self, mut work: impl FnMut()) -> f64 {
        let timed = || Ok::<_, std::convert::Infallible>([secs(&mut work)]);
        let Ok([secs]) = median_parts(self.timing, timed);
        secs
    }
}

/// What [`Subject::prefill`] needs.
pub fn prefill_work(subject: &Subject) -> Work {
    let kind = subject.policy.kind();
    work::prefill(subject.config(), kind, subject.attention, PREFILL_TOKENS)
}

/// What [`Subject::decode`] needs.
pub fn decode_work(subject: &Subject, batch: usize) -> Work {
    decode_steps(subject, batch, DECODE_CONTEXT, NEW_TOKENS)
}

/// What [`Subject::train`] needs.
pub fn train_work(subject: &Subject) -> Work {
    let [count, len] = TRAIN_DOCUMENTS;
    let positions = (0..count).flat_map(|_| 0..len);
    let (config, predicted) = (subject.config(), count * (len - 1));
    let tokens = Tokens::at(positions, predicted, config, subject.attention);
    work::training_step(config, subject.policy.kind(), tokens)
}

pub(super) fn decode_steps(subject: &Subject, batch: usize, context: usize, steps: usize) -> Work {
    let (config, kind) = (subject.config(), subject.policy.kind());
    (context..context + steps)
        .map(|held| work::decode(config, kind, subject.attention, batch, held))
        .sum()
}

/// The defaults of a run; what names files or stages is not read here.
pub(super) fn run_config(shape: &GrpoShape) -> RunConfig {
    RunConfig {
        name: "bench".to_string(),
        seed: 0,
        model: PolicyConfig::unchanged(PolicySource::Path(String::new())),
        environments: Vec::new(),
        system_prompt: None,
        sampling: SamplingConfig::default(),
        grading: GradingConfig::default(),
        rewards: environments::RewardConfig::default(),
        episodes: rollout::EpisodesConfig::default(),
        max_batch_sequences: 64,
        cache_memory: CacheMemory::Auto,
        max_prefill_tokens: MemorySettings::default().max_prefill_tokens,
        text: TextConfig::Solutions,
        stages: Vec::new(),
        optimizer: OptimizerConfig::default(),
        evaluation: EvaluationConfig::default(),
        checkpoints: CheckpointConfig::default(),
        compute: Compute::Auto,
        micro_batch_tokens: shape.micro_batch_tokens,
        activation_checkpointing: shape.activation_checkpointing,
        threads: 0,
    }
}
