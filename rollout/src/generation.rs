//! What the engine is asked for and what it gives: requests, settings, samples, and its own account.

use std::ops::Range;

use model::{Attention, KeptTokens, RoutingTrace, SelectionTrace};

use crate::memory::MemorySettings;
use crate::sample::FinishReason;
use crate::sampler::SamplingConfig;
use crate::vocabulary::Vocabulary;

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Keys the random draws; unique within a run.
    pub prompt_id: u64,
    /// Prompt token ids.
    pub tokens: Vec<u32>,
    /// Completions wanted.
    pub num_samples: usize,
    /// The first of them, as far as another engine came: finished ones stay as they are, unfinished ones
    /// are continued.
    pub begun: Vec<GeneratedSample>,
    /// A stop token ends a turn, not the sample: it is paused until a tool or a user has answered
    /// ([`Engine::take_paused`](crate::Engine::take_paused)).
    pub pauses: bool,
}

/// A sample whose turn has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PausedSample {
    /// Its request's.
    pub prompt_id: u64,
    /// Its index within the group.
    pub sample: usize,
    /// What it drew in this turn, the stop token included.
    pub turn: Vec<u32>,
    /// Tokens that may still follow, given ones and drawn ones.
    pub room: usize,
    /// It was cut at the limit, and has finished: nothing is to be answered.
    pub is_cut: bool,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationSettings {
    /// Temperature, truncation, length.
    pub sampling: SamplingConfig,
    /// Attention of the model: dense until its indexer has been trained.
    pub attention: Attention,
    /// Ids that end a completion.
    pub stop_tokens: Vec<u32>,
    /// Ids that may be sampled: the tokenizer's, which may be fewer than the output head's rows.
    pub vocabulary: Vocabulary,
    /// Run seed of the draws.
    pub seed: u64,
    /// Version of the weights, recorded with every token.
    pub policy_version: u64,
    /// Sequences decoded at once, at most.
    pub max_batch_sequences: usize,
    /// What sampling may take.
    pub memory: MemorySettings,
    /// Also record which keys the indexer selected: `index_topk` positions a token and layer.
    pub record_selection: bool,
}

/// One completion, not yet decoded or graded.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedSample {
    /// Completion token ids, a stop token included.
    pub tokens: Vec<u32>,
    /// Log-prob of each token at sampling time, after temperature and truncation.
    pub sampler_logprobs: Vec<f32>,
    /// Support left by truncation, one row a token.
    pub kept: KeptTokens,
    /// Experts of prompt and completion, `prompt + len - 1` rows; no rows in a dense model.
    pub routing: RoutingTrace,
    /// Keys selected for the same tokens, where recording them was asked for.
    pub selection: SelectionTrace,
    /// Version of the policy that drew each token.
    pub policy_versions: Vec<u64>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Which of the tokens were given by tools or templates instead of drawn, ascending. Their log-probs are 0 and
    /// their kept tokens empty, and no loss is ever on them.
    pub given: Vec<Range<usize>>,
}

/// The samples of a request, by sample index.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedGroup {
    /// The request's.
    pub prompt_id: u64,
    /// All of them, or those begun.
    pub samples: Vec<GeneratedSample>,
}

/// What a generation did, for metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationStats {
    /// Tokens run through the model in prefills: a group's prompt counts once, what was preempted again.
    pub prefill_tokens: usize,
    /// Sequences taken out of the cache, to be run through the model again, since no page was free.
    pub preemptions: usize,
    /// Tokens run through decode steps.
    pub decoded_tokens: usize,
    /// Tokens drawn: the lengths of all samples.
    pub sampled_tokens: usize,
    /// Time of prefills with the draws of first tokens.
    pub prefill_secs: f64,
    /// Time of decode steps with their draws.
    pub decode_secs: f64,
    /// Keys attended over keys visible, summed over forwarded tokens.
    pub key_share_sum: f64,
    /// Entropy of the tempered policy before truncation, summed over sampled tokens, nats.
    pub entropy_sum: f64,
}

impl GenerationStats {
    /// Keys attended over keys visible, mean over forwarded tokens.
    pub fn mean_key_share(&self) -> f64 {
        self.key_share_sum / (self.prefill_tokens + self.decoded_tokens).max(1) as f64
    }

    /// Entropy of the tempered policy before truncation, mean over sampled tokens, nats.
    pub fn mean_entropy(&self) -> f64 {
        self.entropy_sum / self.sampled_tokens.max(1) as f64
    }

    /// Adds what another did.
    pub fn merge(&mut self, other: &GenerationStats) {
        self.prefill_tokens += other.prefill_tokens;
        self.preemptions += other.preemptions;
        self.decoded_tokens += other.decoded_tokens;
        self.sampled_tokens += other.sampled_tokens;
        self.prefill_secs += other.prefill_secs;
        self.decode_secs += other.decode_secs;
        self.key_share_sum += other.key_share_sum;
        self.entropy_sum += other.entropy_sum;
    }
}
