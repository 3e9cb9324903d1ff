//! Slow references: each formula written as directly as tch allows, materialising everything.
//!
//! Shapes as in [`crate::dsa`]. Only tests should need them; the fast versions must agree, the
//! selection bit for bit.

use tch::{Kind, Tensor};

use super::accumulation_kind;

/// I[..,t,s] = sum_j w[..,t,j] relu(q[..,t,j,:] . k[..,s,:]), through the whole `[..,Q,H,S]`.
///
/// # Shapes
/// q `[..,Q,H,D]`, weights `[..,Q,H]`, k `[..,S,D]` -> `[..,Q,S]`.
pub fn index_scores(q: &Tensor, weights: &Tensor, k: &Tensor) -> Tensor {
    let kind = accumulation_kind(q);
    let (q, weights, k) = (q.to_kind(kind), weights.to_kind(kind), k.to_kind(kind));
    let per_head =
        (q.unsqueeze(-2) * k.unsqueeze(-3).unsqueeze(-3)).sum_dim_intlist(-1, false, kind);
    (per_head.relu() * weights.unsqueeze(-1)).sum_dim_intlist(-2, false, kind)
}

/// The exact top-k by a stable descending sort of each row.
///
/// # Shapes
/// scores `[..,Q,S]` -> i64 `[..,Q,min(topk,S)]`, ascending, -1 last.
pub fn select_topk(scores: &Tensor, topk: i64) -> Tensor {
    let num_keys = scores.size()[scores.dim() - 1];
    let num_selected = topk.min(num_keys);
    let (values, indices) = scores.detach().sort_stable(true, -1, true);
    let absent = values.narrow(-1, 0, num_selected).eq(f64::NEG_INFINITY);
    let (ascending, _) = indices
        .narrow(-1, 0, num_selected)
        .masked_fill(&absent, num_keys)
        .sort(-1, false);
    ascending.masked_fill(&ascending.eq(num_keys), -1)
}

/// Dense attention over all keys, with the scores of keys outside the selection at -inf.
///
/// # Shapes
/// As [`crate::dsa::attend_selected`]: (output `[Q,n_heads,head_dim]`, head sum `[Q,K]`).
pub fn attend_selected(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    selected: &Tensor,
    scale: f64,
) -> (Tensor, Tensor) {
    let kind = accumulation_kind(q);
    let (num_queries, num_keys) = (q.size()[0], k.size()[0]);
    let group = q.size()[1] / k.size()[1];
    let heads = |x: &Tensor| x.to_kind(kind).repeat_interleave_self_int(group, 1, None);
    let (k, v) = (heads(k), heads(v));

    let is_selected = selected
        .unsqueeze(-1)
        .eq_tensor(&Tensor::arange(num_keys, (Kind::Int64, q.device())))
        .any_dim(1, false);
    let scores = Tensor::einsum("qhd,shd->hqs", &[&q.to_kind(kind), &k], None::<i64>) * scale;
    let probs = scores
        .masked_fill(&is_selected.logical_not(), f64::NEG_INFINITY)
        .softmax(-1, kind);
    let output = Tensor::einsum("hqs,shd->qhd", &[&probs, &v], None::<i64>).to_kind(q.kind());

    let summed = probs.detach().sum_dim_intlist(0, false, kind);
    // Column `num_keys` of the padded sums holds the zero that -1 stands for.
    let padded = Tensor::cat(
        &[
            &summed,
            &summed.new_zeros([num_queries, 1], (kind, q.device())),
        ],
        1,
    );
    let place = selected.masked_fill(&selected.lt(0), num_keys);
    (output, padded.gather(1, &place, false))
}
