//! Tasks with exact verifiers. Plain data, no tensors.
//!
//! [`TaskKey`] names an instance: the same key gives the same bytes on every machine. A prompt shows
//! only [`Task::question`]; the gold answer stays sealed inside the task.

pub mod arithmetic;
pub mod family;
pub mod task;

pub use family::Family;
pub use task::{Split, Task, TaskKey, Verdict};
