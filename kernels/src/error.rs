//! What can go wrong in this crate.
//!
//! Tensor math with wrong shapes panics inside tch, with the shapes in the message; these are the
//! failures that come back as values.

/// A failed operation of this crate.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// libtorch refused or failed the operation, or a closure it called panicked.
    #[error("{operation}: {message}")]
    Libtorch {
        /// The function of this crate that was called.
        operation: &'static str,
        /// libtorch's reason.
        message: String,
    },
    /// The tensors given don't fit together.
    #[error("{operation}: {message}; pass tensors of matching number, shape and type")]
    Mismatch {
        /// The function of this crate that was called.
        operation: &'static str,
        /// What does not fit.
        message: String,
    },
    /// CUDA beside libtorch can't be used here at all.
    #[error("CUDA graphs and kernels are not available: {reason}")]
    NoCuda {
        /// What is missing, and what to do.
        reason: String,
    },
    /// The CUDA driver or cuBLAS refused.
    #[error("{operation}: {message}")]
    Cuda {
        /// The function of CUDA that failed.
        operation: &'static str,
        /// Its reason.
        message: String,
    },
    /// A CUDA source did not compile.
    #[error("{source_name} does not compile for {arch}:\n{log}")]
    Compile {
        /// File in `kernels/cuda/`.
        source_name: &'static str,
        /// Target.
        arch: String,
        /// What the compiler said.
        log: String,
    },
}
