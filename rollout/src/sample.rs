//! The types that travel from rollout to learner.

use std::ops::Range;

use environments::{Reward, Stop, TaskKey, Verdict};
use model::{KeptTokens, RoutingTrace, SelectionTrace};
use serde::{Deserialize, Serialize};

use crate::generation::GeneratedSample;

/// A question, ready for the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Unique within a run; keys the random draws of its samples.
    pub id: u64,
    /// The task behind it.
    pub task: TaskKey,
    /// The question in plain text.
    pub question: String,
    /// Chat-encoded token ids.
    pub tokens: Vec<u32>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token was sampled (it is the last token of the sample).
    Stop,
    /// The limit on new tokens was reached.
    Length,
    /// It has not ended: a sample in flight, as the checkpoints of asynchronous runs hold it.
    Unfinished,
}

/// One completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Index within the group.
    pub index: usize,
    /// Completion token ids, a stop token included; at least one.
    pub tokens: Vec<u32>,
    /// Log-prob of each token at sampling time, after temperature and truncation: pi_old, `[len]`.
    pub sampler_logprobs: Vec<f32>,
    /// Support left by truncation, one row a token.
    pub kept: KeptTokens,
    /// Experts of prompt and completion: `prompt.len() + len - 1` rows (the last token is never forwarded).
    pub routing: RoutingTrace,
    /// Keys that the indexer selected for the same tokens, where recording them was asked for. Not written to
    /// rollout files.
    pub selection: SelectionTrace,
    /// Version of the policy that drew each token, `[len]`; never falls within a sample.
    pub policy_versions: Vec<u64>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Decoded completion, special tokens left out.
    pub text: String,
    /// The grader's word.
    pub verdict: Verdict,
    /// Which of `tokens` tools or the template gave; no loss is on them.
    pub given: Vec<Range<usize>>,
    /// What followed each further message of a user: a training sequence of its own, since reasoning is dropped from
    /// what comes before.
    pub later: Vec<Segment>,
    /// How its episode went; `None` for a task of one turn.
    pub episode: Option<EpisodeRecord>,
    /// What it is paid, where that is more than the verdict's reward.
    pub paid: Option<Reward>,
}

impl Sample {
    /// What enters the advantages; `None` for an invalid sample.
    pub fn reward(&self) -> Option<f64> {
        let paid = self.paid.as_ref().map(|paid| paid.reward);
        paid.or(self.verdict.reward())
    }
}

/// A segment after the first: its whole context, and what was drawn and given behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The conversation so far, as token ids.
    pub prompt_tokens: Vec<u32>,
    /// What follows.
    pub completion: GeneratedSample,
}

/// How an episode went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpisodeRecord {
    /// Turns of the assistant.
    pub num_turns: usize,
    /// Tool calls.
    pub num_calls: usize,
    /// Those among them that were errors of the policy.
    pub num_bad_calls: usize,
    /// Why it ended; `None` where no token was left for another turn, or a service failed.
    pub stop: Option<Stop>,
}

/// One training sequence of a sample.
#[derive(Clone, Copy, Debug)]
pub struct SegmentView<'a> {
    /// Index of its sample within the group.
    pub sample: usize,
    /// 0 for the first of the sample.
    pub number: usize,
    /// Its context, `[prompt]`.
    pub prompt_tokens: &'a [u32],
    /// What follows, `[len]`.
    pub tokens: &'a [u32],
    /// Of each token, 0 for given ones, `[len]`.
    pub sampler_logprobs: &'a [f32],
    /// A row a token.
    pub kept: &'a KeptTokens,
    /// `prompt + len - 1` rows.
    pub routing: &'a RoutingTrace,
    /// Of the same tokens.
    pub selection: &'a SelectionTrace,
    /// Of each token, `[len]`.
    pub policy_versions: &'a [u64],
    /// Which tokens were given.
    pub given: &'a [Range<usize>],
}

impl SegmentView<'_> {
    /// The indices of the tokens that were drawn: those that carry loss.
    pub fn sampled(&self) -> impl Iterator<Item = usize> + '_ {
        let is_given = |index: &usize| self.given.iter().any(|given| given.contains(index));
        (0..self.tokens.len()).filter(move |index| !is_given(index))
    }

    /// How many tokens were drawn.
    pub fn num_sampled(&self) -> usize {
        let given: usize = self.given.iter().map(ExactSizeIterator::len).sum();
        self.tokens.len() - given
    }
}

impl Sample {
    /// Its training sequences, `prompt` being its group's.
    pub fn segments<'a>(&'a self, prompt: &'a Prompt) -> impl Iterator<Item = SegmentView<'a>> {
        let first = SegmentView {
            sample: self.index,
            number: 0,
            prompt_tokens: &prompt.tokens,
            tokens: &self.tokens,
            sampler_logprobs: &self.sampler_logprobs,
            kept: &self.kept,
            routing: &self.routing,
            selection: &self.selection,
            policy_versions: &self.policy_versions,
            given: &self.given,
        };
        let later = self.later.iter().zip(1..);
        let later = later.map(|(segment, number)| SegmentView {
            sample: self.index,
            number,
            prompt_tokens: &segment.prompt_tokens,
            tokens: &segment.completion.tokens,
            sampler_logprobs: &segment.completion.sampler_logprobs,
            kept: &segment.completion.kept,
            routing: &segment.completion.routing,
            selection: &segment.completion.selection,
            policy_versions: &segment.completion.policy_versions,
            given: &segment.completion.given,
        });
        std::iter::once(first).chain(later)
    }

    /// Tokens drawn, over all segments.
    pub fn num_sampled(&self, prompt: &Prompt) -> usize {
        self.segments(prompt).map(|s| s.num_sampled()).sum()
    }
}

/// The samples of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Prompt.
    pub prompt: Prompt,
    /// Its samples, by index.
    pub samples: Vec<Sample>,
}
