//! A search for weights that are NaN or infinite, which no forward pass survives.
//!
//! It reads the whole model, one tensor after the other, so it is done on request
//! (`--check-finite`, or `check_finite` in a run's configuration).

use std::path::Path;

use kernels::tch::{Kind, Tensor};

use super::expected_tensors::expected_tensors;
use super::{CheckpointError, listed, open};

/// Reads every tensor of the model at `path`: a folder or a `.gguf` file.
///
/// # Errors
/// A model that can't be opened, or weights that are not finite: every tensor with such weights is
/// named, with how many there are and where the first one is.
pub fn check_finite(path: &Path) -> Result<(), CheckpointError> {
    let (config, mut source, _) = open(path)?;
    let mut found = Vec::new();
    for (name, shape) in expected_tensors(&config) {
        let tensor = source.tensor(&name, &shape)?;
        found.extend(description(&name, &tensor));
    }
    refuse(path, &found)
}

/// The same of weights that were read already, by their names; `path` is where they came from.
///
/// # Errors
/// Weights that are not finite, described as by [`check_finite`].
pub fn check_finite_weights<'a>(
    path: &Path,
    weights: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<(), CheckpointError> {
    let described = |(name, tensor)| description(name, tensor);
    let found: Vec<String> = weights.into_iter().filter_map(described).collect();
    refuse(path, &found)
}

fn refuse(path: &Path, found: &[String]) -> Result<(), CheckpointError> {
    match found.is_empty() {
        true => Ok(()),
        false => Err(CheckpointError::NotFinite {
            path: path.to_path_buf(),
            tensors: listed(found),
        }),
    }
}

/// `'name' (2 of 64, the first at [0, 5])`, or `None` where all is finite.
fn description(name: &str, tensor: &Tensor) -> Option<String> {
    let bad = tensor.isfinite().logical_not();
    let count = bad.sum(Kind::Int64).int64_value(&[]);
    if count == 0 {
        return None;
    }
    let first = bad.flatten(0, -1).to_kind(Kind::Uint8).argmax(0, false);
    let mut rest = first.int64_value(&[]);
    let mut place = Vec::new();
    for dim in tensor.size().iter().rev() {
        place.insert(0, rest % dim);
        rest /= dim;
    }
    let total = tensor.numel();
    Some(format!(
        "'{name}' ({count} of {total}, the first at {place:?})"
    ))
}
