//! Operations on whole lists of tensors: the optimizer's inner loop.
//!
//! AdamW with decoupled weight decay, at step t (from 1), for each parameter p with gradient g:
//! p -= lr wd p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
//! p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
//! All of it runs without recording. Which parameters get which rate is the optimizer's business.

use std::ptr;

use tch::{Device, Kind, Tensor};

use crate::error::KernelError;
use crate::ffi;

/// One AdamW update of `params` in place, and of the moments `exp_avgs` and `exp_avg_sqs`.
///
/// `step` counts this update too: 1 for the first. All lists have the same length, and tensors at
/// one place in them the same shape, type and device.
///
/// # Errors
/// [`KernelError::Mismatch`] when they don't, or a parameter or moment is not contiguous.
#[allow(clippy::too_many_arguments)]
pub fn fused_adamw_(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    step: i64,
    lr: f64,
    beta1: f64,
    beta2: f64,
    weight_decay: f64,
    eps: f64,
) -> Result<(), KernelError> {
    let mismatch = |message: String| KernelError::Mismatch {
        operation: "fused_adamw_",
        message,
    };
    for (what, list) in [
        ("gradients", grads),
        ("first moments", exp_avgs),
        ("second moments", exp_avg_sqs),
    ] {
        if list.len() != params.len() {
            let (found, wanted) = (list.len(), params.len());
            return Err(mismatch(format!("{found} {what} for {wanted} parameters")));
        }
        for (i, (tensor, param)) in list.iter().zip(params).enumerate() {
            if tensor.size() != param.size()
                || tensor.kind() != param.kind()
                || tensor.device() != param.device()
            {
                return Err(mismatch(format!(
                    "{what}[{i}] is {tensor:?}, the parameter {param:?}"
                )));
            }
        }
    }
    // libtorch walks the raw memory of the four tensors side by side.
    for (i, tensor) in params.iter().chain(exp_avgs).chain(exp_avg_sqs).enumerate() {
        if !tensor.is_contiguous() {
            let place = i % params.len();
            return Err(mismatch(format!(
                "parameter {place} or one of its moments is not contiguous"
            )));
        }
    }
    let grads: Vec<Tensor> = grads.iter().map(Tensor::contiguous).collect();

    let [p, g, m, v] = [params, &grads[..], exp_avgs, exp_avg_sqs].map(ffi::lend);
    // SAFETY: four lists of pointers borrowed from live tensors, all of length `p.len()`.
    let code = unsafe {
        ffi::baleen_fused_adamw_(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            p.len(),
            step,
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
        )
    };
    ffi::check("fused_adamw_", code)
}

/// Elements whose squares are summed in one go. On a CPU libtorch sums in the tensor's own type: an
/// f32 sum over tens of millions is off by 1e-3, over this many by less than 1e-6. A GPU's kernel has chunks of its own.
const NORM_CHUNK: i64 = 1 << 16;

/// sqrt(sum of the squares of all elements of all tensors), a scalar in the type of the first
/// tensor (f32 or f64); zero for an empty list.
///
/// # Errors
/// [`KernelError::Libtorch`] for tensors of an integer type or on different devices.
pub fn global_norm(tensors: &[Tensor]) -> Result<Tensor, KernelError> {
    if tensors.is_empty() {
        return Ok(Tensor::zeros([], (Kind::Float, Device::Cpu)));
    }
    let chunks: Vec<Tensor> = match tensors[0].device().is_cuda() {
        true => tensors.iter().map(Tensor::detach).collect(),
        false => tensors
            .iter()
            .flat_map(|tensor| tensor.detach().reshape([-1]).split(NORM_CHUNK, 0))
            .collect(),
    };
    let lent = ffi::lend(&chunks);
    let mut result = vec![ptr::null_mut(); lent.len()];
    // SAFETY: pointers borrowed from live tensors; `result` has room for one pointer per chunk.
    let code = unsafe { ffi::baleen_foreach_norm(lent.as_ptr(), lent.len(), result.as_mut_ptr()) };
    ffi::check("global_norm", code)?;
    let norms: Vec<Tensor> = result
        .into_iter()
        // SAFETY: on success the shim handed out every pointer.
        .map(|pointer| unsafe { ffi::take(pointer) }.expect("a norm is a defined tensor"))
        .collect();
    Ok(Tensor::stack(&norms, 0)
        .to_kind(Kind::Double)
        .norm()
        .to_kind(tensors[0].kind()))
}

/// Multiplies every tensor by `factor` in place.
///
/// # Errors
/// [`KernelError::Libtorch`] for tensors of an integer type.
pub fn scale_(tensors: &[Tensor], factor: f64) -> Result<(), KernelError> {
    if tensors.is_empty() {
        return Ok(());
    }
    let lent = ffi::lend(tensors);
    // SAFETY: pointers borrowed from live tensors.
    let code = unsafe { ffi::baleen_foreach_scale_(lent.as_ptr(), lent.len(), factor) };
    ffi::check("scale_", code)
}

/// Copies the numbers of `from[i]` to `to[i]`, rounded to its type.
///
/// # Errors
/// [`KernelError::Libtorch`] for lists or shapes that differ.
pub fn copy_(to: &[Tensor], from: &[Tensor]) -> Result<(), KernelError> {
    if to.len() != from.len() {
        return Err(KernelError::Mismatch {
            operation: "copy_",
            message: format!("{} tensors to {}", from.len(), to.len()),
        });
    }
    if to.is_empty() {
        return Ok(());
    }
    let (to, from) = (ffi::lend(to), ffi::lend(from));
    // SAFETY: pointers borrowed from live tensors, lists of one length.
    let code = unsafe { ffi::baleen_foreach_copy_(to.as_ptr(), from.as_ptr(), to.len()) };
    ffi::check("copy_", code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn assert_close(tensor: &Tensor, expected: &[f64]) {
        let found = Vec::<f64>::try_from(tensor.view([-1]).to_kind(Kind::Double)).unwrap();
        assert_eq!(found.len(), expected.len());
        for (x, y) in found.iter().zip(expected) {
            assert!((x - y).abs() <= 1e-6, "{found:?} is not {expected:?}");
        }
    }

    /// Numbers of torch.optim.AdamW (torch 2.11, f32) with lr 0.1, betas (0.9, 0.95),
    /// weight_decay 0.1, eps 1e-8.
    #[test]
    fn three_adamw_steps_equal_those_of_torch_optim() {
        let params = [
            f32s(&[1.0, -2.0, 3.0]).set_requires_grad(true),
            f32s(&[0.5, -0.25]).view([2, 1]),
        ];
        let zeros = || params.each_ref().map(|p| p.detach().zeros_like());
        let (exp_avgs, exp_avg_sqs) = (zeros(), zeros());
        let grads = [
            ([0.1, 0.2, -0.3], [1.0, 0.0]),
            ([0.2, -0.1, 0.3], [2.0, 0.5]),
            ([0.0, 0.4, -0.6], [-1.0, 0.25]),
        ];
        let expected = [
            (
                [0.88999999, -2.07999992, 3.06999993],
                [0.39500001, -0.24750000],
            ),
            (
                [0.78530145, -2.08603692, 3.03403687],
                [0.29525143, -0.31852102],
            ),
            (
                [0.70243835, -2.13005090, 3.05290103],
                [0.25028080, -0.39498493],
            ),
        ];
        for (i, (grads, expected)) in grads.iter().zip(expected).enumerate() {
            let grads = [f32s(&grads.0), f32s(&grads.1).view([2, 1])];
            let step = i as i64 + 1;
            fused_adamw_(
                &params,
                &grads,
                &exp_avgs,
                &exp_avg_sqs,
                step,
                0.1,
                0.9,
                0.95,
                0.1,
                1e-8,
            )
            .unwrap();
            assert_close(&params[0], &expected.0);
            assert_close(&params[1], &expected.1);
        }
        assert_close(&exp_avgs[0], &[0.0261, 0.0472, -0.0573]);
        assert_close(&exp_avg_sqs[1], &[0.285125, 0.015]);
        assert!(params[0].requires_grad());
    }

    #[test]
    fn transposed_gradient_is_read_by_place_not_by_memory() {
        let run = |grad: Tensor| {
            let param = [Tensor::zeros([2, 3], (Kind::Float, Device::Cpu))];
            let moments = [param[0].zeros_like(), param[0].zeros_like()];
            let (m, v) = moments.split_at(1);
            fused_adamw_(&param, &[grad], m, v, 1, 0.1, 0.0, 0.0, 0.0, 1.0).unwrap();
            let [param] = param;
            param
        };
        let grad = f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view([2, 3]);
        let transposed = grad.tr().contiguous().tr();
        assert!(!transposed.is_contiguous());
        assert_eq!(run(grad), run(transposed));
    }

    #[test]
    fn lists_that_do_not_fit_are_errors() {
        let (a, b) = (f32s(&[1.0]), f32s(&[1.0, 2.0]));
        let update = |grads: &[Tensor]| {
            let m = [a.zeros_like()];
            let v = [a.zeros_like()];
            let params = [a.shallow_clone()];
            fused_adamw_(&params, grads, &m, &v, 1, 0.1, 0.9, 0.95, 0.0, 1e-8)
        };
        assert!(matches!(update(&[]), Err(KernelError::Mismatch { .. })));
        assert!(matches!(
            update(&[b.shallow_clone()]),
            Err(KernelError::Mismatch { .. })
        ));
        assert!(update(&[a.ones_like()]).is_ok());
    }

    #[test]
    fn global_norm_spans_all_tensors() {
        let tensors = [f32s(&[3.0, 0.0]), f32s(&[-4.0]).view([1, 1]), f32s(&[12.0])];
        let norm = global_norm(&tensors).unwrap();
        assert_eq!(norm.kind(), Kind::Float);
        assert_eq!(norm.double_value(&[]), 13.0);
        assert_eq!(global_norm(&[]).unwrap().double_value(&[]), 0.0);
        assert!(matches!(
            global_norm(&[Tensor::from_slice(&[1_i64])]),
            Err(KernelError::Libtorch { .. })
        ));
    }

    #[test]
    fn global_norm_of_millions_of_elements_is_exact() {
        // 2^24 ones and then more: an f32 sum can not grow past 2^24 by ones.
        let num = 20_250_000;
        let ones = Tensor::ones([num], (Kind::Float, Device::Cpu));
        let norm = global_norm(&[ones]).unwrap().double_value(&[]);
        assert!((norm / 4500.0 - 1.0).abs() < 1e-6, "{norm}");
    }

    #[test]
    fn copies_are_rounded_to_the_type_of_their_place() {
        let place = Tensor::zeros([2, 2], (Kind::BFloat16, Device::Cpu));
        let to = [
            place.narrow(0, 1, 1),
            Tensor::zeros([1], (Kind::Float, Device::Cpu)),
        ];
        let from = [
            f32s(&[1.0, 1.0 + 1.0 / 512.0])
                .view([1, 2])
                .set_requires_grad(true),
            f32s(&[2.5]),
        ];
        copy_(&to, &from).unwrap();
        assert_close(&place, &[0.0, 0.0, 1.0, 1.0]);
        assert_close(&to[1], &[2.5]);
        assert!(copy_(&to, &from[..1]).is_err());
    }

    #[test]
    fn scale_multiplies_leaves_in_place() {
        let tensors = [f32s(&[1.0, -2.0]).set_requires_grad(true), f32s(&[4.0])];
        scale_(&tensors, 0.5).unwrap();
        assert_close(&tensors[0], &[0.5, -1.0]);
        assert_close(&tensors[1], &[2.0]);
        scale_(&[], 0.5).unwrap();
    }
}
