//! Grouped-query attention over the selected keys only.
//!
//! P[t,h,j] = softmax_j(scale q[t,h] . k[S_t[j], h / group]);  o[t,h] = sum_j P[t,h,j] v[S_t[j], h / group].
//! Products and softmax in f32 (f64 from f64), output in the type of q. Shapes: q [Q,n_heads,head_dim],
//! k and v [S,n_kv,head_dim], n_heads = n_kv group, S_t = selected [Q,K] with -1 for absent entries.
//! Every query must have at least one selected key (it sees itself); a row of nothing but -1 gives NaN.

use tch::{Kind, Tensor};

use super::accumulation_kind;
use crate::autograd;

/// Up to this many keys for each selected one, masking beats gathering: copying a key and a value
/// per selection, and adding up their gradients, costs more than scores that are thrown away.
/// (One CPU thread, 9 heads of 64, K = 64, forward and backward: 4 ms against 20 ms at S = 200,
/// 8 against 10 at S = 500, 13 against 12 at S = 1000.) So bounded, the masked scores of a tile
/// take less memory than the copies would.
const MASKED_KEYS_PER_SELECTED: i64 = 8;

/// What [`attend_selected`] returns.
#[derive(Debug)]
pub struct Attended {
    /// Attention output, `[Q,n_heads,head_dim]`, in the type of q.
    pub output: Tensor,
    /// sum_h P[t,h,j], `[Q,K]` f32, detached; 0 at absent entries. Sums to n_heads along K.
    pub head_probs_sum: Tensor,
}

/// Attention of each query over its selected keys, for training. Differentiable in q, k and v.
///
/// Works `tile` queries at a time; with more than one tile, each is computed again in the backward
/// pass. Memory beyond the inputs grows with tile K, never with Q S.
///
/// # Shapes
/// q `[Q,n_heads,head_dim]`, k and v `[S,n_kv,head_dim]`, selected `[Q,K]` i64, -1 for absent.
pub fn attend_selected(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    selected: &Tensor,
    scale: f64,
    tile: usize,
) -> Attended {
    let (num_queries, tile) = (q.size()[0], tile.max(1) as i64);
    let kind = accumulation_kind(q);
    let (k, v) = (k.to_kind(kind), v.to_kind(kind));
    if num_queries <= tile {
        return attend_tile(q, &k, &v, selected, scale);
    }
    let (outputs, sums): (Vec<Tensor>, Vec<Tensor>) = (0..num_queries)
        .step_by(tile as usize)
        .map(|start| {
            let rows = tile.min(num_queries - start);
            let selected = selected.narrow(0, start, rows);
            let inputs = [
                q.narrow(0, start, rows),
                k.shallow_clone(),
                v.shallow_clone(),
            ];
            let mut attended = autograd::checkpoint(&inputs, move |x| {
                let tile = attend_tile(&x[0], &x[1], &x[2], &selected, scale);
                vec![tile.output, tile.head_probs_sum]
            })
            .into_iter();
            let output = attended.next().expect("the first of two outputs");
            let sum = attended.next().expect("the second of two outputs");
            (output, sum.detach())
        })
        .unzip();
    Attended {
        output: Tensor::cat(&outputs, 0),
        head_probs_sum: Tensor::cat(&sums, 0),
    }
}

/// One tile by the cheaper way. Both ways compute the same.
fn attend_tile(q: &Tensor, k: &Tensor, v: &Tensor, selected: &Tensor, scale: f64) -> Attended {
    let (num_keys, num_selected) = (k.size()[0], selected.size()[1]);
    if num_keys <= MASKED_KEYS_PER_SELECTED * num_selected {
        attend_masked(q, k, v, selected, scale)
    } else {
        attend_gathered(q, k, v, selected, scale)
    }
}

/// One tile by gathering the selected keys and values of each query.
fn attend_gathered(q: &Tensor, k: &Tensor, v: &Tensor, selected: &Tensor, scale: f64) -> Attended {
    let (num_queries, num_heads, head_dim) = q.size3().expect("q is [Q, n_heads, head_dim]");
    let (num_keys, num_kv, _) = k.size3().expect("k is [S, n_kv, head_dim]");
    let num_selected = selected.size()[1];
    let kind = k.kind();

    // Row s n_kv + h of [S n_kv, head_dim] is key head h of token s: one gather gives
    // [Q,n_kv,K,head_dim] without a transpose. Absent entries read token 0 and are masked below.
    let heads = Tensor::arange(num_kv, (Kind::Int64, q.device())).unsqueeze(1);
    let rows = (selected.clamp_min(0) * num_kv).unsqueeze(1) + heads;
    let rows = rows.view([-1]);
    let gather = |x: &Tensor| {
        x.reshape([num_keys * num_kv, -1])
            .index_select(0, &rows)
            .view([num_queries * num_kv, num_selected, -1])
    };
    let q_rows = q
        .to_kind(kind)
        .reshape([num_queries * num_kv, num_heads / num_kv, head_dim]);
    let scores = absent_bias(selected, num_kv, kind).baddbmm(
        &q_rows,
        &gather(k).transpose(1, 2),
        1.0,
        scale,
    );
    let probs = scores.softmax(-1, kind);
    let output = probs.bmm(&gather(v)).view([num_queries, num_heads, -1]);
    let head_probs_sum = probs
        .detach()
        .view([num_queries, num_heads, num_selected])
        .sum_dim_intlist(1, false, kind);
    Attended {
        output: output.to_kind(q.kind()),
        head_probs_sum,
    }
}

/// One tile by attending to all keys, with those outside the selection at -inf.
fn attend_masked(q: &Tensor, k: &Tensor, v: &Tensor, selected: &Tensor, scale: f64) -> Attended {
    let (num_queries, num_heads, head_dim) = q.size3().expect("q is [Q, n_heads, head_dim]");
    let (num_keys, num_kv, _) = k.size3().expect("k is [S, n_kv, head_dim]");
    let group = num_heads / num_kv;
    let kind = k.kind();

    // Column `num_keys` takes what absent entries write.
    let absent = selected.lt(0);
    let bias = Tensor::full(
        [num_queries, num_keys + 1],
        f64::NEG_INFINITY,
        (kind, q.device()),
    )
    .scatter_value_(1, &selected.masked_fill(&absent, num_keys), 0.0)
    .narrow(1, 0, num_keys);
    // The queries of one key head as rows of one product: [n_kv, Q group, head_dim].
    let q_rows = (q.to_kind(kind) * scale)
        .reshape([num_queries, num_kv, group, head_dim])
        .transpose(0, 1)
        .reshape([num_kv, num_queries * group, head_dim]);
    let mut scores = q_rows
        .bmm(&k.permute([1, 2, 0]))
        .view([num_kv, num_queries, group, num_keys]);
    scores += bias.unsqueeze(1);
    let probs = scores.softmax(-1, kind);
    let output = probs
        .view([num_kv, num_queries * group, num_keys])
        .bmm(&v.transpose(0, 1))
        .view([num_kv, num_queries, group, -1])
        .transpose(0, 1)
        .reshape([num_queries, num_heads, -1]);
    let head_probs_sum = probs
        .detach()
        // One dim at a time: over both at once libtorch is ten times slower.
        .sum_dim_intlist(0, false, kind)
        .sum_dim_intlist(1, false, kind)
        .gather(1, &selected.clamp_min(0), false)
        .masked_fill(&absent, 0.0);
    Attended {
        output: output.to_kind(q.kind()),
        head_probs_sum,
    }
}

/// 0 where an entry is present and -inf where it is absent: `[rows,K]` -> `[rows num_kv,1,K]`.
fn absent_bias(selected: &Tensor, num_kv: i64, kind: Kind) -> Tensor {
    let (num_rows, num_selected) = selected.size2().expect("selected is [rows, K]");
    Tensor::zeros([num_rows, 1, 1, num_selected], (kind, selected.device()))
        .masked_fill(
            &selected.lt(0).view([num_rows, 1, 1, num_selected]),
            f64::NEG_INFINITY,
        )
        .expand([num_rows, num_kv, 1, num_selected], false)
        .reshape([num_rows * num_kv, 1, num_selected])
}

/// Attention of one new query per sequence over the selected entries of its cache, for decoding.
///
/// Pass the caches whole along C: a view narrowed there has to be copied.
///
/// # Shapes
/// q `[B,n_heads,head_dim]`, caches `[B,n_kv,C,head_dim]`, selected `[B,K]` i64, -1 for absent
/// -> `[B,n_heads,head_dim]`.
pub fn attend_selected_cached(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    selected: &Tensor,
    scale: f64,
) -> Tensor {
    let (batch, num_heads, head_dim) = q.size3().expect("q is [B, n_heads, head_dim]");
    let (_, num_kv, capacity, _) = k_cache.size4().expect("caches are [B, n_kv, C, head_dim]");
    let num_selected = selected.size()[1];
    let kind = accumulation_kind(q);

    let first_rows = Tensor::arange(batch * num_kv, (Kind::Int64, q.device())) * capacity;
    let rows = first_rows.view([batch, num_kv, 1]) + selected.clamp_min(0).unsqueeze(1);
    let rows = rows.view([-1]);
    let gather = |cache: &Tensor| {
        cache
            .reshape([batch * num_kv * capacity, -1])
            .index_select(0, &rows)
            .view([batch * num_kv, num_selected, -1])
            .to_kind(kind)
    };
    let q_rows = q
        .to_kind(kind)
        .reshape([batch * num_kv, num_heads / num_kv, head_dim]);
    let scores = absent_bias(selected, num_kv, kind).baddbmm(
        &q_rows,
        &gather(k_cache).transpose(1, 2),
        1.0,
        scale,
    );
    scores
        .softmax(-1, kind)
        .bmm(&gather(v_cache))
        .view([batch, num_heads, -1])
        .to_kind(q.kind())
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
        (a.to_kind(Kind::Double) - b.to_kind(Kind::Double))
            .abs()
            .max()
            .double_value(&[])
    }

    /// A causal selection of `topk` keys a query: early rows are short and end in -1.
    fn causal_selection(num_queries: i64, num_keys: i64, topk: i64) -> Tensor {
        let mut scores = Tensor::randn([num_queries, num_keys], (Kind::Float, Device::Cpu));
        let starts = Tensor::zeros([num_queries], (Kind::Int64, Device::Cpu));
        super::super::mask_invisible_(&mut scores, num_keys - num_queries, num_keys, &starts);
        super::super::select_topk(&scores, topk)
    }

    #[test]
    fn softmax_runs_over_the_selected_keys_only() {
        // Scores ln 1, ln 3 and (not selected) ln 100: probabilities 1/4 and 3/4.
        let q = Tensor::from_slice(&[2.0_f32]).view([1, 1, 1]);
        let k = Tensor::from_slice(&[1.0_f32, 100.0, 3.0])
            .log()
            .view([3, 1, 1]);
        let v = Tensor::from_slice(&[4.0_f32, 1000.0, 8.0]).view([3, 1, 1]);
        let selected = Tensor::from_slice(&[0_i64, 2, -1]).view([1, 3]);
        let attended = attend_selected(&q, &k, &v, &selected, 0.5, 8);
        assert!((attended.output.double_value(&[0, 0, 0]) - 7.0).abs() < 1e-5);
        let sums = Vec::<f64>::try_from(attended.head_probs_sum.view([-1])).unwrap();
        assert!((sums[0] - 0.25).abs() < 1e-6 && (sums[1] - 0.75).abs() < 1e-6);
        assert_eq!(sums[2], 0.0);
    }

    #[test]
    fn attention_equals_the_reference() {
        tch::manual_seed(5);
        for (heads, num_kv, queries, keys, topk) in [
            (9, 3, 20, 20, 6),
            (4, 1, 7, 30, 5),
            (2, 2, 12, 12, 50),
            (6, 3, 40, 400, 4),
        ] {
            for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
                // Heads outermost in memory: views that are not contiguous must do.
                let q = random(&[heads, queries, 8], kind).transpose(0, 1);
                let k = random(&[num_kv, keys, 8], kind).transpose(0, 1);
                let v = random(&[keys, num_kv, 8], kind);
                let selected = causal_selection(queries, keys, topk);
                let (output, sum) = reference::attend_selected(&q, &k, &v, &selected, 0.3);
                for tile in [1, 5, 1000] {
                    let fast = attend_selected(&q, &k, &v, &selected, 0.3, tile);
                    assert_eq!(fast.output.kind(), kind);
                    assert_eq!(fast.head_probs_sum.kind(), Kind::Float);
                    assert!(max_difference(&fast.output, &output) < tolerance);
                    assert!(max_difference(&fast.head_probs_sum, &sum) < 1e-5);
                }
            }
        }
    }

    #[test]
    fn tiles_do_not_change_gradients() {
        tch::manual_seed(6);
        let inputs = [[11, 6, 4], [11, 3, 4], [11, 3, 4]].map(|shape| random(&shape, Kind::Double));
        let selected = causal_selection(11, 11, 4);
        let run = |tile| {
            let leaves = inputs.each_ref().map(|x| x.copy().set_requires_grad(true));
            let attended =
                attend_selected(&leaves[0], &leaves[1], &leaves[2], &selected, 0.5, tile);
            assert!(!attended.head_probs_sum.requires_grad());
            autograd::backward(&[attended.output.square().sum(Kind::Double)], &[]).unwrap();
            leaves.map(|leaf| leaf.grad())
        };
        for (a, b) in run(100).iter().zip(&run(3)) {
            assert!(max_difference(a, b) < 1e-12);
        }
    }

    #[test]
    fn attention_gradients_equal_finite_differences() {
        tch::manual_seed(7);
        for (num_keys, topk) in [(5, 3), (40, 2)] {
            let inputs = [[5, 4, 2], [num_keys, 2, 2], [num_keys, 2, 2]]
                .map(|shape| random(&shape, Kind::Double));
            let selected = causal_selection(5, num_keys, topk);
            assert_gradient(&inputs, |x| {
                attend_selected(&x[0], &x[1], &x[2], &selected, 0.7, 8).output
            });
        }
    }

    #[test]
    fn cached_attention_equals_attention_of_each_sequence() {
        tch::manual_seed(8);
        let (batch, heads, num_kv, capacity, topk) = (4, 6, 3, 24, 5);
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let q = random(&[batch, heads, 8], kind);
            let k_cache = random(&[batch, num_kv, capacity, 8], kind);
            let v_cache = random(&[batch, num_kv, capacity, 8], kind);
            // Sequences of length 2, 9, 16, 23.
            let mut scores = Tensor::randn([batch, capacity], (Kind::Float, Device::Cpu));
            let starts = Tensor::zeros([batch], (Kind::Int64, Device::Cpu));
            for i in 0..batch {
                let mut row = scores.narrow(0, i, 1);
                let start = starts.narrow(0, i, 1);
                super::super::mask_invisible_(&mut row, 1 + 7 * i, capacity, &start);
            }
            scores = scores.contiguous();
            let selected = super::super::select_topk(&scores, topk);
            let fast = attend_selected_cached(&q, &k_cache, &v_cache, &selected, 0.3);
            assert_eq!(fast.kind(), kind);
            for i in 0..batch {
                let (alone, _) = reference::attend_selected(
                    &q.narrow(0, i, 1),
                    &k_cache.get(i).transpose(0, 1),
                    &v_cache.get(i).transpose(0, 1),
                    &selected.narrow(0, i, 1),
                    0.3,
                );
                assert!(max_difference(&fast.narrow(0, i, 1), &alone) < tolerance);
            }
        }
    }
}
