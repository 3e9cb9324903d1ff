//! All integration tests, one binary: they run the program `baleen` as a user does.

// A crate of tests alone: helper functions may fail a test as tests do.
#![allow(clippy::unwrap_used)]

mod asynchronous;
mod bad_checkpoint;
mod bad_graders;
mod bad_input;
mod bad_model;
mod chat;
mod clock;
mod crashes;
mod datasets;
mod determinism;
mod disk_full;
mod doctor;
mod end_to_end;
mod env;
mod event_files;
mod families;
mod fsck;
mod loading;
mod million_rows;
mod profile;
mod program;
mod prometheus;
mod reference;
mod refusal;
mod replay;
mod report;
mod resume;
mod rollout_files;
mod run_files;
mod sandbox;
mod servers;
mod terminal;
mod tools;
mod watch;
