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
}
