//! The operations of a decode step on a GPU: one new token for each of B sequences, in bf16.
//!
//! Each is stated as a contract, as a slow reference in plain tch, and as a kernel of `kernels/cuda/` that is put on a [`Queue`], so that a whole step can be recorded into a graph. [`selftest`] compares kernels with
//! references. Rows of padding, up to the size that a graph was recorded for, have position -1.

pub mod attention;
pub mod experts;
pub mod rows;
pub mod sampling;
pub mod selftest;
pub mod small_products;

use tch::Tensor;

use crate::cuda::{Argument, Queue, compile};
use crate::error::KernelError;

/// Compiles the kernels that are the same for all sizes, which can't be done while work is recorded.
///
/// # Errors
/// One does not compile.
pub fn prepare(queue: &Queue) -> Result<(), KernelError> {
    for (source, kernels) in [
        (&compile::ROWS, &["embed", "add_rms_norm", "swiglu"][..]),
        (&compile::EXPERTS, &["route", "combine_experts"]),
        (&compile::SAMPLING, &["sample", "sample_truncated"]),
    ] {
        for kernel in kernels {
            queue.prepare(source, &[], kernel)?;
        }
    }
    Ok(())
}

/// No tensor where one may be absent.
const NONE: Argument = Argument::Pointer(0);

/// Numbers that a thread reads at once: widths are multiples of it.
const EIGHT: i64 = 8;

fn int(value: i64) -> Result<Argument, KernelError> {
    let fits = i32::try_from(value).map_err(|_| mismatch(format!("{value} is too large")));
    fits.map(Argument::Int)
}

fn grid(value: i64) -> Result<u32, KernelError> {
    u32::try_from(value).map_err(|_| mismatch(format!("{value} blocks")))
}

fn expect(is_true: bool, what: &str, tensors: &[&Tensor]) -> Result<(), KernelError> {
    if is_true {
        return Ok(());
    }
    let sizes: Vec<Vec<i64>> = tensors.iter().map(|tensor| tensor.size()).collect();
    Err(mismatch(format!("{what}, found {sizes:?}")))
}

fn mismatch(message: String) -> KernelError {
    KernelError::Mismatch {
        operation: "a decode kernel",
        message,
    }
}
