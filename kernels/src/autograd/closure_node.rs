//! A node of the autograd graph made of a Rust closure.
//!
//! Forward values are computed by any means; the closure says how gradients of the outputs become
//! gradients of the inputs. The C++ half is `ClosureNode` in `csrc/shim.cpp`: it owns the closure
//! and calls it through the two `extern "C"` functions below.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Mutex;

use tch::Tensor;

use crate::error::KernelError;
use crate::ffi;

type Backward = dyn FnMut(Vec<Option<Tensor>>) -> Vec<Option<Tensor>>;

/// The closure behind a graph node, on the heap behind a thin pointer. The lock is free whenever
/// the engine calls (a node runs once at a time); should it not be, the call fails.
struct Closure(Mutex<Box<Backward>>);

/// Gives `outputs`, computed by other means from `inputs`, a gradient written in Rust.
///
/// `backward` gets the gradient of each output (`None`: none arrived) and returns that of each
/// input (`None`: zero). It is dropped exactly once: after the backward pass that called it, or
/// with the graph. The tensors returned share the data of `outputs`, whose own history is cut; if
/// grad mode is off or no input requires a gradient they have no history at all. Integer outputs
/// stay without a gradient.
///
/// A panic inside `backward` comes out of the backward pass as an error.
///
/// `backward` may capture what is not Send, such as an `Rc`. In return the tensors handed back, and
/// what is computed from them, must be used, dropped and differentiated on the calling thread only.
///
/// # Errors
/// [`KernelError::Libtorch`] when libtorch refuses the node.
pub fn custom(
    outputs: Vec<Tensor>,
    inputs: &[&Tensor],
    backward: impl FnMut(Vec<Option<Tensor>>) -> Vec<Option<Tensor>> + 'static,
) -> Result<Vec<Tensor>, KernelError> {
    let (out, inp) = (ffi::lend(&outputs), ffi::lend(inputs.iter().copied()));
    let mut result = vec![ptr::null_mut(); out.len()];
    let closure: *mut Closure = Box::into_raw(Box::new(Closure(Mutex::new(Box::new(backward)))));
    // SAFETY: the tensor pointers are borrowed from live tensors, with the lengths of their
    // vectors. `closure` is owned by the shim from here on, which passes it to `call_closure` and
    // once to `drop_closure`.
    //
    // The closure need not be Send although on a GPU libtorch runs nodes on a thread of its own:
    // the thread that started the backward pass is blocked until that pass is over, and the shim
    // drops the closure before it wakes up, so that the two threads never touch what it captured
    // at the same time (tensors themselves count references atomically; the lock in `Closure`
    // orders the accesses). What is left to the caller: graphs stay on the thread that made them,
    // as the documentation above demands.
    let code = unsafe {
        ffi::baleen_custom(
            out.as_ptr(),
            out.len(),
            inp.as_ptr(),
            inp.len(),
            closure.cast(),
            call_closure,
            drop_closure,
            result.as_mut_ptr(),
        )
    };
    ffi::check("custom", code)?;
    // SAFETY: on success the shim handed out every pointer.
    Ok(result
        .into_iter()
        .map(|pointer| unsafe { ffi::take(pointer) }.expect("outputs are defined tensors"))
        .collect())
}

/// Called by the shim when the backward pass reaches the node.
///
/// # Safety
/// As `baleen_backward_fn` in shim.h demands; `closure` comes from [`custom`].
unsafe extern "C" fn call_closure(
    closure: *mut c_void,
    grads: *const ffi::RawTensor,
    num_grads: usize,
    result: *mut ffi::RawTensor,
    num_result: usize,
    message: *mut c_char,
    message_bytes: usize,
) -> c_int {
    // SAFETY: the shim passes the pointer made in `custom`, not yet dropped.
    let closure = unsafe { &*closure.cast::<Closure>() };
    let grads = (0..num_grads)
        // SAFETY: `grads` holds `num_grads` pointers, owned by us from here on.
        .map(|i| unsafe { ffi::take(*grads.add(i)) })
        .collect();
    // Unwinding into C++ is undefined: it ends here. After a panic the closure is not called again
    // (its lock is poisoned), so nobody sees what it left half done.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut backward = closure
            .0
            .try_lock()
            .expect("a node runs once at a time and not after a panic");
        let input_grads = backward(grads);
        assert_eq!(
            input_grads.len(),
            num_result,
            "the backward closure must return one gradient per input"
        );
        input_grads
    }));
    match outcome {
        Ok(input_grads) => {
            for (i, grad) in input_grads.into_iter().enumerate() {
                // SAFETY: `result` has room for `num_result` pointers, the number just checked.
                unsafe { *result.add(i) = ffi::give(grad) };
            }
            0
        }
        Err(panic) => {
            let reason = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            let text = format!("panic in a backward closure: {reason}").replace('\0', " ");
            let num_bytes = text.len().min(message_bytes - 1);
            // SAFETY: `message` has room for `message_bytes`, the terminating zero included.
            unsafe {
                ptr::copy_nonoverlapping(text.as_ptr(), message.cast(), num_bytes);
                *message.add(num_bytes) = 0;
            }
            1
        }
    }
}

/// Called by the shim once, when the closure is no longer needed.
///
/// # Safety
/// `closure` comes from [`custom`] and is not used again.
unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    // SAFETY: made by Box::into_raw in `custom`. A panic while dropping must not reach C++.
    let closure = unsafe { Box::from_raw(closure.cast::<Closure>()) };
    let _ = catch_unwind(AssertUnwindSafe(move || drop(closure)));
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::autograd::{backward, is_enabled};

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor).unwrap()
    }

    /// Counts how often it is dropped.
    struct DropCount(Rc<Cell<u32>>);
    impl Drop for DropCount {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn custom_backward_gets_each_output_gradient_by_position() {
        let x = leaf(&[2.0]);
        let first = x.detach() * 5.0;
        let ids = Tensor::from_slice(&[7_i64]);
        let last = x.detach() * 7.0;
        let out = custom(vec![first, ids, last], &[&x], |grads| {
            assert!(grads[0].is_none() && grads[1].is_none());
            vec![Some(grads[2].as_ref().unwrap() * 7.0)]
        })
        .unwrap();
        assert!(out[0].requires_grad() && !out[1].requires_grad());
        backward(&[&out[2] * 3.0], &[]).unwrap();
        assert_eq!(values(&x.grad()), [21.0]);
    }

    #[test]
    fn custom_closure_is_dropped_once_after_its_backward() {
        let drops = Rc::new(Cell::new(0));
        let counter = DropCount(drops.clone());
        let x = leaf(&[2.0]);
        let out = custom(vec![x.detach() * 1.0], &[&x], move |grads| {
            let _ = &counter;
            grads
        })
        .unwrap();
        assert_eq!(drops.get(), 0);
        backward(&out, &[]).unwrap();
        assert_eq!(drops.get(), 1);
        let again = backward(&out, &[]).unwrap_err();
        assert!(again.to_string().contains("already used"), "{again}");
        drop(out);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn custom_closure_is_dropped_with_an_unused_graph() {
        let drops = Rc::new(Cell::new(0));
        for needs_grad in [true, false] {
            let counter = DropCount(drops.clone());
            let x = Tensor::from_slice(&[2.0]).set_requires_grad(needs_grad);
            let out = custom(vec![x.detach() * 1.0], &[&x], move |grads| {
                let _ = &counter;
                grads
            })
            .unwrap();
            assert_eq!(out[0].requires_grad(), needs_grad);
        }
        assert_eq!(drops.get(), 2);
    }

    #[test]
    fn panic_in_backward_becomes_an_error() {
        let drops = Rc::new(Cell::new(0));
        let counter = DropCount(drops.clone());
        let x = leaf(&[2.0]);
        let out = custom(vec![x.detach() * 1.0], &[&x], move |_| {
            let _ = &counter;
            panic!("no gradient for {}", "you")
        })
        .unwrap();
        let error = backward(&out, &[]).unwrap_err().to_string();
        assert!(error.contains("no gradient for you"), "{error}");
        assert!(is_enabled());
        drop(out);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn wrong_number_of_input_gradients_is_an_error() {
        let x = leaf(&[2.0]);
        let out = custom(vec![x.detach() * 1.0], &[&x], |_| Vec::new()).unwrap();
        let error = backward(&out, &[]).unwrap_err().to_string();
        assert!(error.contains("one gradient per input"), "{error}");
    }
}
