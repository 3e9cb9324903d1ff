//! Groups and text documents to packed micro-batches.
//!
//! A group becomes one document: the prompt is the trunk, every valid sample a branch, so the prompt
//! is computed once. The row that predicts token j of a sample is the trunk's last (j = 0) or the
//! branch's (j - 1)-th; the last token of a sample predicts nothing and is left out.
//! Token weights `1 / (G |o_i|) / num_groups` (G: the group's valid samples, num_groups: groups with
//! any) are fixed for the whole step, so the split into micro-batches can't change the objective.
//! T packed tokens, N targets, S samples, L layers, k experts a token.

use std::ops::Range;

use environments::TaskKey;
use kernels::tch::{Device, Tensor};
use model::{Document, KeptTokens, PackedInput};
use rollout::{Group, Sample};

use self::payload::{routing_problem, sample_problem};
use crate::config::EnvironmentConfig;

mod payload;

/// What to pack, and how.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions<'a> {
    /// Tokens of a micro-batch, at most. Only a document that can't be split (a prompt with one
    /// sample, or a text) may exceed it, alone in its micro-batch.
    pub micro_batch_tokens: usize,
    /// Carry the recorded experts of a model with this many layers and experts a token.
    pub keep_routing: Option<RoutingShape>,
    /// Carry the support that truncation left; otherwise every row keeps the whole vocabulary.
    pub keep_sampling_mask: bool,
    /// Leave out groups whose samples all have advantage 0: without a KL term they have no gradient.
    /// They still count in the mean over groups.
    pub skip_without_signal: bool,
    /// Where tasks come from, each with the strength of its KL term.
    pub environments: &'a [EnvironmentConfig],
    /// Where the tensors go.
    pub device: Device,
}

/// Experts recorded for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingShape {
    /// Mixture-of-experts layers, L.
    pub num_layers: usize,
    /// Experts a token and layer, k.
    pub top_k: usize,
}

/// Whole documents of one forward and backward pass.
#[derive(Debug)]
pub struct MicroBatch {
    /// Documents, T tokens.
    pub input: PackedInput,
    /// Row in the pack that predicts each target, `[N]` i64.
    pub target_rows: Tensor,
    /// Tokens predicted, `[N]` i64.
    pub targets: Tensor,
    /// pi_old, `[N]` f32.
    pub sampler_logprobs: Tensor,
    /// Support of each target's distribution, N rows.
    pub kept: KeptTokens,
    /// Recorded experts, i64 `[T, L, k]`.
    pub routing: Option<Tensor>,
    /// Sample of each target, `[N]` i64 in `0..S`.
    pub sequence: Tensor,
    /// Advantage of each sample, `[S]` f64.
    pub advantages: Tensor,
    /// Tokens of each sample, `[S]` i64.
    pub lengths: Tensor,
    /// Strength of each sample's KL term, relative to the stage's, `[S]` f64.
    pub kl_scales: Tensor,
    /// Share of each target in the step's objective, `[N]` f64.
    pub token_weights: Tensor,
}

/// Text of a stage that trains on text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDocument {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index of the first token to be predicted; earlier ones are context.
    pub loss_from: usize,
}

/// Whole text documents of one forward and backward pass.
#[derive(Debug)]
pub struct TextMicroBatch {
    /// Documents without branches, T tokens.
    pub input: PackedInput,
    /// Row in the pack that predicts each target, `[N]` i64.
    pub target_rows: Tensor,
    /// Tokens predicted, `[N]` i64.
    pub targets: Tensor,
    /// One over the targets of the whole step, `[N]` f64.
    pub token_weights: Tensor,
}

/// A group or document that can't be trained on.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BatchError {
    /// A prompt without tokens has no row that predicts the first token.
    #[error("prompt {prompt} has no tokens")]
    EmptyPrompt {
        /// Prompt id.
        prompt: u64,
    },
    /// Advantages don't belong to the samples.
    #[error("prompt {prompt} has {samples} samples but {advantages} advantages")]
    Advantages {
        /// Prompt id.
        prompt: u64,
        /// Samples of the group.
        samples: usize,
        /// Advantages given.
        advantages: usize,
    },
    /// A sample carries something that contradicts its tokens.
    #[error("prompt {prompt}, sample {sample}: {problem}")]
    Sample {
        /// Prompt id.
        prompt: u64,
        /// Index of the sample within its group.
        sample: usize,
        /// What is wrong.
        problem: String,
    },
    /// A text document without tokens.
    #[error("text document {index} has no tokens")]
    EmptyText {
        /// Index among the documents given.
        index: usize,
    },
}

/// A document to be: a group's prompt with some of its samples, and their advantages.
struct Piece<'a> {
    group: &'a Group,
    samples: Vec<(&'a Sample, f64)>,
    /// `1 / G / num_groups`.
    sample_weight: f64,
}

impl Piece<'_> {
    fn num_tokens(&self) -> usize {
        let branches = self
            .samples
            .iter()
            .map(|(sample, _)| sample.tokens.len() - 1);
        self.group.prompt.tokens.len() + branches.sum::<usize>()
    }
}

/// Packs the groups of one optimizer step, in order; samples without advantage are left out.
///
/// A group stays in one document unless it alone exceeds the limit: then its samples are spread over
/// several documents that each repeat the prompt. No group with a valid sample: no micro-batch.
///
/// # Errors
/// A sample whose log-probs, kept tokens or (when kept) routing don't fit its tokens.
pub fn pack(
    groups: &[Group],
    advantages: &[Vec<Option<f64>>],
    options: &PackOptions,
) -> Result<Vec<MicroBatch>, BatchError> {
    assert_eq!(
        groups.len(),
        advantages.len(),
        "one row of advantages a group"
    );
    let any = |row: &&Vec<Option<f64>>| row.iter().any(Option::is_some);
    let num_groups = advantages.iter().filter(any).count();
    let mut pieces = Vec::new();
    for (group, advantages) in groups.iter().zip(advantages) {
        let samples = valid_samples(group, advantages)?;
        check_group(group, &samples, options)?;
        if options.skip_without_signal && samples.iter().all(|&(_, advantage)| advantage == 0.0) {
            continue;
        }
        let sample_weight = 1.0 / (samples.len() * num_groups) as f64;
        for samples in split_samples(group, samples, options.micro_batch_tokens) {
            pieces.push(Piece {
                group,
                samples,
                sample_weight,
            });
        }
    }
    let sizes: Vec<usize> = pieces.iter().map(Piece::num_tokens).collect();
    let batches = fill(&sizes, options.micro_batch_tokens);
    Ok(batches
        .into_iter()
        .map(|range| micro_batch(&pieces[range], options))
        .collect())
}

/// Packs the documents of one optimizer step, in order; the loss is the mean over all targets.
///
/// # Errors
/// A document without tokens.
pub fn pack_text(
    documents: &[TextDocument],
    micro_batch_tokens: usize,
    device: Device,
) -> Result<Vec<TextMicroBatch>, BatchError> {
    if let Some(index) = documents.iter().position(|d| d.tokens.is_empty()) {
        return Err(BatchError::EmptyText { index });
    }
    // The first token of a document has no row that predicts it.
    let targets_of = |d: &TextDocument| d.loss_from.max(1)..d.tokens.len();
    let num_targets: usize = documents.iter().map(|d| targets_of(d).len()).sum();
    let sizes: Vec<usize> = documents.iter().map(|d| d.tokens.len()).collect();
    let batches = fill(&sizes, micro_batch_tokens).into_iter().map(|range| {
        let documents = &documents[range];
        let sequences: Vec<&[u32]> = documents.iter().map(|d| d.tokens.as_slice()).collect();
        let input = PackedInput::from_sequences(&sequences, device);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (document, packed) in documents.iter().zip(&input.documents) {
            rows.extend(targets_of(document).map(|t| packed.start + t as i64 - 1));
            targets.extend(targets_of(document).map(|t| i64::from(document.tokens[t])));
        }
        let weights = vec![1.0 / num_targets as f64; targets.len()];
        TextMicroBatch {
            input,
            target_rows: Tensor::from_slice(&rows).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
            token_weights: Tensor::from_slice(&weights).to_device(device),
        }
    });
    Ok(batches.collect())
}

fn valid_samples<'a>(
    group: &'a Group,
    advantages: &[Option<f64>],
) -> Result<Vec<(&'a Sample, f64)>, BatchError> {
    if group.samples.len() != advantages.len() {
        return Err(BatchError::Advantages {
            prompt: group.prompt.id,
            samples: group.samples.len(),
            advantages: advantages.len(),
        });
    }
    let samples = group.samples.iter().zip(advantages);
    Ok(samples.filter_map(|(s, a)| a.map(|a| (s, a))).collect())
}

fn check_group(
    group: &Group,
    samples: &[(&Sample, f64)],
    options: &PackOptions,
) -> Result<(), BatchError> {
    if group.prompt.tokens.is_empty() {
        return Err(BatchError::EmptyPrompt {
            prompt: group.prompt.id,
        });
    }
    for (sample, _) in samples {
        let problem = sample_problem(sample, options.keep_sampling_mask).or_else(|| {
            let first = samples[0].0;
            let shape = options.keep_routing?;
            routing_problem(group.prompt.tokens.len(), sample, first, shape)
        });
        if let Some(problem) = problem {
            return Err(BatchError::Sample {
                prompt: group.prompt.id,
                sample: sample.index,
                problem,
            });
        }
    }
    Ok(())
}

/// Splits the samples of a group that alone exceeds `limit` tokens, greedily and in order.
fn split_samples<'a>(
    group: &Group,
    samples: Vec<(&'a Sample, f64)>,
    limit: usize,
) -> Vec<Vec<(&'a Sample, f64)>> {
    let sizes: Vec<usize> = samples.iter().map(|(s, _)| s.tokens.len() - 1).collect();
    let room = limit.saturating_sub(group.prompt.tokens.len());
    fill(&sizes, room)
        .into_iter()
        .map(|range| samples[range].to_vec())
        .collect()
}

/// Consecutive ranges of items whose sizes add up to at most `limit`; a larger item stands alone.
fn fill(sizes: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (i, &size) in sizes.iter().enumerate() {
        if i > start && used + size > limit {
            ranges.push(start..i);
            (start, used) = (i, 0);
        }
        used += size;
    }
    if start < sizes.len() {
        ranges.push(start..sizes.len());
    }
    ranges
}

fn micro_batch(pieces: &[Piece], options: &PackOptions) -> MicroBatch {
    let (mut tokens, mut documents) = (Vec::<i64>::new(), Vec::new());
    let (mut target_rows, mut targets) = (Vec::<i64>::new(), Vec::<i64>::new());
    let (mut sampler_logprobs, mut kept) = (Vec::<f32>::new(), KeptTokens::default());
    let (mut sequence, mut token_weights) = (Vec::<i64>::new(), Vec::<f64>::new());
    let (mut advantages, mut lengths) = (Vec::<f64>::new(), Vec::<i64>::new());
    let mut kl_scales = Vec::<f64>::new();
    let mut routing = Vec::<i64>::new();
    for piece in pieces {
        let prompt = &piece.group.prompt.tokens;
        let start = tokens.len() as i64;
        let trunk_last = start + prompt.len() as i64 - 1;
        tokens.extend(prompt.iter().map(|&id| i64::from(id)));
        let prompt_ids = prompt.len() * options.keep_routing.map_or(0, |r| r.num_layers * r.top_k);
        let shared = &piece.samples[0].0.routing.ids[..prompt_ids];
        routing.extend(shared.iter().map(|&id| i64::from(id)));
        let mut branch_lens = Vec::new();
        for (sample, advantage) in &piece.samples {
            let len = sample.tokens.len();
            let branch_start = tokens.len() as i64;
            target_rows.push(trunk_last);
            target_rows.extend(branch_start..branch_start + len as i64 - 1);
            targets.extend(sample.tokens.iter().map(|&id| i64::from(id)));
            tokens.extend(sample.tokens[..len - 1].iter().map(|&id| i64::from(id)));
            if len > 1 {
                branch_lens.push(len as i64 - 1);
            }
            if options.keep_routing.is_some() {
                let own = &sample.routing.ids[prompt_ids..];
                routing.extend(own.iter().map(|&id| i64::from(id)));
            }
            for t in 0..len {
                kept.push(if options.keep_sampling_mask {
                    sample.kept.row(t)
                } else {
                    &[]
                });
            }
            sampler_logprobs.extend_from_slice(&sample.sampler_logprobs);
            sequence.extend(std::iter::repeat_n(lengths.len() as i64, len));
            token_weights.extend(std::iter::repeat_n(piece.sample_weight / len as f64, len));
            advantages.push(*advantage);
            kl_scales.push(kl_scale(options.environments, &piece.group.prompt.task));
            lengths.push(len as i64);
        }
        documents.push(Document {
            start,
            trunk_len: prompt.len() as i64,
            branch_lens,
        });
    }
    let num_tokens = tokens.len() as i64;
    let device = options.device;
    MicroBatch {
        input: PackedInput {
            tokens: Tensor::from_slice(&tokens).to_device(device),
            documents,
        },
        target_rows: Tensor::from_slice(&target_rows).to_device(device),
        targets: Tensor::from_slice(&targets).to_device(device),
        sampler_logprobs: Tensor::from_slice(&sampler_logprobs).to_device(device),
        kept,
        routing: options.keep_routing.map(|shape| {
            let size = [num_tokens, shape.num_layers as i64, shape.top_k as i64];
            Tensor::from_slice(&routing).view(size).to_device(device)
        }),
        sequence: Tensor::from_slice(&sequence).to_device(device),
        advantages: Tensor::from_slice(&advantages).to_device(device),
        lengths: Tensor::from_slice(&lengths).to_device(device),
        kl_scales: Tensor::from_slice(&kl_scales).to_device(device),
        token_weights: Tensor::from_slice(&token_weights).to_device(device),
    }
}

/// The scale of the environment that `task` comes from; 1 where none of them makes such tasks.
fn kl_scale(environments: &[EnvironmentConfig], task: &TaskKey) -> f64 {
    let is_source = |e: &&EnvironmentConfig| (e.family, e.level) == (task.family, task.level);
    let source = environments.iter().find(is_source);
    source.map_or(1.0, |environment| environment.kl_scale)
}

#[cfg(test)]
mod tests;
