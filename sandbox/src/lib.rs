//! Runs untrusted programs without Docker, and refuses where it cannot.
//!
//! [`Sandbox::open`] tries each [`Backend`] by a self-test that attacks from inside and takes the
//! strongest one that holds. [`Sandbox::run`] runs a program to its end and returns an [`Outcome`];
//! [`Sandbox::spawn`] returns a [`Jail`] with pipes for a long session. [`SandboxError`] is a fault
//! of the service, never of the program.
//!
//! The work inside is done by the small program `baleen-sandbox`, which re-executes itself in
//! stages ([`run_stage`]). `docs/sandbox.md` has what is held back by which layer.

mod bench;
mod cgroup;
mod doctor;
mod error;
mod jail;
mod outcome;
mod outputs;
mod processes;
mod python;
mod sandbox;
mod slot;
mod spec;
mod stage;
mod tree;
mod watch;
mod wire;

pub use bench::bench;
pub use doctor::doctor;
pub use error::SandboxError;
pub use jail::{Jail, Line};
pub use outcome::{End, FileOut, Flags, Outcome};
pub use outputs::{Refusal, read_below};
pub use python::{Cell, CellFlags, PythonLimits, PythonSession};
pub use sandbox::{Sandbox, SelfTest, find_launcher};
pub use spec::{Backend, FileIn, JailSpec, Limits};
pub use stage::{Check, run_stage};
