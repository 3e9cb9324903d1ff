//! Everything that can stop a run, each with what to do about it.

use std::path::PathBuf;

use crate::batch::BatchError;
use crate::checkpoint::CheckpointError;
use crate::optimizer::OptimizerError;
use crate::run_folder::RunFolderError;

/// A run could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// Model files.
    #[error(transparent)]
    Weights(#[from] model::WeightError),
    /// Model folder or file as a whole.
    #[error(transparent)]
    Checkpoint(#[from] model::checkpoint::CheckpointError),
    /// Upcycling or attaching an indexer.
    #[error(transparent)]
    Upcycle(#[from] model::upcycle::UpcycleError),
    /// Tokenizer or chat template.
    #[error(transparent)]
    Tokenizer(#[from] model::tokenizer::TokenizerError),
    /// Generation.
    #[error(transparent)]
    Rollout(#[from] rollout::RolloutError),
    /// Run folder.
    #[error(transparent)]
    RunFolder(#[from] RunFolderError),
    /// Run checkpoint.
    #[error(transparent)]
    RunCheckpoint(#[from] CheckpointError),
    /// Packing.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Optimizer.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Text to train on.
    #[error("{path}: {problem}")]
    Text {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A stage needs the indexer that the policy lacks.
    #[error(
        "stages[{index}].{stage} trains or uses a lightning indexer, but the policy has none; attach one with \
         model.dsa: (index_n_heads: .., index_head_dim: .., index_topk: ..)"
    )]
    NoIndexer {
        /// Index of the stage.
        index: usize,
        /// Its name.
        stage: &'static str,
    },
    /// Too many samples failed through no fault of the policy.
    #[error(
        "{invalid} of {total} samples of this rollout are invalid, more than max_invalid_share ({limit}) allows; \
         the first: {reason}. All are in {path}; mend their cause, then resume: the rollout will be drawn again"
    )]
    InvalidSamples {
        /// Invalid ones.
        invalid: usize,
        /// All.
        total: usize,
        /// Largest share.
        limit: f64,
        /// Why the first is.
        reason: String,
        /// The rollout's file.
        path: PathBuf,
    },
    /// The policy has no token that ends a completion.
    #[error(
        "the policy's config.json names no eos_token_id, so no completion could ever end; add one"
    )]
    NoStopToken,
}
