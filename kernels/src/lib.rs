//! The device layer: the only C++ and the only `unsafe` of the project.
//!
//! Every operation comes as a contract in math, a slow reference in plain tch, and a fast version.
//! Models and reinforcement learning are unknown here.

pub use tch;
pub mod autograd;
pub mod dsa;
