//! Where a model's tensors come from: one trait, implemented by a Hugging Face folder, a GGUF file,
//! random initialisation, and the upcycling wrapper. Names are always the Hugging Face names.

use std::path::PathBuf;

use kernels::tch::{self, Tensor};

/// A tensor could not be provided.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The source has no tensor of that name.
    #[error("{path}: tensor '{name}' is missing")]
    Missing {
        /// File or folder read.
        path: PathBuf,
        /// Hugging Face name.
        name: String,
    },
    /// The tensor is there with another shape.
    #[error("{path}: tensor '{name}' has shape {found:?}, the config asks for {expected:?}")]
    Shape {
        /// File or folder read.
        path: PathBuf,
        /// Hugging Face name.
        name: String,
        /// Shape on disk.
        found: Vec<i64>,
        /// Shape the config implies.
        expected: Vec<i64>,
    },
    /// The file is damaged, truncated or of an unknown kind.
    #[error("{path}: {problem}")]
    Malformed {
        /// File read.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// Hands out tensors by Hugging Face name.
pub trait WeightSource {
    /// The tensor `name` as f32 on the CPU.
    ///
    /// # Errors
    /// Missing tensor, another shape than `shape`, or a file that can't be read.
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError>;

    /// Writes the tensor `name` to `place`, contiguous f32 of its shape on any device. A source that can
    /// do so without a copy beside it should: thousands of experts' copies leave holes in the heap.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`].
    fn read_into(&mut self, name: &str, place: &Tensor) -> Result<(), WeightError> {
        let tensor = self.tensor(name, &place.size())?;
        tch::no_grad(|| place.shallow_clone().copy_(&tensor));
        Ok(())
    }
}
