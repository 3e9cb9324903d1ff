//! The types that travel from rollout to learner.

use environments::{TaskKey, Verdict};
use model::{KeptTokens, RoutingTrace, SelectionTrace};
use serde::{Deserialize, Serialize};

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
}

/// The samples of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Prompt.
    pub prompt: Prompt,
    /// Its samples, by index.
    pub samples: Vec<Sample>,
}
