//! Learner, stages, orchestrator, checkpoints, metrics and command line of `baleen`.

pub mod advantage;
pub mod batch;
pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod config_file;
pub mod learner;
pub mod loss;
pub mod metrics;
pub mod optimizer;
pub mod orchestrator;
pub mod run_folder;
pub mod schedule;
pub mod stages;
