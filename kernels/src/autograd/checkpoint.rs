//! Activation checkpointing: a function whose intermediate tensors are not kept.
//!
//! y = f(x) runs unrecorded; when dL/dy arrives, f runs again, recorded, on detached x, and the
//! inner backward pass gives dL/dx and adds dL/dw to `.grad` of the parameters w inside f. Costs one
//! more forward pass, saves all activations of f. There is no dropout, so no random state is kept.

use tch::Tensor;

use super::{custom, is_enabled};

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
/// [`backward`](super::backward).
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
            && let Err(error) = super::backward(&outputs, &grads)
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
    use crate::autograd::backward;
    use tch::{Device, Kind};

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor).unwrap()
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
