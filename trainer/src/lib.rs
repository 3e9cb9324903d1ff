//! Learner, stages, orchestrator, checkpoints, metrics and command line of `baleen`.

pub mod advantage;
pub mod batch;
pub mod bench;
pub mod checkpoint;
pub mod commands;
pub mod config;
mod config_error;
pub mod config_file;
mod config_problems;
pub mod error;
pub mod evaluation;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod optimizer;
pub mod orchestrator;
pub mod policy;
pub mod progress;
pub mod prompts;
pub mod resume_check;
mod ron_text;
pub mod run_folder;
pub mod schedule;
pub mod session;
pub mod stages;
pub mod summary;
pub mod text;
