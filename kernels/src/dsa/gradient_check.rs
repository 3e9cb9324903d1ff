//! Finite differences against autograd, in f64; for tests.

use tch::{Kind, Tensor};

/// Asserts that for the scalar L = sum(f(inputs) * fixed random weights) the gradient autograd
/// gives for every element of every input equals (L(x + h) - L(x - h)) / 2h.
pub fn assert_gradient(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) {
    let probe = tch::no_grad(|| f(inputs)).rand_like();
    let loss = |inputs: &[Tensor]| (f(inputs) * &probe).sum(Kind::Double);
    let leaves: Vec<Tensor> = inputs
        .iter()
        .map(|input| input.copy().set_requires_grad(true))
        .collect();
    crate::autograd::backward(&[loss(&leaves)], &[]).unwrap();

    let h = 1e-6;
    for (i, leaf) in leaves.iter().enumerate() {
        let analytic = Vec::<f64>::try_from(leaf.grad().reshape([-1])).unwrap();
        for (place, &found) in analytic.iter().enumerate() {
            let nudged = |by: f64| {
                let moved: Vec<Tensor> = inputs.iter().map(Tensor::copy).collect();
                let _ = moved[i].view([-1]).get(place as i64).g_add_scalar_(by);
                tch::no_grad(|| loss(&moved)).double_value(&[])
            };
            let expected = (nudged(h) - nudged(-h)) / (2.0 * h);
            assert!(
                (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "input {i}, element {place}: autograd {found}, finite difference {expected}"
            );
        }
    }
}
