//! What the indexer learns from while attention is dense: sum_h P[t,h,s] over every key s that t sees.
//!
//! P[t,h,.] = softmax_s(scale q[t,h] . k[s, h / group]) over visible keys, 0 elsewhere (the report's eq. 3 divides the sum by the heads).
//! `kernels/cuda/dense_head_sums.cu` computes it without a tensor of heads x rows x keys. R rows, S keys, D the width of a head.

use std::f64::consts::LN_2;

use tch::{Kind, Tensor};

use super::indexer::Visibility;
use super::{THREADS, address, int, launch, padded, stream};
use crate::cuda::compile::DENSE_HEAD_SUMS;
use crate::cuda::{Argument, DefaultStream};

/// Rows and keys of a block.
const BLOCK: i64 = 64;

/// The sums `[R,S]` f32; `None` where the kernel can't: on CPUs, in types other than bf16, for widths that are no multiple of 16 or too
/// large for the card's shared memory.
///
/// # Shapes
/// q `[R,n_heads,D]` of the rows from `visibility.first` on, k `[S,n_kv,D]` of the tokens up to the last row. No history is kept.
pub fn head_probs_sum(
    q: &Tensor,
    k: &Tensor,
    visibility: Visibility,
    scale: f64,
) -> Option<Tensor> {
    head_probs_sum_of(q, k, visibility, scale, None)
}

/// Of both kernels.
fn shared_bytes(dim: i64) -> [i64; 2] {
    let tile = 2 * BLOCK * padded(dim);
    [3 * tile + 4 * 2 * 2 * BLOCK, 4 * tile]
}

/// Whether the kernels know heads of this width on the stream's card.
pub(super) fn fits(dim: i64, stream: &DefaultStream) -> bool {
    dim % 16 == 0 && shared_bytes(dim)[1] <= stream.most_shared_bytes()
}

/// [`head_probs_sum`], with `lse` `[R,n_heads]` f32 (natural) in the place of the softmaxes' own: where it is that of some of the keys
/// that a row sees, their probabilities are those of a softmax over them alone.
pub(super) fn head_probs_sum_of(
    q: &Tensor,
    k: &Tensor,
    visibility: Visibility,
    scale: f64,
    lse: Option<&Tensor>,
) -> Option<Tensor> {
    let (rows, heads, dim) = q.size3().expect("q is [R, n_heads, D]");
    let (num_keys, kv_heads, _) = k.size3().expect("k is [S, n_kv, D]");
    let stream = stream(q).filter(|stream| k.kind() == q.kind() && fits(dim, stream))?;
    let bytes = shared_bytes(dim);
    let (q, k) = (q.detach().contiguous(), k.detach().contiguous());
    let options = (Kind::Float, q.device());
    let given = lse.map(|lse| (lse / LN_2).contiguous());
    let is_given = given.is_some();
    let lse = given.unwrap_or_else(|| Tensor::empty([rows, heads], options));
    let sums = Tensor::empty([rows, num_keys], options);
    let problem = [
        address(&q, Kind::BFloat16),
        address(&k, Kind::BFloat16),
        address(visibility.branch_starts, Kind::Int64),
        int(rows),
        int(num_keys),
        int(visibility.first),
        int(visibility.trunk_len),
        int(heads),
        int(kv_heads),
        Argument::Float(scale as f32),
        address(&lse, Kind::Float),
        address(&sums, Kind::Float),
    ];
    let constants = [("DIM", dim)];
    let blocks = |items: i64| (items + BLOCK - 1) / BLOCK;
    let kernels = [
        ("dense_lse", [blocks(rows), heads], &problem[..11]),
        (
            "dense_head_sums",
            [blocks(num_keys), blocks(rows)],
            &problem[..],
        ),
    ];
    let kernels = kernels.into_iter().zip(bytes);
    for ((name, grid, arguments), bytes) in kernels.skip(usize::from(is_given)) {
        let kernel = (&DENSE_HEAD_SUMS, &constants[..], name);
        // SAFETY: q is [R, heads, D], k [S, kv_heads, D], branch_starts [R], lse [R, heads], sums [R, S].
        unsafe { launch(stream, kernel, grid, (THREADS, bytes), arguments) };
    }
    Some(sums)
}
