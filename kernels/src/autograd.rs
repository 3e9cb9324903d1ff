//! Autograd entry points that tch lacks.
//!
//! [`backward`] and [`grad`] take several outputs with their gradients; [`custom`] makes a graph node
//! of a Rust closure; [`checkpoint`] trades time for memory: it forgets the activations of a function
//! and computes them again in the backward pass. Second derivatives are left out.

mod checkpoint;
mod closure_node;

pub use checkpoint::checkpoint;
pub use closure_node::custom;

use std::ptr;

use tch::Tensor;

use crate::error::KernelError;
use crate::ffi;

/// Whether operations on this thread are recorded.
pub fn is_enabled() -> bool {
    // SAFETY: reads a thread-local flag of libtorch.
    unsafe { ffi::baleen_grad_mode_is_enabled() != 0 }
}

/// Makes the gradient of `leaf` undefined, which frees it.
pub fn clear_grad(leaf: &Tensor) {
    let lent = ffi::lend([leaf]);
    // SAFETY: the pointer is lent for the call, which only drops the gradient's own reference.
    let code = unsafe { ffi::baleen_clear_grad(lent[0]) };
    ffi::check("clear_grad", code).expect("dropping a reference does not fail");
}

/// Adds to `.grad` of every leaf w that `outputs` depend on: sum_i d outputs_i / d w * grad_outputs_i.
///
/// `grad_outputs` has one tensor per output, of its shape; it may be empty when all outputs are
/// scalars (ones are taken). The graph is freed.
///
/// # Errors
/// [`KernelError::Libtorch`] when an output has no history, shapes differ, or a closure given to
/// [`custom`] panicked.
pub fn backward(outputs: &[Tensor], grad_outputs: &[Tensor]) -> Result<(), KernelError> {
    let (out, grads) = (ffi::lend(outputs), ffi::lend(grad_outputs));
    // SAFETY: the pointers are borrowed from live tensors, with the lengths of their vectors.
    let code =
        unsafe { ffi::baleen_backward(out.as_ptr(), out.len(), grads.as_ptr(), grads.len()) };
    ffi::check("backward", code)
}

/// sum_i d outputs_i / d inputs_j * grad_outputs_i for each j, without touching any `.grad`.
///
/// `None` where no output depends on the input. `grad_outputs` as in [`backward`]; the graph is
/// freed. A [`checkpoint`] on the way still adds to `.grad` of the parameters inside it.
///
/// # Errors
/// As [`backward`].
pub fn grad(
    outputs: &[Tensor],
    grad_outputs: &[Tensor],
    inputs: &[Tensor],
) -> Result<Vec<Option<Tensor>>, KernelError> {
    let (out, grads, inp) = (
        ffi::lend(outputs),
        ffi::lend(grad_outputs),
        ffi::lend(inputs),
    );
    let mut result = vec![ptr::null_mut(); inp.len()];
    // SAFETY: the pointers are borrowed from live tensors, with the lengths of their vectors;
    // `result` has room for one pointer per input.
    let code = unsafe {
        ffi::baleen_grad(
            out.as_ptr(),
            out.len(),
            grads.as_ptr(),
            grads.len(),
            inp.as_ptr(),
            inp.len(),
            result.as_mut_ptr(),
        )
    };
    ffi::check("grad", code)?;
    // SAFETY: on success the shim handed out every pointer (or null).
    Ok(result
        .into_iter()
        .map(|pointer| unsafe { ffi::take(pointer) })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn grad_mode_is_that_of_the_thread() {
        assert!(is_enabled());
        assert!(!tch::no_grad(is_enabled));
    }

    #[test]
    fn backward_weighs_outputs_by_their_gradients() {
        let x = leaf(&[1.0, 2.0]);
        // d/dx (10 x^2 + 3 x) = 20 x + 3
        backward(
            &[&x * &x, x.shallow_clone() * 1.0],
            &[
                Tensor::from_slice(&[10.0, 10.0]),
                Tensor::from_slice(&[3.0, 3.0]),
            ],
        )
        .unwrap();
        assert_eq!(values(&x.grad()), [23.0, 43.0]);
    }

    #[test]
    fn grad_leaves_dot_grad_alone_and_reports_unused_inputs() {
        let (x, unused) = (leaf(&[3.0]), leaf(&[1.0]));
        let grads = grad(
            &[(&x * &x).sum(Kind::Double)],
            &[],
            &[x.shallow_clone(), unused],
        )
        .unwrap();
        assert_eq!(values(grads[0].as_ref().unwrap()), [6.0]);
        assert!(grads[1].is_none());
        assert!(!x.grad().defined());
    }

    #[test]
    fn cleared_gradient_is_undefined_and_starts_again_from_zero() {
        let x = leaf(&[3.0]);
        for _ in 0..2 {
            backward(&[&x * 2.0], &[]).unwrap();
            assert_eq!(values(&x.grad()), [2.0]);
            clear_grad(&x);
            assert!(!x.grad().defined());
        }
    }

    #[test]
    fn backward_without_history_is_an_error() {
        let error = backward(&[Tensor::from_slice(&[1.0])], &[]).unwrap_err();
        assert!(
            error.to_string().contains("does not require grad"),
            "{error}"
        );
    }
}
