//! All integration tests, one binary: they run the program `baleen` as a user does.

// A crate of tests alone: helper functions may fail a test as tests do.
#![allow(clippy::unwrap_used)]

mod bad_checkpoint;
mod bad_input;
mod bad_model;
mod chat;
mod determinism;
mod disk_full;
mod end_to_end;
mod families;
mod fsck;
mod loading;
mod program;
mod refusal;
mod resume;
mod rollout_files;
mod run_files;
