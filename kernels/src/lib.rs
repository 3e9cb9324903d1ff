//! The device layer: the only C++ and the only `unsafe` of the project.
//!
//! Models and reinforcement learning are unknown here. What tch (re-exported as [`tch`]) already
//! offers is used as it is; this crate adds what it lacks:
//!
//! [`autograd`] reaches libtorch's autograd engine: gradients with respect to given inputs, a graph
//! node made of a Rust closure, and activation checkpointing on top of it. [`foreach`] works on
//! whole lists of tensors at once: the fused AdamW update, the global norm, scaling. [`dsa`] holds
//! the operations of sparse attention, each as a contract in math, a slow reference in plain tch
//! and a fast version, and [`fused`] likewise the row operations and the packed attention of a learner,
//! [`decode`] those of a decode step, [`paged`] attention over a cache of pages. [`cuda`] compiles their kernels and records them into graphs.
//! [`runtime`] finds the device once at start-up, [`machine`] says what there is to
//! take, [`gpu_memory`] how much of a GPU was taken. [`profiler`] records a timeline of what was computed.
//! [`upload`](upload()) brings numbers to a device without waiting for it. [`mapped_file`] reads weights without copying them. [`error`] says what can go wrong.
//!
//! The C++ half lies in `csrc/` behind a C interface; `ffi.rs` is its only caller.

pub mod autograd;
pub mod cuda;
pub mod decode;
pub mod dsa;
pub mod error;
mod ffi;
pub mod foreach;
pub mod fused;
pub mod gpu_memory;
#[cfg(test)]
mod gpu_tests;
pub mod machine;
pub mod mapped_file;
pub mod paged;
pub mod profiler;
pub mod runtime;
pub mod tensor_bytes;
mod upload;

pub use error::KernelError;
pub use tch;
pub use upload::upload;
