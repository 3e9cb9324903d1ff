//! All integration tests, one binary: they run the program `baleen` as a user does.

mod bad_input;
mod determinism;
mod disk_full;
mod end_to_end;
mod program;
mod resume;
mod rollout_files;
mod run_files;
