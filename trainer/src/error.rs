//! Everything that can stop a run, each with what to do about it.

use std::path::PathBuf;

use crate::batch::BatchError;
use crate::checkpoint::CheckpointError;
use crate::optimizer::OptimizerError;
use crate::run_folder::RunFolderError;

/// A run could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// The worked solution of a task with tools does not work.
    #[error("{task}: its worked solution can't be played: {problem}")]
    Witness {
        /// Which task.
        task: String,
        /// What went wrong.
        problem: String,
    },
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
    /// Device layer.
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
    /// Recording a profile.
    #[error(transparent)]
    Profile(#[from] kernels::profiler::ProfileError),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Prompts from files.
    #[error(transparent)]
    Dataset(#[from] environments::DatasetError),
    /// Families that run what the policy writes, where it can't be run.
    #[error(
        "{keys}: what the policy writes is run in a sandbox, and none works on this machine: {reason}"
    )]
    NoSandbox {
        /// Where the configuration names them, and which they are.
        keys: String,
        /// Why.
        reason: String,
    },
    /// Another program's tasks.
    #[error(transparent)]
    Server(#[from] adapters::OpenError),
    /// Another program's tools.
    #[error("environments: {environment}: mcp: {fault}")]
    Mcp {
        /// The environment that asks for them.
        environment: String,
        /// What failed.
        fault: environments::Fault,
    },
    /// A language model that grades.
    #[error("environments: {environment}: {source}")]
    Rubric {
        /// The environment that it grades.
        environment: String,
        /// Why there is none.
        source: adapters::RubricError,
    },
    /// Files that are not those that the run began with.
    #[error(
        "{path} is not what it was when the run began ({problem}), so the run can't go on as it would have; put \
         its old content back, or start a new run"
    )]
    DatasetChanged {
        /// File of the dataset.
        path: String,
        /// What differs.
        problem: String,
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
         the first: {reason}. All are in {path}; mend the cause, then resume: a synchronous run draws the same samples again, an \
         asynchronous one takes these, and both grade them anew"
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
    /// A step that can't be worked out again.
    #[error("step {step} can't be replayed: {problem}")]
    NotReplayable {
        /// Step of the run.
        step: u64,
        /// Why, and what would help.
        problem: String,
    },
    /// The operating system gives no thread.
    #[error(
        "can't start the rollout thread: {0}; lower the limit on threads (ulimit -u) or threads in use"
    )]
    Thread(std::io::Error),
    /// The rollout thread ended without being asked to, and without an error.
    #[error("the rollout thread ended; `baleen resume` continues from the newest checkpoint")]
    RolloutEnded,
    /// The rollout thread does nothing any more.
    #[error(
        "waited for the samples of prompts {prompts:?}, but the rollout thread has not moved for {secs:.0} s; \
         `baleen resume` continues from the newest checkpoint"
    )]
    RolloutStalled {
        /// Time without a sign of life.
        secs: f64,
        /// Prompts waited for.
        prompts: Vec<u64>,
    },
    /// The policy has no token that ends a completion.
    #[error(
        "the policy's config.json names no eos_token_id, so no completion could ever end; add one"
    )]
    NoStopToken,
}
