//! All integration tests, one binary: they run the program `baleen` as a user does.

mod bad_checkpoint;
mod bad_input;
mod bad_model;
mod determinism;
mod disk_full;
mod end_to_end;
mod families;
mod loading;
mod program;
mod refusal;
mod resume;
mod rollout_files;
mod run_files;
