//! Escapes from the sandbox, tried for real under every backend: each test asserts that the attack
//! failed and that the host is as it was. Attacks are Python or shell programs.
//!
//! A backend that does not work on the machine at hand is skipped with its reason.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod files;
mod limits;
mod network;
mod privileges;
mod processes;
mod python;
mod runs;
mod support;
