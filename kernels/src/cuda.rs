//! CUDA beside libtorch: kernels compiled at run time, products, graphs of both.
//!
//! What libtorch computes op by op costs some microseconds a launch on the host; a decode step of a small
//! model is bound by that. A [`Queue`] runs kernels of `kernels/cuda/` and cuBLAS products on a stream of its own,
//! on tensors that libtorch allocated, and records them into a [`Graph`] that the driver launches as a whole.
//! Driver, compiler and cuBLAS are found at run time (the program starts without any of them); kernels
//! are compiled for the card at hand and kept on disk ([`compile`]).

pub mod compile;
mod context;
mod default_stream;
mod graph;
pub(crate) mod launch;
mod pinned;
mod queue;
mod step_graph;

pub use context::Cuda;
pub(crate) use default_stream::DefaultStream;
pub use graph::Graph;
pub(crate) use launch::{Argument, Grid};
pub use pinned::Pinned;
pub use queue::{Queue, WORKSPACE_BYTES};
pub use step_graph::{Launched, StepGraph};
