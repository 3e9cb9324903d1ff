//! Tasks with exact verifiers. Plain data, no tensors.
//!
//! [`TaskKey`] names a task: the same key gives the same bytes on every machine. A prompt shows
//! only [`Task::question`]; the gold answer stays sealed inside the task. [`Tasks`] finds it.
//!
//! [`family`] lists the families and dispatches; each lives in one file, such as `arithmetic/sums.rs`.
//! [`dataset`] reads tasks from the user's own files.
//! [`baselines`] measures what answers without any skill earn, [`examination`] whether a family is fit to train on. `docs/environments.md` has the level
//! tables and the steps for adding a family.

pub mod agent;
mod arithmetic;
pub mod baselines;
mod committed;
pub mod dataset;
mod draw;
mod echo;
pub mod episode;
pub mod examination;
pub mod family;
mod instance;
mod integer_answer;
pub mod interpreter;
pub mod logic;
mod math;
mod programming;
pub mod reward;
mod sandboxed;
pub mod session;
pub mod task;
mod tasks;
pub mod tool;
pub mod verdict;

pub use baselines::Baseline;
pub use dataset::{AnswerGrader, BadRow, Dataset, DatasetConfig, DatasetError, FileIdentity};
pub use episode::{AssistantTurn, Episode, EpisodeLimits, Next, Stop};
pub use examination::{Check, Examination, Examined, Problem};
pub use family::{Family, UnknownFamily};
pub use instance::Domain;
pub use reward::{CompletionFacts, Reward, RewardConfig, RewardWeights};
pub use sandboxed::sandbox;
pub use session::{Called, OpenSession, Reply, Session};
pub use task::{ExternalKey, FamilyKey, RowKey, Split, Task, TaskKey};
pub use tasks::{Equip, ExternalTasks, Tasks};
pub use tool::{ToolCall, ToolDef, ToolMessage, ToolOutput};
pub use verdict::{Fault, FaultKind, Verdict};
