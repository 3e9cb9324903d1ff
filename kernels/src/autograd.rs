//! Autograd entry points that tch lacks.
//!
//! `backward` and `grad` take several outputs with their gradients; `custom` makes a graph node of
//! a Rust closure; `checkpoint` trades time for memory: it forgets the activations of a function
//! and computes them again in the backward pass. Second derivatives are left out.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Mutex;

use tch::Tensor;

use crate::error::KernelError;
use crate::ffi;

/// Whether operations on this thread are recorded.
pub fn is_enabled() -> bool {
    // SAFETY: reads a thread-local flag of libtorch.
    unsafe { ffi::baleen_grad_mode_is_enabled() != 0 }
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

/// `f(inputs)` without keeping its activations: they are computed again in the backward pass.
///
/// `f` runs once without recording, and once more, recorded, when the gradients of its outputs
/// arrive. Gradients flow to those `inputs` that require one; parameters captured by `f` get theirs
/// added to `.grad` directly. The second run must compute the same as the first: `f` should not
/// depend on state that changes in between. Outputs for which no gradient arrives (an integer
/// tensor, an unused loss) are left out of the second pass.
///
/// With grad mode off this is just `f(inputs)`. With grad mode on, outputs require a gradient even
/// if no input does, since the parameters inside `f` can not be seen from here.
///
/// # Panics
/// When `f` panics in the forward pass. In the backward pass a panic becomes an error of
/// [`backward`].
pub fn checkpoint(
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Vec<Tensor> + 'static,
) -> Vec<Tensor> {
    if !is_enabled() {
        return f(inputs);
    }
    let outputs = tch::no_grad(|| f(inputs));
    let requires_grad: Vec<bool> = inputs.iter().map(Tensor::requires_grad).collect();
    let saved: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    // An empty leaf keeps the node alive when only parameters inside `f` need gradients.
    let anchor = Tensor::zeros([0], (tch::Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let sources: Vec<&Tensor> = inputs.iter().chain([&anchor]).collect();

    custom(outputs, &sources, move |grads| {
        let leaves: Vec<Tensor> = saved
            .iter()
            .zip(&requires_grad)
            .map(|(input, &needed)| input.detach().set_requires_grad(needed))
            .collect();
        let outputs = tch::with_grad(|| f(&leaves));
        let (outputs, grads): (Vec<Tensor>, Vec<Tensor>) = outputs
            .into_iter()
            .zip(grads)
            .filter(|(output, _)| output.requires_grad())
            .filter_map(|(output, grad)| Some((output, grad?)))
            .unzip();
        if !outputs.is_empty()
            && let Err(error) = self::backward(&outputs, &grads)
        {
            panic!("in a checkpointed function: {error}");
        }
        leaves
            .iter()
            .map(|leaf| Some(leaf.grad()).filter(Tensor::defined))
            .chain([None])
            .collect()
    })
    .expect("fresh outputs of a floating or integer type can always be given a history")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use tch::{Device, Kind};

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
    fn backward_without_history_is_an_error() {
        let error = backward(&[Tensor::from_slice(&[1.0])], &[]).unwrap_err();
        assert!(
            error.to_string().contains("does not require grad"),
            "{error}"
        );
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

    /// Two layers with a captured weight; returns hidden, integer ids and a scalar loss.
    fn block(weight: &Tensor, x: &[Tensor]) -> Vec<Tensor> {
        let hidden = x[0].matmul(weight).tanh() * &x[1];
        let ids = hidden.argmax(-1, false);
        let penalty = hidden.square().sum(hidden.kind());
        vec![hidden, ids, penalty]
    }

    #[test]
    fn checkpoint_has_the_gradients_of_the_plain_function() {
        tch::manual_seed(0);
        let options = (Kind::Double, Device::Cpu);
        let make = |shape: [i64; 2]| Tensor::randn(shape, options).set_requires_grad(true);
        let (x, weight) = (make([3, 4]), make([4, 4]));
        let gate = Tensor::randn([3, 4], options);
        for (hidden_factor, penalty_factor) in [(1.0, 0.5), (1.0, 0.0), (0.0, 0.5)] {
            let loss = |out: &[Tensor]| {
                let mut loss = Tensor::zeros([], options);
                if hidden_factor != 0.0 {
                    loss += out[0].sum(Kind::Double) * hidden_factor;
                }
                if penalty_factor != 0.0 {
                    loss += &out[2] * penalty_factor;
                }
                loss
            };
            let inputs = [&x * 2.0, gate.shallow_clone()];
            backward(&[loss(&block(&weight, &inputs))], &[]).unwrap();
            let expected = [x.grad().copy(), weight.grad().copy()];
            let _ = (x.grad().zero_(), weight.grad().zero_());

            let captured = weight.shallow_clone();
            let inputs = [&x * 2.0, gate.shallow_clone()];
            let out = checkpoint(&inputs, move |x| block(&captured, x));
            assert_eq!(out[1].kind(), Kind::Int64);
            backward(&[loss(&out)], &[]).unwrap();
            assert_eq!(
                values(&x.grad().view([-1])),
                values(&expected[0].view([-1]))
            );
            assert_eq!(
                values(&weight.grad().view([-1])),
                values(&expected[1].view([-1]))
            );
            let _ = (x.grad().zero_(), weight.grad().zero_());
        }
        assert!(!gate.grad().defined());
    }

    #[test]
    fn checkpoint_trains_captured_parameters_when_no_input_needs_a_gradient() {
        let weight = leaf(&[3.0]);
        let captured = weight.shallow_clone();
        let x = Tensor::from_slice(&[4.0]);
        let out = checkpoint(&[x], move |x| vec![&x[0] * &captured * &captured]);
        backward(&out, &[]).unwrap();
        assert_eq!(values(&weight.grad()), [24.0]);
    }

    #[test]
    fn nested_checkpoints_and_views_of_inputs_work() {
        let weight = leaf(&[3.0]);
        let captured = weight.shallow_clone();
        let x = leaf(&[4.0]);
        let out = checkpoint(&[x.shallow_clone()], move |x| {
            let inner = captured.shallow_clone();
            let twice = checkpoint(&[x[0].view([1])], move |x| {
                vec![&x[0] * &inner, x[0].view([1])]
            });
            vec![&twice[0] * &twice[1], x[0].view([1, 1])]
        });
        // w x^2 + x
        backward(&[&out[0] + out[1].view([1])], &[]).unwrap();
        assert_eq!(values(&x.grad()), [25.0]);
        assert_eq!(values(&weight.grad()), [16.0]);
    }

    #[test]
    fn checkpoint_without_grad_mode_runs_the_function_once() {
        let runs = Rc::new(Cell::new(0));
        let counter = runs.clone();
        let out = tch::no_grad(|| {
            checkpoint(&[leaf(&[1.0])], move |x| {
                counter.set(counter.get() + 1);
                vec![&x[0] + 1.0]
            })
        });
        assert_eq!(runs.get(), 1);
        assert!(!out[0].requires_grad());
    }

    #[test]
    fn panic_in_the_second_run_of_a_checkpoint_becomes_an_error() {
        let runs = Cell::new(0);
        let out = checkpoint(&[leaf(&[1.0])], move |x| {
            runs.set(runs.get() + 1);
            assert!(runs.get() < 2, "second run");
            vec![&x[0] + 1.0]
        });
        let error = backward(&out, &[]).unwrap_err().to_string();
        assert!(error.contains("second run"), "{error}");
    }
}
