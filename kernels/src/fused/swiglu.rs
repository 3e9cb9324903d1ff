//! SwiGLU: out = silu(gate) up, where one tensor holds gate and up beside each other. W is the width of each.

use tch::{Kind, Tensor};

use super::{EIGHT, address, int, launch, stream};
use crate::autograd::custom;
use crate::cuda::Argument;

const THREADS: u32 = 256;

/// silu(gate) up.
///
/// # Shapes
/// `both` `[T, 2 W]`, gate before up; result `[T, W]`.
pub fn swiglu(both: &Tensor) -> Tensor {
    let (rows, double) = both.size2().expect("both is [T, 2 W]");
    let width = double / 2;
    let Some(stream) = stream(both).filter(|_| width % EIGHT == 0) else {
        return swiglu_reference(both);
    };
    let saved = both.detach().contiguous();
    let out = Tensor::empty([rows, width], (Kind::BFloat16, both.device()));
    let eights = rows * width / EIGHT;
    let items = [eights, i64::from(THREADS)];
    let arguments = [
        address(&saved),
        int(width),
        Argument::Long(eights),
        address(&out),
    ];
    // SAFETY: [rows, 2 W] to [rows, W].
    unsafe { launch(stream, ("swiglu", &[]), items, THREADS, &arguments) };
    let outputs = custom(vec![out], &[both], move |grads| {
        let grad = grads.into_iter().next().flatten().map(|grad| {
            let (grad, grad_both) = (grad.contiguous(), saved.empty_like());
            let arguments = [
                address(&grad),
                address(&saved),
                int(width),
                Argument::Long(eights),
                address(&grad_both),
            ];
            // SAFETY: as above.
            unsafe { launch(stream, ("swiglu_backward", &[]), items, THREADS, &arguments) };
            grad_both
        });
        vec![grad]
    });
    outputs
        .expect("an output in a floating type can be given a history")
        .remove(0)
}

/// [`swiglu`], the slow way.
pub fn swiglu_reference(both: &Tensor) -> Tensor {
    let halves = both.chunk(2, -1);
    halves[0].silu() * &halves[1]
}
