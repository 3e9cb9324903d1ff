//! Index scores of the lightning indexer and their visibility mask.
//!
//! I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s]), products and sums in f32 (bf16 sums flip near ties).
//! Shapes: q [..,Q,H,D], w [..,Q,H], k [..,S,D], I [..,Q,S]. The one key head is shared by all
//! indexer heads. Both scale factors (n_heads^-0.5, head_dim^-0.5) are part of w already.

use tch::{Kind, Tensor};

use super::accumulation_kind;
use crate::autograd;

/// Elements of the `[rows,H,S]` intermediate that are alive at once (256 MB of f32).
const TILE_ELEMENTS: i64 = 1 << 26;

/// I[..,t,s] = sum_j weights[..,t,j] relu(q[..,t,j,:] . k[..,s,:]). Differentiable in all three.
///
/// Beyond a size, rows are worked in tiles whose per-head products are computed again in the
/// backward pass, so that memory grows with Q S, not Q H S.
///
/// # Shapes
/// q `[..,Q,H,D]` f32 or bf16, weights `[..,Q,H]`, k `[..,S,D]` -> f32 `[..,Q,S]` (f64 from f64).
/// Leading dims are the same for all.
pub fn index_scores(q: &Tensor, weights: &Tensor, k: &Tensor) -> Tensor {
    index_scores_tiled(q, weights, k, TILE_ELEMENTS)
}

fn index_scores_tiled(q: &Tensor, weights: &Tensor, k: &Tensor, tile_elements: i64) -> Tensor {
    let dim = q.dim();
    let (num_queries, num_heads) = (q.size()[dim - 3], q.size()[dim - 2]);
    let num_keys = k.size()[dim - 3];
    let leading: i64 = q.size()[..dim - 3].iter().product();
    let elements_per_row = (leading * num_heads * num_keys).max(1);
    let tile = (tile_elements / elements_per_row).max(1);
    if num_queries <= tile {
        return scores_of_tile(q, weights, k);
    }
    let tiles: Vec<Tensor> = (0..num_queries)
        .step_by(tile as usize)
        .map(|start| {
            let rows = tile.min(num_queries - start);
            let inputs = [
                q.narrow(-3, start, rows),
                weights.narrow(-2, start, rows),
                k.shallow_clone(),
            ];
            let mut out =
                autograd::checkpoint(&inputs, |x| vec![scores_of_tile(&x[0], &x[1], &x[2])]);
            out.remove(0)
        })
        .collect();
    Tensor::cat(&tiles, -2)
}

fn scores_of_tile(q: &Tensor, weights: &Tensor, k: &Tensor) -> Tensor {
    let kind = accumulation_kind(q);
    let (q, weights, k) = (q.to_kind(kind), weights.to_kind(kind), k.to_kind(kind));
    // All heads of all queries as rows of one product: [..,Q H,D] x [..,D,S].
    let per_head = q.flatten(-3, -2).matmul(&k.transpose(-1, -2)).relu_();
    let per_head = per_head.unflatten(
        -2,
        [
            weights.size()[weights.dim() - 2],
            weights.size()[weights.dim() - 1],
        ],
    );
    weights.unsqueeze(-2).matmul(&per_head).squeeze_dim(-2)
}

/// [`index_scores`] of each query's selected keys alone, -inf at absent entries. Differentiable in
/// q, weights and k, in tiles as [`index_scores`].
///
/// # Shapes
/// q `[Q,H,D]`, weights `[Q,H]`, k `[S,D]`, selected `[Q,K]` i64 with -1 for absent -> f32 `[Q,K]`.
pub fn selected_index_scores(
    q: &Tensor,
    weights: &Tensor,
    k: &Tensor,
    selected: &Tensor,
) -> Tensor {
    selected_index_scores_tiled(q, weights, k, selected, TILE_ELEMENTS)
}

fn selected_index_scores_tiled(
    q: &Tensor,
    weights: &Tensor,
    k: &Tensor,
    selected: &Tensor,
    tile_elements: i64,
) -> Tensor {
    let (num_queries, num_heads, dim) = q.size3().expect("q is [Q, H, D]");
    let elements_per_row = ((num_heads + dim) * selected.size()[1]).max(1);
    let tile = (tile_elements / elements_per_row).max(1);
    if num_queries <= tile {
        return scores_of_gathered_tile(q, weights, k, selected);
    }
    let tiles: Vec<Tensor> = (0..num_queries)
        .step_by(tile as usize)
        .map(|start| {
            let rows = tile.min(num_queries - start);
            let selected = selected.narrow(0, start, rows);
            let inputs = [
                q.narrow(0, start, rows),
                weights.narrow(0, start, rows),
                k.shallow_clone(),
            ];
            let mut out = autograd::checkpoint(&inputs, move |x| {
                vec![scores_of_gathered_tile(&x[0], &x[1], &x[2], &selected)]
            });
            out.remove(0)
        })
        .collect();
    Tensor::cat(&tiles, 0)
}

fn scores_of_gathered_tile(q: &Tensor, weights: &Tensor, k: &Tensor, selected: &Tensor) -> Tensor {
    let kind = accumulation_kind(q);
    let (num_queries, num_selected) = selected.size2().expect("selected is [Q, K]");
    let keys = k
        .to_kind(kind)
        .index_select(0, &selected.clamp_min(0).view([-1]))
        .view([num_queries, num_selected, -1]);
    let per_head = q.to_kind(kind).bmm(&keys.transpose(1, 2)).relu();
    weights
        .to_kind(kind)
        .unsqueeze(1)
        .bmm(&per_head)
        .squeeze_dim(1)
        .masked_fill(&selected.lt(0), f64::NEG_INFINITY)
}

/// Sets the scores of keys a query does not see to -inf, in place.
///
/// Row r is query t = `query_offset` + r of a document whose first `trunk_len` tokens every branch
/// sees. It sees s when s <= t and (s < trunk_len or s >= branch_starts[r]).
///
/// # Shapes
/// scores `[Q,S]`, branch_starts `[Q]` i64 (0 for a query in the trunk).
pub fn mask_invisible_(
    scores: &mut Tensor,
    query_offset: i64,
    trunk_len: i64,
    branch_starts: &Tensor,
) {
    let (num_queries, num_keys) = scores.size2().expect("scores are [Q, S]");
    let options = (Kind::Int64, scores.device());
    let s = Tensor::arange(num_keys, options);
    let t = Tensor::arange_start(query_offset, query_offset + num_queries, options).unsqueeze(1);
    let of_another_branch = s
        .ge(trunk_len)
        .logical_and(&s.lt_tensor(&branch_starts.to_device(scores.device()).unsqueeze(1)));
    let invisible = s.gt_tensor(&t).logical_or(&of_another_branch);
    let _ = scores.masked_fill_(&invisible, f64::NEG_INFINITY);
}

#[cfg(test)]
mod tests {
    use super::super::{gradient_check::assert_gradient, reference};
    use super::*;
    use tch::Device;

    fn random(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind)
    }

    fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn negative_products_are_cut_before_the_heads_are_summed() {
        // Heads (1,0) and (0,1), keys (2,-3) and (-1,4): relu products 2,0 and 0,4.
        let q = Tensor::from_slice(&[1.0_f32, 0.0, 0.0, 1.0]).view([1, 2, 2]);
        let w = Tensor::from_slice(&[0.5_f32, -1.0]).view([1, 2]);
        let k = Tensor::from_slice(&[2.0_f32, -3.0, -1.0, 4.0]).view([2, 2]);
        let scores = index_scores(&q, &w, &k);
        assert_eq!(
            Vec::<f32>::try_from(scores.view([-1])).unwrap(),
            [1.0, -4.0]
        );
    }

    #[test]
    fn scores_equal_the_reference() {
        tch::manual_seed(1);
        for (lead, queries, keys) in [(vec![], 7, 11), (vec![3], 1, 5), (vec![2, 2], 4, 4)] {
            for kind in [Kind::Float, Kind::BFloat16] {
                let shape = |tail: &[i64]| [&lead[..], tail].concat();
                let q = random(&shape(&[queries, 4, 8]), kind);
                let w = random(&shape(&[queries, 4]), Kind::Float);
                let k = random(&shape(&[keys, 8]), kind);
                let fast = index_scores(&q, &w, &k);
                let slow = reference::index_scores(&q, &w, &k);
                assert_eq!(fast.size(), shape(&[queries, keys]));
                assert_eq!(fast.kind(), Kind::Float);
                assert!(max_difference(&fast, &slow) < 1e-4);
            }
        }
    }

    #[test]
    fn tiles_change_neither_scores_nor_gradients() {
        tch::manual_seed(2);
        let inputs =
            [[7, 3, 4].as_slice(), &[7, 3], &[5, 4]].map(|shape| random(shape, Kind::Double));
        let run = |tile_elements| {
            let leaves = inputs.each_ref().map(|x| x.copy().set_requires_grad(true));
            let scores = index_scores_tiled(&leaves[0], &leaves[1], &leaves[2], tile_elements);
            autograd::backward(&[scores.square().sum(Kind::Double)], &[]).unwrap();
            let grads = leaves.map(|leaf| leaf.grad());
            (scores, grads)
        };
        let (whole, whole_grads) = run(TILE_ELEMENTS);
        let (tiled, tiled_grads) = run(2 * 3 * 5);
        assert!(max_difference(&whole, &tiled) < 1e-12);
        for (a, b) in whole_grads.iter().zip(&tiled_grads) {
            assert!(max_difference(a, b) < 1e-12);
        }
    }

    #[test]
    fn score_gradients_equal_finite_differences() {
        tch::manual_seed(3);
        let inputs =
            [[3, 2, 4].as_slice(), &[3, 2], &[5, 4]].map(|shape| random(shape, Kind::Double));
        assert_gradient(&inputs, |x| index_scores(&x[0], &x[1], &x[2]));
    }

    #[test]
    fn scores_of_selected_keys_are_entries_of_all_scores_with_their_gradients() {
        tch::manual_seed(4);
        let inputs =
            [[7, 3, 4].as_slice(), &[7, 3], &[9, 4]].map(|shape| random(shape, Kind::Double));
        let selected = Tensor::from_slice(&[0_i64, 4, 8, 1, 2, -1]).repeat([7, 1]);
        let run = |whole: bool, tile_elements: i64| {
            let leaves = inputs.each_ref().map(|x| x.copy().set_requires_grad(true));
            let [q, w, k] = &leaves;
            let scores = match whole {
                true => index_scores(q, w, k).gather(1, &selected.clamp_min(0), false),
                false => selected_index_scores_tiled(q, w, k, &selected, tile_elements),
            };
            let present = selected.ge(0);
            let absent_is_hidden = scores.isinf().ne_tensor(&present).all();
            assert!(whole || absent_is_hidden.int64_value(&[]) == 1);
            let chosen = scores.masked_select(&present);
            autograd::backward(&[chosen.square().sum(Kind::Double)], &[]).unwrap();
            let [q, w, k] = leaves.map(|leaf| leaf.grad());
            [chosen.detach(), q, w, k]
        };
        let expected = run(true, TILE_ELEMENTS);
        for tile_elements in [TILE_ELEMENTS, 3 * 7 * 6] {
            for (a, b) in run(false, tile_elements).iter().zip(&expected) {
                assert!(max_difference(a, b) < 1e-12);
            }
        }
    }

    #[test]
    fn a_branch_sees_the_trunk_and_itself_only() {
        // Trunk 0..2, branches 2..4 and 4..5; rows are queries 1..5.
        let mut scores = Tensor::zeros([4, 5], (Kind::Float, Device::Cpu));
        mask_invisible_(&mut scores, 1, 2, &Tensor::from_slice(&[0_i64, 2, 2, 4]));
        let visible: Vec<bool> = Vec::try_from(scores.eq(0.0).view([-1])).unwrap();
        #[rustfmt::skip]
        let expected = [
            true, true, false, false, false,
            true, true, true,  false, false,
            true, true, true,  true,  false,
            true, true, false, false, true,
        ];
        assert_eq!(visible, expected);
        assert_eq!(scores.min().double_value(&[]), f64::NEG_INFINITY);
    }
}
