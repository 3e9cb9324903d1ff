//! DSA's indexer losses (report 2.1.1, eq. 3 and 4).
//!
//! target p[t, s] = (1/H) sum_h P_h[t, s], the head-summed main attention, L1-normalised, detached;
//! L_I = sum_t KL( p[t, .] || softmax(I[t, .]) ).
//! Dense warm-up: over all visible keys. Sparse stage: P_h is the softmax restricted to the selected
//! set, and so is the softmax of I. Sums over tokens; the learner divides by the tokens of the step.

use kernels::tch::{self, Kind, Tensor};

use crate::context::DocumentContext;
use crate::indexer::{IndexerStates, document_scores};

/// Query rows whose dense probabilities are alive at once.
const DENSE_TILE: i64 = 256;

/// `sum_t KL(target || softmax(scores))` over entries with finite `scores`.
///
/// # Shapes
/// `target` `[Q, K]` f32, rows sum to 1 over the finite entries; `scores` `[Q, K]` f32. Scalar.
pub fn kl_to_target(target: &Tensor, scores: &Tensor) -> Tensor {
    let absent = scores.eq(f64::NEG_INFINITY);
    let log_q = scores
        .log_softmax(-1, Kind::Float)
        .masked_fill(&absent, 0.0);
    let log_p = target.clamp_min(1e-10).log();
    (target * (log_p - log_q)).sum(Kind::Float)
}

/// Loss on the selected set. `head_probs_sum` `[Q, K]` is the head-summed softmax over `selected`.
pub(crate) fn sparse_loss(
    scores: &Tensor,
    selected: &Tensor,
    head_probs_sum: &Tensor,
    num_heads: i64,
) -> Tensor {
    let chosen = scores
        .gather(-1, &selected.clamp_min(0), false)
        .masked_fill(&selected.lt(0), f64::NEG_INFINITY);
    kl_to_target(&(head_probs_sum.detach() / num_heads as f64), &chosen)
}

/// Loss of one document under dense attention.
///
/// # Shapes
/// `q` `[L, heads, head_dim]` and `k` `[L, kv_heads, head_dim]` of the main attention, after RoPE.
pub(crate) fn dense_loss(
    states: &IndexerStates,
    document: &DocumentContext,
    q: &Tensor,
    k: &Tensor,
    softmax_scale: f64,
) -> Tensor {
    let mut total = Tensor::zeros([] as [i64; 0], (Kind::Float, q.device()));
    let mut first = 0;
    while first < document.len {
        let rows = DENSE_TILE.min(document.len - first);
        let scores = document_scores(states, document, first, rows);
        let target = tch::no_grad(|| {
            let invisible = scores.eq(f64::NEG_INFINITY);
            mean_head_probs(&q.narrow(0, first, rows), k, &invisible, softmax_scale)
        });
        total += kl_to_target(&target, &scores);
        first += rows;
    }
    total
}

/// Softmax attention averaged over heads, `[Q, S]` f32.
fn mean_head_probs(q: &Tensor, k: &Tensor, invisible: &Tensor, softmax_scale: f64) -> Tensor {
    let (heads, kv_heads) = (q.size()[1], k.size()[1]);
    let q = q.to_kind(Kind::Float).transpose(0, 1);
    let k = k
        .to_kind(Kind::Float)
        .transpose(0, 1)
        .repeat_interleave_self_int(heads / kv_heads, 0, None);
    let scores = q.matmul(&k.transpose(1, 2)) * softmax_scale;
    scores
        .masked_fill(invisible, f64::NEG_INFINITY)
        .softmax(-1, Kind::Float)
        .mean_dim(0, false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &Tensor, expected: &[f64]) {
        let found = Vec::<f64>::try_from(found.to_kind(Kind::Double).flatten(0, -1)).expect("flat");
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{found:?} against {expected:?}");
        }
    }

    /// Two heads (.1 .2 .3 .4), (.7 .1 .1 .1): p = (.4 .15 .2 .25); I = (.3 -1 2 .7).
    #[test]
    fn kl_and_its_gradient_equal_the_worked_example() {
        let target = Tensor::from_slice(&[0.4f32, 0.15, 0.2, 0.25]).view([1, 4]);
        let scores = Tensor::from_slice(&[0.3f32, -1.0, 2.0, 0.7])
            .view([1, 4])
            .set_requires_grad(true);
        let loss = kl_to_target(&target, &scores);
        loss.backward();
        close(&loss, &[0.544249020]);
        close(
            &scores.grad(),
            &[-0.278615791, -0.116918944, 0.464450774, -0.068916040],
        );
    }

    /// Golden numbers of the Megatron order: heads renormalised inside the selected set, then summed.
    #[test]
    fn sparse_loss_restricts_each_head_to_the_selected_set() {
        let scores = Tensor::from_slice(&[1.0f32, 0.2, -0.3]).view([1, 3]);
        let selected = Tensor::from_slice(&[0i64, 1]).view([1, 2]);
        let heads = [[0.2, 0.5], [0.6, 0.2]].map(|[a, b]: [f64; 2]| [a / (a + b), b / (a + b)]);
        let sum = [heads[0][0] + heads[1][0], heads[0][1] + heads[1][1]].map(|p| p as f32);
        close(
            &sparse_loss(
                &scores,
                &selected,
                &Tensor::from_slice(&sum).view([1, 2]),
                2,
            ),
            &[0.0643056618506],
        );
    }

    #[test]
    fn absent_entries_carry_no_loss() {
        let scores = Tensor::from_slice(&[0.4f32, 0.0]).view([1, 2]);
        let selected = Tensor::from_slice(&[0i64, -1]).view([1, 2]);
        let sum = Tensor::from_slice(&[2f32, 0.0]).view([1, 2]);
        close(&sparse_loss(&scores, &selected, &sum, 2), &[0.0]);
    }
}
