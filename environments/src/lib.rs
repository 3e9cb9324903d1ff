//! Tasks with exact verifiers. Plain data, no tensors.
//!
//! [`TaskKey`] names an instance: the same key gives the same bytes on every machine. A prompt shows
//! only [`Task::question`]; the gold answer stays sealed inside the task.
//!
//! [`family`] lists the families and dispatches; each lives in one file, such as `arithmetic/sums.rs`.
//! [`baselines`] measures what answers without any skill earn. `docs/environments.md` has the level
//! tables and the steps for adding a family.

mod arithmetic;
pub mod baselines;
mod draw;
mod echo;
pub mod family;
mod instance;
mod integer_answer;
pub mod task;

pub use baselines::Baseline;
pub use family::{Family, UnknownFamily};
pub use task::{Split, Task, TaskKey, Verdict};
