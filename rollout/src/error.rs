//! What can go wrong in a rollout, in words a user can act on.

use std::path::PathBuf;

/// A rollout, or its file, failed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// A task is not there any more.
    #[error(transparent)]
    Task(#[from] environments::DatasetError),
    /// A conversation can't be shown to the policy.
    #[error(transparent)]
    Chat(#[from] model::tokenizer::TokenizerError),
    /// A prompt without tokens gives nothing to predict from.
    #[error("prompt {prompt_id} has no tokens; check the chat template and the question")]
    EmptyPrompt {
        /// Prompt.
        prompt_id: u64,
    },
    /// Prompt and completion together exceed the model's context.
    #[error(
        "prompt {prompt_id} has {prompt_tokens} tokens; with `sampling.max_new_tokens` = \
         {max_new_tokens} it needs {} of the model's context of {max_position_embeddings} \
         (`max_position_embeddings`): lower `sampling.max_new_tokens`, or shorten \
         `system_prompt` or the question (the environment's `level`)",
        prompt_tokens + max_new_tokens
    )]
    PromptTooLong {
        /// Prompt.
        prompt_id: u64,
        /// Its length.
        prompt_tokens: usize,
        /// Room asked for the completion.
        max_new_tokens: usize,
        /// The limit.
        max_position_embeddings: usize,
    },
    /// The cache's budget does not hold one sequence.
    #[error(
        "prompt {prompt_id} with `sampling.max_new_tokens` takes {needed_bytes} bytes of cache, and `cache_memory` \
         allows {allowed_bytes}: raise `cache_memory`, lower `sampling.max_new_tokens`, or free memory"
    )]
    CacheTooSmall {
        /// Prompt.
        prompt_id: u64,
        /// For its sequence alone.
        needed_bytes: u64,
        /// The budget.
        allowed_bytes: u64,
    },
    /// The policy's logits are NaN or infinite.
    #[error(
        "prompt {prompt_id}, sample {sample_index}, token {position}: the policy's logits are not \
         finite; training has diverged (lower `learning_rate.peak`) or the checkpoint is damaged"
    )]
    NonFiniteLogits {
        /// Prompt.
        prompt_id: u64,
        /// Sample.
        sample_index: usize,
        /// Position in the completion.
        position: usize,
    },
    /// The card failed in a decode step.
    #[error("decoding on the GPU: {0}")]
    Gpu(#[from] kernels::KernelError),
    /// Graders that never return, one too many.
    #[error(
        "more than grading.max_hung ({max_hung}) graders hang at the same time, so nothing can be graded any \
         more; the last: {last}. Mend the grader or raise grading.timeout_secs, then resume"
    )]
    GradersHang {
        /// How many may.
        max_hung: usize,
        /// Task and problem.
        last: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Parquet can't be written or read.
    #[error("{path}: {source}")]
    Parquet {
        /// File.
        path: PathBuf,
        /// Cause.
        source: parquet::errors::ParquetError,
    },
    /// The file is parquet but not a rollout.
    #[error("{path}: {problem}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}
