//! RMSNorm, alone or behind a residual sum: s = x + y, h = round(s rsqrt(mean(s^2) + eps)) weight.
//!
//! Statistics in f32. With n = s rsqrt(..) and g = dh weight: ds += rsqrt(..) (g - n mean(g n)), dweight = sum dh n.
//! W is the width of a row.

use tch::{Kind, Tensor};

use super::{EIGHT, address, int, launch, launch_grid, stream};
use crate::autograd::custom;
use crate::cuda::{Argument, DefaultStream};

/// Rows of a block: a warp each.
const ROWS: i64 = 4;
const THREADS: u32 = 128;
/// Blocks of the backward pass; each of their warps sums the weight's gradient over its rows.
const BACKWARD_BLOCKS: i64 = 512;
/// What the kernels' registers hold.
const LARGEST_WIDTH: i64 = 2048;

/// RMSNorm along the last dimension.
///
/// # Shapes
/// `x` `[.., W]`, `weight` `[W]` in the type of `x`; result like `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    match kernel_stream(x, weight) {
        Some(stream) => fused(stream, x, None, weight, eps).1,
        None => rms_norm_reference(x, weight, eps),
    }
}

/// [`rms_norm`], the slow way.
pub fn rms_norm_reference(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let wide = x.to_kind(Kind::Float);
    let mean_square = (&wide * &wide).mean_dim(-1, true, Kind::Float);
    // Rounded before the weight multiplies, as Hugging Face does.
    (wide * (mean_square + eps).rsqrt()).to_kind(x.kind()) * weight
}

/// `(x + y, rms_norm(x + y))`.
///
/// # Shapes
/// `x` and `y` `[.., W]`, `weight` `[W]`.
pub fn add_rms_norm(x: &Tensor, y: &Tensor, weight: &Tensor, eps: f64) -> (Tensor, Tensor) {
    match kernel_stream(x, weight) {
        Some(stream) => fused(stream, x, Some(y), weight, eps),
        None => add_rms_norm_reference(x, y, weight, eps),
    }
}

/// [`add_rms_norm`], the slow way.
pub fn add_rms_norm_reference(
    x: &Tensor,
    y: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> (Tensor, Tensor) {
    let sum = x + y;
    let h = rms_norm_reference(&sum, weight, eps);
    (sum, h)
}

fn kernel_stream(x: &Tensor, weight: &Tensor) -> Option<&'static DefaultStream> {
    let width = x.size()[x.dim() - 1];
    let fits = width % EIGHT == 0 && width <= LARGEST_WIDTH && weight.kind() == x.kind();
    stream(x).filter(|_| fits)
}

/// The sum (or `x`) and its norm.
fn fused(
    stream: &'static DefaultStream,
    x: &Tensor,
    y: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
) -> (Tensor, Tensor) {
    let width = weight.size()[0];
    let constants = [("EIGHTS", (width + 255) / 256)];
    let rows = x.numel() as i64 / width.max(1);
    let (own, factor) = (x.detach().contiguous(), weight.detach().contiguous());
    let other = y.map(|y| y.detach().contiguous());
    assert!(
        other
            .as_ref()
            .is_none_or(|other| other.size() == own.size() && other.kind() == own.kind()),
        "both sides of a residual sum are alike"
    );
    let sum = match &other {
        Some(_) => own.empty_like(),
        None => own.shallow_clone(),
    };
    let (h, scales) = (
        own.empty_like(),
        Tensor::empty([rows], (Kind::Float, x.device())),
    );
    let arguments = [
        address(&own),
        other.as_ref().map_or(Argument::Pointer(0), address),
        address(&factor),
        Argument::Float(eps as f32),
        int(width),
        int(rows),
        address(&sum),
        address(&h),
        address(&scales),
    ];
    // SAFETY: all tensors are [rows, W], but the weight [W] and the scales [rows].
    unsafe {
        launch(
            stream,
            ("rms_norm", &constants),
            [rows, ROWS],
            THREADS,
            &arguments,
        )
    };

    let saved = sum.shallow_clone();
    let backward = move |grad_sum: Option<Tensor>, grad_h: Option<Tensor>| {
        let Some(grad_h) = grad_h else {
            return (grad_sum, None);
        };
        let grad_h = grad_h.contiguous();
        let grad_sum = grad_sum.map(|grad| grad.contiguous());
        let grad_x = saved.empty_like();
        let blocks = BACKWARD_BLOCKS.min((rows + ROWS - 1) / ROWS);
        let parts = Tensor::empty([blocks * ROWS, width], (Kind::Float, saved.device()));
        let arguments = [
            address(&grad_h),
            grad_sum.as_ref().map_or(Argument::Pointer(0), address),
            address(&saved),
            address(&factor),
            address(&scales),
            int(width),
            int(rows),
            address(&grad_x),
            address(&parts),
        ];
        let kernel = ("rms_norm_backward", &constants[..]);
        // SAFETY: as above; gradients are like what they are gradients of.
        unsafe { launch_grid(stream, kernel, [blocks, 1], THREADS, &arguments) };
        let grad_weight = parts.sum_dim_intlist(0, false, Kind::Float);
        (Some(grad_x), Some(grad_weight.to_kind(saved.kind())))
    };
    const ACCEPTED: &str = "outputs in a floating type can be given a history";
    match y {
        Some(y) => {
            let outputs = custom(vec![sum, h], &[x, y, weight], move |grads| {
                let [grad_sum, grad_h] = <[_; 2]>::try_from(grads).expect("two outputs");
                let (grad, grad_weight) = backward(grad_sum, grad_h);
                let again = grad.as_ref().map(Tensor::shallow_clone);
                vec![grad, again, grad_weight]
            });
            let outputs = <[_; 2]>::try_from(outputs.expect(ACCEPTED)).expect("two outputs");
            let [sum, h] = outputs;
            (sum, h)
        }
        None => {
            let outputs = custom(vec![h], &[x, weight], move |grads| {
                let grad_h = grads.into_iter().next().flatten();
                let (grad, grad_weight) = backward(None, grad_h);
                vec![grad, grad_weight]
            });
            let h = outputs.expect(ACCEPTED).remove(0);
            (x.shallow_clone(), h)
        }
    }
}
