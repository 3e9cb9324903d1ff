//! The learner: one optimizer step from text or from graded groups.
//!
//! Text: mean cross-entropy over the step's targets and, apart from it, the indexer's KL averaged
//! over the step's tokens and summed over layers. Groups: the objective of [`crate::loss`] under
//! replayed routing and kept tokens. Micro-batches add up exactly: their weights are those of the
//! whole step.

mod readback;

use std::ops::Range;
use std::time::Instant;

use kernels::profiler::range;
use kernels::tch::{self, Kind, Tensor};
use model::{Attention, ForwardOptions, Routing, Selection, Transformer};
use rollout::Group;

use self::readback::{Numbers, Place, Readback};
use crate::batch::{
    self, MicroBatch, PackOptions, Packing, RoutingShape, SampleSource, TextDocument,
};
use crate::config::{GrpoConfig, RunConfig};
use crate::error::TrainerError;
use crate::learned_file::LearnedSample;
use crate::loss::{GrpoLossInput, GrpoLossParams, GrpoStats, grpo_loss, sft_loss};
use crate::optimizer::{AdamW, StepNorms};

/// What a text stage trains.
#[derive(Clone, Copy, Debug)]
pub struct TextObjective {
    /// Attention of the main model.
    pub attention: Attention,
    /// Cross-entropy on the targets.
    pub language_loss: bool,
    /// The indexer's KL.
    pub indexer_loss: bool,
}

/// Figures of a text step.
#[derive(Debug, Default)]
pub struct TextStep {
    /// Cross-entropy, nats a target; `None` when it is not computed.
    pub loss: Option<f64>,
    /// Indexer KL, nats a token, mean over layers.
    pub indexer_kl: Option<f64>,
    /// Gradient norms before clipping.
    pub norms: StepNorms,
    /// Keys attended over keys visible.
    pub key_share: f64,
    /// Tokens forwarded.
    pub num_tokens: usize,
}

/// One optimizer step on text documents.
///
/// # Errors
/// Documents that can't be packed, or gradients that are not finite.
pub fn text_step(
    config: &RunConfig,
    policy: &Transformer,
    optimizer: &mut AdamW,
    documents: &[TextDocument],
    objective: TextObjective,
    learning_rate: f64,
) -> Result<TextStep, TrainerError> {
    let _learn = range("learn");
    let batches = batch::pack_text(documents, config.micro_batch_tokens, policy.device())?;
    let num_tokens: i64 = batches.iter().map(|batch| batch.input.num_tokens()).sum();
    let num_layers = policy.config().num_hidden_layers as f64;
    let mut step = TextStep {
        num_tokens: num_tokens as usize,
        ..TextStep::default()
    };
    let (mut readback, mut losses_of_text, mut indexer_kls) = (Readback::default(), vec![], vec![]);
    for batch in &batches {
        let options = ForwardOptions {
            attention: objective.attention,
            indexer_loss: objective.indexer_loss,
            activation_checkpointing: config.activation_checkpointing && objective.language_loss,
            ..ForwardOptions::inference()
        };
        let output = policy.forward_packed(&batch.input, &options);
        let mut losses = Vec::new();
        if objective.language_loss {
            let logprobs = policy.token_logprobs(
                &output.hidden,
                &batch.target_rows,
                &batch.targets,
                1.0,
                None,
            );
            let loss = sft_loss(&logprobs, &batch.token_weights);
            losses_of_text.push(readback.push(&loss));
            losses.push(loss.to_kind(Kind::Float));
        }
        if !output.indexer_losses.is_empty() {
            let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float) / num_tokens as f64;
            indexer_kls.push(readback.push(&kl));
            losses.push(kl);
        }
        step.key_share += output.key_share * batch.input.num_tokens() as f64 / num_tokens as f64;
        Tensor::stack(&losses, 0).sum(Kind::Float).backward();
    }
    let numbers = readback.read();
    for loss in &losses_of_text {
        *step.loss.get_or_insert(0.0) += numbers.one(loss);
    }
    for kl in &indexer_kls {
        *step.indexer_kl.get_or_insert(0.0) += numbers.one(kl) / num_layers;
    }
    let _optimizer = range("optimizer");
    policy.settle_gradients();
    step.norms = optimizer.step(&policy.parameters(), learning_rate)?;
    policy.publish();
    Ok(step)
}

/// What the learner needs to know about a grpo stage.
#[derive(Debug)]
pub struct GrpoLearner<'a> {
    /// Run config.
    pub config: &'a RunConfig,
    /// Stage config.
    pub stage: &'a GrpoConfig,
    /// Attention of the main model.
    pub attention: Attention,
    /// Policy being trained.
    pub policy: &'a Transformer,
    /// Frozen reference.
    pub reference: Option<&'a Transformer>,
    /// Version of the policy before the first update.
    pub policy_version: u64,
}

/// Figures of the optimizer steps on one rollout.
#[derive(Debug, Default)]
pub struct GrpoStep {
    /// Loss of each mini-batch.
    pub losses: Vec<f64>,
    /// Objective's own figures, over all mini-batches.
    pub stats: GrpoStats,
    /// Every sample that was trained on, in that order.
    pub samples: Vec<LearnedSample>,
    /// Gradient norms of the last mini-batch, before clipping.
    pub norms: StepNorms,
    /// |trainer - sampler| log-prob before the first update: mean, nats.
    pub logprob_gap_mean: f64,
    /// The same: largest.
    pub logprob_gap_max: f64,
    /// Share of recorded experts that free routing would choose now.
    pub routing_agreement_free: Option<f64>,
    /// Share of recorded experts that training did use.
    pub routing_agreement_replay: Option<f64>,
    /// Keys attended over keys visible.
    pub key_share: f64,
    /// Indexer KL, nats a token, mean over layers, where it trains.
    pub indexer_kl: Option<f64>,
    /// Tokens forwarded by the policy.
    pub num_tokens: usize,
    /// Optimizer steps taken.
    pub optimizer_steps: usize,
    /// Learning rate of the last of them.
    pub learning_rate: Option<f64>,
    /// Seconds of the reference's forward passes, where there is one.
    pub reference_secs: Option<f64>,
}

impl GrpoStep {
    /// Mean loss over mini-batches; 0 where no group had a learning signal.
    pub fn mean_loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }
}

impl GrpoLearner<'_> {
    /// The optimizer steps on one rollout: `mini_batches` disjoint sets of whole groups, in order.
    /// `learning_rate(i)` is that of mini-batch i.
    ///
    /// # Errors
    /// A sample without the payload that replay needs, or gradients that are not finite.
    pub fn step(
        &self,
        optimizer: &mut AdamW,
        groups: &[Group],
        advantages: &[Vec<Option<f64>>],
        learning_rate: impl Fn(usize) -> f64,
    ) -> Result<GrpoStep, TrainerError> {
        let _learn = range("learn");
        let mut step = GrpoStep::default();
        let per_mini_batch = groups.len().div_ceil(self.stage.mini_batches);
        let mini_batches = groups
            .chunks(per_mini_batch)
            .zip(advantages.chunks(per_mini_batch));
        for (index, (groups, advantages)) in mini_batches.enumerate() {
            let options = self.pack_options();
            let packing = Packing::new(groups, advantages, &options)?;
            let num_tokens = packing.num_tokens();
            if num_tokens == 0 {
                continue;
            }
            step.losses.push(0.0);
            let mut readback = Readback::default();
            let learned: Vec<LearnedBatch> = packing
                .batches()
                .map(|batch| self.accumulate(batch, num_tokens, &mut readback, &mut step))
                .collect();
            let numbers = readback.read();
            for learned in &learned {
                self.record(learned, &numbers, &mut step);
            }
            step.num_tokens += num_tokens;
            let rate = learning_rate(index);
            let _optimizer = range("optimizer");
            self.policy.settle_gradients();
            step.norms = optimizer.step(&self.policy.parameters(), rate)?;
            step.learning_rate = Some(rate);
            step.optimizer_steps += 1;
            self.policy.publish();
        }
        let taken = step.optimizer_steps.max(1) as f64;
        step.key_share /= step.num_tokens.max(1) as f64;
        let per_token = |sum: f64| sum / step.num_tokens.max(1) as f64;
        step.routing_agreement_free = step.routing_agreement_free.map(per_token);
        step.routing_agreement_replay = step.routing_agreement_replay.map(per_token);
        step.indexer_kl = step.indexer_kl.map(|sum| sum / taken);
        Ok(step)
    }

    fn pack_options(&self) -> PackOptions<'_> {
        let moe = self
            .policy
            .config()
            .moe
            .as_ref()
            .filter(|_| self.stage.keep_routing);
        PackOptions {
            micro_batch_tokens: self.config.micro_batch_tokens,
            keep_routing: moe.map(|moe| RoutingShape {
                num_layers: self.policy.config().num_moe_layers(),
                top_k: moe.num_experts_per_tok,
                num_experts: moe.num_experts,
            }),
            // Sampler and trainer select alike, and the indexer may train.
            keep_selection: None,
            keep_sampling_mask: self.stage.keep_sampling_mask,
            truncates: self.config.sampling.truncates(),
            vocab_size: self.policy.config().vocab_size,
            // The indexer's own loss, where it trains, learns from every group.
            skip_without_signal: self.stage.kl_beta == 0.0 && !self.stage.train_indexer,
            environments: &self.config.environments,
            device: self.policy.device(),
        }
    }

    /// Forward and backward of one micro-batch; gradients add up in the parameters. Figures stay on the device, as
    /// parts of `readback`, so that nothing waits for it.
    fn accumulate(
        &self,
        batch: MicroBatch,
        step_tokens: usize,
        readback: &mut Readback,
        step: &mut GrpoStep,
    ) -> LearnedBatch {
        let ref_logprobs = self.reference.map(|reference| {
            let _reference = range("reference");
            let start = Instant::now();
            let logprobs =
                tch::no_grad(|| self.logprobs(reference, &batch, Routing::Free, false).0);
            *step.reference_secs.get_or_insert(0.0) += start.elapsed().as_secs_f64();
            logprobs
        });

        let routing = batch
            .routing
            .as_ref()
            .map_or(Routing::Free, |ids| Routing::Replay(ids.shallow_clone()));
        let (logprobs, output) =
            self.logprobs(self.policy, &batch, routing, self.stage.train_indexer);
        let loss = grpo_loss(
            &GrpoLossInput {
                logprobs: &logprobs,
                sampler_logprobs: &batch.sampler_logprobs,
                ref_logprobs: ref_logprobs.as_ref(),
                sequence: &batch.sequence,
                advantages: &batch.advantages,
                lengths: &batch.lengths,
                kl_scales: &batch.kl_scales,
                token_weights: &batch.token_weights,
            },
            &GrpoLossParams {
                clip_epsilon: self.stage.clip_epsilon,
                kl_beta: self.stage.kl_beta,
                off_policy_delta: self.stage.off_policy_delta,
            },
        );
        let gap = (step.optimizer_steps == 0).then(|| {
            let gap = (logprobs.detach() - &batch.sampler_logprobs).abs();
            let figures = [gap.mean(Kind::Double), gap.max().to_kind(Kind::Double)];
            readback.push(&Tensor::stack(&figures, 0))
        });
        let used = match (&batch.routing, &output.routing) {
            (Some(recorded), Some(used)) => {
                let same = recorded.eq_tensor(used).to_kind(Kind::Double);
                Some(readback.push(&same.mean(Kind::Double)))
            }
            _ => None,
        };
        let agreeing = output.agreeing.as_ref();
        let mut learned = LearnedBatch {
            loss: readback.push(&loss.loss),
            figures: readback.push(&loss.figures),
            logprobs: readback.push(&logprobs),
            ref_logprobs: ref_logprobs.as_ref().map(|all| readback.push(all)),
            drift: readback.push(&loss.drift),
            keep: readback.push(&loss.keep),
            gap,
            agreeing: agreeing.map(|experts| (readback.push(&experts.count), experts.recorded)),
            used,
            indexer_kl: None,
            key_share: output.key_share,
            num_tokens: batch.input.num_tokens(),
            sources: batch.sources,
        };
        let mut total = loss.loss.to_kind(Kind::Float);
        if !output.indexer_losses.is_empty() {
            let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float) / step_tokens as f64;
            learned.indexer_kl = Some((readback.push(&kl), output.indexer_losses.len()));
            total += kl;
        }
        total.backward();
        learned
    }

    /// Adds the figures of a micro-batch to those of the step.
    fn record(&self, learned: &LearnedBatch, numbers: &Numbers, step: &mut GrpoStep) {
        if let Some(sum) = step.losses.last_mut() {
            *sum += numbers.one(&learned.loss);
        }
        let figures = numbers.at(&learned.figures);
        let figures = figures.try_into().expect("five figures");
        let num_tokens = learned.logprobs.len();
        step.stats.merge(&GrpoStats::of(num_tokens, figures));
        let samples = self.learned_samples(learned, numbers, step.optimizer_steps);
        step.samples.extend(samples);
        if let Some(gap) = &learned.gap {
            let [mean, max] = [numbers.at(gap)[0], numbers.at(gap)[1]];
            let (first_tokens, count) = (step.stats.tokens as f64, num_tokens as f64);
            // A running mean: `tokens` already counts this micro-batch.
            step.logprob_gap_mean += (mean - step.logprob_gap_mean) * count / first_tokens;
            step.logprob_gap_max = step.logprob_gap_max.max(max);
        }
        let batch_tokens = learned.num_tokens as f64;
        step.key_share += learned.key_share * batch_tokens;
        if let Some((count, recorded)) = &learned.agreeing {
            let agreement = numbers.one(count) / *recorded as f64;
            *step.routing_agreement_free.get_or_insert(0.0) += agreement * batch_tokens;
        }
        if let Some(used) = &learned.used {
            *step.routing_agreement_replay.get_or_insert(0.0) += numbers.one(used) * batch_tokens;
        }
        if let Some((kl, num_layers)) = &learned.indexer_kl {
            // A prompt whose group spans several micro-batches is forwarded, and counted, in each.
            *step.indexer_kl.get_or_insert(0.0) += numbers.one(kl) / *num_layers as f64;
        }
    }

    /// The samples of a micro-batch, trained in mini-batch `mini_batch`.
    fn learned_samples<'b>(
        &'b self,
        learned: &'b LearnedBatch,
        numbers: &'b Numbers,
        mini_batch: usize,
    ) -> impl Iterator<Item = LearnedSample> + 'b {
        let version = self.policy_version + mini_batch as u64;
        let floats = |place: &Place, tokens: Range<usize>| -> Vec<f32> {
            let all = &numbers.at(place)[tokens];
            all.iter().map(|&number| number as f32).collect()
        };
        let (drift, keep) = (numbers.at(&learned.drift), numbers.at(&learned.keep));
        let mut end = 0;
        learned
            .sources
            .iter()
            .enumerate()
            .map(move |(row, source)| {
                let start = end;
                end += source.num_tokens;
                LearnedSample {
                    prompt_id: source.prompt_id,
                    sample_index: source.sample_index,
                    segment: source.segment,
                    mini_batch,
                    policy_age: version.saturating_sub(source.first_policy_version),
                    advantage: source.advantage,
                    kl_scale: source.kl_scale,
                    token_weight: source.token_weight,
                    drift: drift[row],
                    is_masked: keep[row] == 0.0,
                    logprobs: floats(&learned.logprobs, start..end),
                    ref_logprobs: learned
                        .ref_logprobs
                        .as_ref()
                        .map(|all| floats(all, start..end)),
                }
            })
    }

    fn logprobs(
        &self,
        model: &Transformer,
        batch: &MicroBatch,
        routing: Routing,
        indexer_loss: bool,
    ) -> (Tensor, model::ForwardOutput) {
        let options = ForwardOptions {
            routing,
            attention: self.attention,
            indexer_loss,
            activation_checkpointing: self.config.activation_checkpointing,
            selection: Selection::Free,
        };
        let output = model.forward_packed(&batch.input, &options);
        let temperature = self.config.sampling.temperature;
        let logprobs = model.token_logprobs(
            &output.hidden,
            &batch.target_rows,
            &batch.targets,
            temperature,
            Some(&batch.kept),
        );
        (logprobs, output)
    }
}

/// Where the figures of a micro-batch will be read.
struct LearnedBatch {
    loss: Place,
    /// What [`GrpoStats::of`] takes.
    figures: Place,
    /// `[N]`.
    logprobs: Place,
    /// `[N]`.
    ref_logprobs: Option<Place>,
    /// `[S]`.
    drift: Place,
    /// `[S]`.
    keep: Place,
    /// Before the first update: mean and largest |trainer - sampler| log-prob.
    gap: Option<Place>,
    /// Recorded experts that free routing would choose, and how many there are.
    agreeing: Option<(Place, usize)>,
    /// Share of recorded experts that training did use.
    used: Option<Place>,
    /// Sum over layers, and their number.
    indexer_kl: Option<(Place, usize)>,
    key_share: f64,
    /// Forwarded.
    num_tokens: i64,
    sources: Vec<SampleSource>,
}
