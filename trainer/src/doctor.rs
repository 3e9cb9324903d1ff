//! Proof, before a run, that rollout and learner agree.
//!
//! The engine samples a few of the run's prompts; the learner computes the same tokens in its packed pass
//! with replay. [`observe`] measures how far the two lie apart and, where that is too far, what is left of it
//! under each of a list of suppositions; [`diagnose`] makes findings of that, each failure with its likely
//! cause. Around it stand checks of tokenizer and chat template, graders, memory and machine:
//! [`examine`] runs them all. `docs/doctor.md` explains every line.

pub mod conversation;
mod diagnose;
mod effects;
mod examination;
mod finding;
pub mod gap;
pub mod limits;
mod machine;
mod network;
pub mod observation;
mod observe;
mod pass;
mod rewards;
mod temperature;

pub use diagnose::diagnose;
pub use examination::examine;
pub use finding::{Finding, State};
pub use observe::{Players, observe};

#[cfg(test)]
mod tests;
