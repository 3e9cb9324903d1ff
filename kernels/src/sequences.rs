//! Attention over many sequences of different lengths in one call, on a GPU.

use std::ptr;

use tch::{Kind, Tensor};

use crate::autograd;
use crate::error::KernelError;
use crate::ffi;

/// Queries and keys that lie sequence by sequence.
#[derive(Clone, Copy, Debug)]
pub struct SequenceBounds<'a> {
    /// Where each sequence's queries begin, and the end of the last, i32 `[S + 1]`.
    pub query_starts: &'a Tensor,
    /// The same of its keys; no fewer than its queries.
    pub key_starts: &'a Tensor,
    /// Queries and keys of the longest.
    pub longest: [i64; 2],
}

/// softmax(scale q k^T) v within each sequence, where query i of n sees all but the last n - 1 - i keys (flash
/// attention; no score is kept). Differentiable.
///
/// # Shapes
/// `q` `[T, heads, D]`, `k` and `v` `[K, kv_heads, D]` in bf16 on a GPU, D at most 256; result `[T, heads, D]`.
///
/// # Errors
/// libtorch refuses: no GPU, or tensors that don't fit.
pub fn attend_sequences(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bounds: SequenceBounds,
    scale: f64,
) -> Result<Tensor, KernelError> {
    let tensors = ffi::lend([q, k, v, bounds.query_starts, bounds.key_starts]);
    let mut result = ptr::null_mut();
    let [queries, keys] = bounds.longest;
    // SAFETY: five live tensors are lent; the result is taken over below.
    let code =
        unsafe { ffi::baleen_flash_attention(tensors.as_ptr(), queries, keys, scale, &mut result) };
    ffi::check("attend_sequences", code)?;
    // SAFETY: on success the shim handed out the pointer.
    Ok(unsafe { ffi::take(result) }.expect("attention has an output"))
}

/// Rows of `x` by `index`, where some rows are taken many times: their gradients are summed in f32.
///
/// # Shapes
/// `x` `[T, ..]`, `index` i64 `[K]`; result `[K, ..]`.
///
/// # Errors
/// libtorch refuses the node.
pub fn gather_rows(x: &Tensor, index: &Tensor) -> Result<Tensor, KernelError> {
    let rows = x.detach().index_select(0, index);
    let (size, kind, index) = (x.size(), x.kind(), index.shallow_clone());
    let backward = move |grads: Vec<Option<Tensor>>| {
        let grad = grads.into_iter().next().flatten();
        vec![grad.map(|grad| {
            let sum = Tensor::zeros(&size, (Kind::Float, grad.device()));
            sum.index_add(0, &index, &grad.to_kind(Kind::Float))
                .to_kind(kind)
        })]
    };
    autograd::custom(vec![rows], &[x], backward).map(|mut rows| rows.remove(0))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn gathered_rows_sum_their_gradients() {
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0])
            .view([3, 1])
            .set_requires_grad(true);
        let index = Tensor::from_slice(&[2_i64, 0, 2]);
        let rows = gather_rows(&x, &index).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(rows.view([-1])).unwrap(),
            [3.0, 1.0, 3.0]
        );
        let weights = Tensor::from_slice(&[1.0_f32, 10.0, 100.0]).view([3, 1]);
        autograd::backward(&[(rows * weights).sum(Kind::Float)], &[]).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(x.grad().view([-1])).unwrap(),
            [10.0, 0.0, 101.0]
        );
    }

    #[test]
    fn without_a_gpu_libtorchs_reason_comes_back() {
        let x = Tensor::zeros([2, 1, 8], (Kind::Float, Device::Cpu));
        let starts = Tensor::from_slice(&[0_i32, 2]);
        let bounds = SequenceBounds {
            query_starts: &starts,
            key_starts: &starts,
            longest: [2, 2],
        };
        assert!(attend_sequences(&x, &x, &x, bounds, 1.0).is_err());
    }
}
