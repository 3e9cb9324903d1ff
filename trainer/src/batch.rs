//! Groups and text documents to packed micro-batches.
//!
//! A group becomes one document: the prompt is the trunk, every valid sample a branch, so the prompt
//! is computed once. The row that predicts token j of a sample is the trunk's last (j = 0) or the
//! branch's (j - 1)-th; the last token of a sample predicts nothing and is left out.
//! Of a sample of several turns only the tokens that were drawn are targets; each of its later segments is a document
//! of its own, and a sequence of its own to the off-policy mask.
//! Token weights `1 / (G |o_i|) / num_groups` (G: the group's valid samples, |o_i|: tokens that sample i drew, num_groups: groups with
//! any) are fixed for the whole step, so the split into micro-batches can't change the objective.
//! T packed tokens, N targets, S sequences, L layers, k experts a token.

use std::ops::Range;

use environments::TaskKey;
use kernels::tch::{Device, Kind, Tensor};
use kernels::upload;
use model::{Document, KeptTokens, PackedInput};
use rollout::{Group, Sample, SegmentView};

use self::payload::{routing_problem, sample_problem, selection_problem};
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
    /// Carry the keys that the indexer selected, of a model with this many layers and keys a token.
    pub keep_selection: Option<SelectionShape>,
    /// Carry the support that truncation left; otherwise every row keeps the whole vocabulary.
    pub keep_sampling_mask: bool,
    /// The sampler truncates: every token must come with its kept tokens.
    pub truncates: bool,
    /// Token ids lie below it.
    pub vocab_size: usize,
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
    /// Expert ids lie below it.
    pub num_experts: usize,
}

/// Keys selected for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectionShape {
    /// Layers with an indexer, D.
    pub num_layers: usize,
    /// Keys a token and layer, at most.
    pub topk: usize,
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
    /// Recorded keys, i64 `[T, D, K]`: positions, -1 for absent ones.
    pub selection: Option<Tensor>,
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
    /// Which samples these are, S of them.
    pub sources: Vec<SampleSource>,
}

/// Where a packed sample comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSource {
    /// Its prompt.
    pub prompt_id: u64,
    /// Its index within the group.
    pub sample_index: usize,
    /// Which of its segments, from 0.
    pub segment: usize,
    /// Version of the policy that drew its first token.
    pub first_policy_version: u64,
    /// Reward minus the group's mean.
    pub advantage: f64,
    /// Strength of its KL term, relative to the stage's.
    pub kl_scale: f64,
    /// Share of each of its tokens in the step's objective.
    pub token_weight: f64,
    /// Tokens of it that were drawn, and so are targets.
    pub num_tokens: usize,
}

/// Text of a stage that trains on text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDocument {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index of the first token to be predicted; earlier ones are context.
    pub loss_from: usize,
    /// Tokens behind it that are not predicted either: what tools or the template said.
    pub given: Vec<Range<usize>>,
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

/// A document to be: a prompt with sequences that continue it.
struct Piece<'a> {
    group: &'a Group,
    /// Its tokens, the context of all branches.
    prompt: &'a [u32],
    branches: Vec<Branch<'a>>,
}

/// A training sequence behind a prompt.
#[derive(Clone, Copy)]
struct Branch<'a> {
    segment: SegmentView<'a>,
    advantage: f64,
    /// `1 / G / |o| / num_groups`, where o are the tokens that the whole sample drew.
    token_weight: f64,
}

impl Piece<'_> {
    fn num_tokens(&self) -> usize {
        let branches = self.branches.iter();
        let branches = branches.map(|branch| branch.segment.tokens.len() - 1);
        self.prompt.len() + branches.sum::<usize>()
    }
}

/// The micro-batches of one optimizer step, each made when it is asked for: a GPU works on one while the host makes
/// the next.
pub struct Packing<'a> {
    pieces: Vec<Piece<'a>>,
    ranges: Vec<Range<usize>>,
    options: &'a PackOptions<'a>,
}

impl<'a> Packing<'a> {
    /// Distributes groups, in order; samples without advantage are left out.
    ///
    /// A group stays in one document unless it alone exceeds the limit: then its samples are spread over
    /// several documents that each repeat the prompt. No group with a valid sample: no micro-batch.
    ///
    /// # Errors
    /// A sample whose log-probs, kept tokens or (when kept) routing or selection don't fit its tokens.
    pub fn new(
        groups: &'a [Group],
        advantages: &[Vec<Option<f64>>],
        options: &'a PackOptions<'a>,
    ) -> Result<Packing<'a>, BatchError> {
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
            if options.skip_without_signal && samples.iter().all(|&(_, advantage)| advantage == 0.0)
            {
                continue;
            }
            let sample_weight = 1.0 / (samples.len() * num_groups) as f64;
            pieces.extend(pieces_of(group, &samples, sample_weight, options));
        }
        let sizes: Vec<usize> = pieces.iter().map(Piece::num_tokens).collect();
        let ranges = fill(&sizes, options.micro_batch_tokens);
        Ok(Packing {
            pieces,
            ranges,
            options,
        })
    }

    /// Tokens of all micro-batches.
    pub fn num_tokens(&self) -> usize {
        self.pieces.iter().map(Piece::num_tokens).sum()
    }

    /// Makes the micro-batches, in order.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = MicroBatch> + '_ {
        let ranges = self.ranges.iter().cloned();
        ranges.map(|range| micro_batch(&self.pieces[range], self.options))
    }
}

/// All micro-batches of [`Packing`] at once.
///
/// # Errors
/// As [`Packing::new`].
pub fn pack(
    groups: &[Group],
    advantages: &[Vec<Option<f64>>],
    options: &PackOptions,
) -> Result<Vec<MicroBatch>, BatchError> {
    Ok(Packing::new(groups, advantages, options)?
        .batches()
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
    let targets_of = |d: &TextDocument| -> Vec<usize> {
        let is_given = |t: &usize| d.given.iter().any(|given| given.contains(t));
        let targets = d.loss_from.max(1)..d.tokens.len();
        targets.filter(|t| !is_given(t)).collect()
    };
    let num_targets: usize = documents.iter().map(|d| targets_of(d).len()).sum();
    let sizes: Vec<usize> = documents.iter().map(|d| d.tokens.len()).collect();
    let batches = fill(&sizes, micro_batch_tokens).into_iter().map(|range| {
        let documents = &documents[range];
        let sequences: Vec<&[u32]> = documents.iter().map(|d| d.tokens.as_slice()).collect();
        let input = PackedInput::from_sequences(&sequences, device);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (document, packed) in documents.iter().zip(&input.documents) {
            let predicted = targets_of(document);
            rows.extend(predicted.iter().map(|&t| packed.start + t as i64 - 1));
            targets.extend(predicted.iter().map(|&t| i64::from(document.tokens[t])));
        }
        let weights = vec![1.0 / num_targets as f64; targets.len()];
        TextMicroBatch {
            input,
            target_rows: upload(&rows, device),
            targets: upload(&targets, device),
            token_weights: upload(&weights, device),
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
    let prompt = &group.prompt;
    if prompt.tokens.is_empty() {
        return Err(BatchError::EmptyPrompt { prompt: prompt.id });
    }
    for (sample, _) in samples {
        for segment in sample.segments(prompt) {
            // Later segments share their context with nobody.
            let first = match segment.number {
                0 => samples[0].0.segments(prompt).next().unwrap_or(segment),
                _ => segment,
            };
            let len = segment.prompt_tokens.len();
            let problem = (len == 0)
                .then(|| "its context is empty".to_string())
                .or_else(|| sample_problem(segment, options))
                .or_else(|| routing_problem(len, segment, first, options.keep_routing?))
                .or_else(|| selection_problem(len, segment, first, options.keep_selection?));
            if let Some(problem) = problem {
                let of_segment = match segment.number {
                    0 => String::new(),
                    number => format!("segment {number}: "),
                };
                return Err(BatchError::Sample {
                    prompt: prompt.id,
                    sample: sample.index,
                    problem: of_segment + &problem,
                });
            }
        }
    }
    Ok(())
}

/// The documents of a group: its prompt with the samples, over several of them where it alone exceeds the limit, and
/// one for each later segment.
fn pieces_of<'a>(
    group: &'a Group,
    samples: &[(&'a Sample, f64)],
    sample_weight: f64,
    options: &PackOptions,
) -> Vec<Piece<'a>> {
    let prompt = &group.prompt;
    let branches = samples.iter().flat_map(|&(sample, advantage)| {
        let token_weight = sample_weight / sample.num_sampled(prompt).max(1) as f64;
        sample.segments(prompt).map(move |segment| Branch {
            segment,
            advantage,
            token_weight,
        })
    });
    let (first, later): (Vec<Branch>, Vec<Branch>) =
        branches.partition(|branch| branch.segment.number == 0);
    let sizes = first.iter().map(|branch| branch.segment.tokens.len() - 1);
    let sizes: Vec<usize> = sizes.collect();
    let room = options
        .micro_batch_tokens
        .saturating_sub(prompt.tokens.len());
    let of_prompt = fill(&sizes, room).into_iter().map(|range| Piece {
        group,
        prompt: &prompt.tokens,
        branches: first[range].to_vec(),
    });
    let of_later = later.iter().map(|branch| Piece {
        group,
        prompt: branch.segment.prompt_tokens,
        branches: vec![*branch],
    });
    of_prompt.chain(of_later).collect()
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
    let mut sources = Vec::<SampleSource>::new();
    let (mut routing, mut selection) = (Vec::<i32>::new(), Vec::<i64>::new());
    let selection_width = selection_width(pieces, options);
    for piece in pieces {
        let prompt = piece.prompt;
        let start = tokens.len() as i64;
        let trunk_last = start + prompt.len() as i64 - 1;
        tokens.extend(prompt.iter().map(|&id| i64::from(id)));
        let prompt_ids = prompt.len() * options.keep_routing.map_or(0, |r| r.num_layers * r.top_k);
        let first = piece.branches[0].segment;
        let shared = &first.routing.ids[..prompt_ids];
        routing.extend(shared.iter().map(|&id| i32::from(id)));
        if options.keep_selection.is_some() {
            selection.extend(first.selection.rows(0..prompt.len(), selection_width));
        }
        let mut branch_lens = Vec::new();
        for branch in &piece.branches {
            let segment = branch.segment;
            let len = segment.tokens.len();
            let branch_start = tokens.len() as i64;
            for t in segment.sampled() {
                target_rows.push(match t {
                    0 => trunk_last,
                    _ => branch_start + t as i64 - 1,
                });
                targets.push(i64::from(segment.tokens[t]));
                sampler_logprobs.push(segment.sampler_logprobs[t]);
                kept.push(if options.keep_sampling_mask {
                    segment.kept.row(t)
                } else {
                    &[]
                });
            }
            tokens.extend(segment.tokens[..len - 1].iter().map(|&id| i64::from(id)));
            if len > 1 {
                branch_lens.push(len as i64 - 1);
            }
            if options.keep_routing.is_some() {
                let own = &segment.routing.ids[prompt_ids..];
                routing.extend(own.iter().map(|&id| i32::from(id)));
            }
            if options.keep_selection.is_some() {
                let own = prompt.len()..prompt.len() + len - 1;
                selection.extend(segment.selection.rows(own, selection_width));
            }
            let num_sampled = segment.num_sampled();
            sequence.extend(std::iter::repeat_n(sources.len() as i64, num_sampled));
            token_weights.extend(std::iter::repeat_n(branch.token_weight, num_sampled));
            sources.push(SampleSource {
                prompt_id: piece.group.prompt.id,
                sample_index: segment.sample,
                segment: segment.number,
                first_policy_version: segment.policy_versions[0],
                advantage: branch.advantage,
                kl_scale: kl_scale(options.environments, &piece.group.prompt.task),
                token_weight: branch.token_weight,
                num_tokens: num_sampled,
            });
        }
        documents.push(Document {
            start,
            trunk_len: prompt.len() as i64,
            branch_lens,
        });
    }
    let num_tokens = tokens.len() as i64;
    let device = options.device;
    let of_samples = |number: fn(&SampleSource) -> f64| {
        let numbers: Vec<f64> = sources.iter().map(number).collect();
        upload(&numbers, device)
    };
    let lengths: Vec<i64> = sources.iter().map(|s| s.num_tokens as i64).collect();
    MicroBatch {
        input: PackedInput {
            tokens: upload(&tokens, device),
            documents,
        },
        target_rows: upload(&target_rows, device),
        targets: upload(&targets, device),
        sampler_logprobs: upload(&sampler_logprobs, device),
        kept,
        routing: options.keep_routing.map(|shape| {
            let size = [num_tokens, shape.num_layers as i64, shape.top_k as i64];
            upload(&routing, device).view(size).to_kind(Kind::Int64)
        }),
        selection: options.keep_selection.map(|shape| {
            let size = [num_tokens, shape.num_layers as i64, selection_width as i64];
            upload(&selection, device).view(size)
        }),
        sequence: upload(&sequence, device),
        advantages: of_samples(|s| s.advantage),
        lengths: upload(&lengths, device),
        kl_scales: of_samples(|s| s.kl_scale),
        token_weights: upload(&token_weights, device),
        sources,
    }
}

/// Keys that a token of these pieces can have, at most.
fn selection_width(pieces: &[Piece], options: &PackOptions) -> usize {
    let longest = |piece: &Piece| {
        let branches = piece.branches.iter();
        let branches = branches.map(|branch| branch.segment.tokens.len() - 1);
        piece.prompt.len() + branches.max().unwrap_or(0)
    };
    let longest = pieces.iter().map(longest).max().unwrap_or(0);
    options
        .keep_selection
        .map_or(0, |shape| shape.topk.min(longest))
}

/// The scale of the environment that `task` comes from; 1 where none of them makes such tasks.
fn kl_scale(environments: &[EnvironmentConfig], task: &TaskKey) -> f64 {
    let source = environments.iter().find(|e| e.is_source_of(task));
    source.map_or(1.0, |environment| environment.kl_scale)
}

#[cfg(test)]
mod tests;
