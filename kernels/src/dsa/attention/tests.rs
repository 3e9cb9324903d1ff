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
        let attended = attend_selected(&leaves[0], &leaves[1], &leaves[2], &selected, 0.5, tile);
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
        let k_cache = random(&[batch * capacity, num_kv, 8], kind);
        let v_cache = random(&[batch * capacity, num_kv, 8], kind);
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
        // Sequence i lies in the rows from i capacity on.
        let firsts = Tensor::arange(batch, (Kind::Int64, Device::Cpu)).unsqueeze(1) * capacity;
        let rows = (&selected + firsts).where_scalarother(&selected.ge(0), -1);
        let fast = attend_selected_cached(&q, &k_cache, &v_cache, &rows, 0.3);
        assert_eq!(fast.kind(), kind);
        for i in 0..batch {
            let (alone, _) = reference::attend_selected(
                &q.narrow(0, i, 1),
                &k_cache.narrow(0, i * capacity, capacity),
                &v_cache.narrow(0, i * capacity, capacity),
                &selected.narrow(0, i, 1),
                0.3,
            );
            assert!(max_difference(&fast.narrow(0, i, 1), &alone) < tolerance);
        }
    }
}

/// Latent attention: one key head, values the leading columns of the keys.
#[test]
fn values_that_are_columns_of_the_keys_equal_values_of_their_own() {
    tch::manual_seed(9);
    for (queries, keys, topk) in [(20, 20, 6), (40, 400, 4)] {
        let q = random(&[queries, 6, 12], Kind::Double);
        let latent = random(&[keys, 1, 12], Kind::Double);
        let selected = causal_selection(queries, keys, topk);
        let run = |shares: bool, tile: usize| {
            let leaves = [&q, &latent].map(|x| x.copy().set_requires_grad(true));
            let own = leaves[1].narrow(2, 0, 8);
            let values = match shares {
                true => Values::KeyPrefix(8),
                false => Values::Own(&own),
            };
            let attended = attend_selected(&leaves[0], &leaves[1], values, &selected, 0.4, tile);
            autograd::backward(&[attended.output.square().sum(Kind::Double)], &[]).unwrap();
            let [q, latent] = leaves.map(|leaf| leaf.grad());
            [attended.output.detach(), attended.head_probs_sum, q, latent]
        };
        let expected = run(false, 1000);
        assert_eq!(expected[0].size(), [queries, 6, 8]);
        for tile in [7, 1000] {
            for (a, b) in run(true, tile).iter().zip(&expected) {
                assert!(max_difference(a, b) < 1e-12);
            }
        }
    }
    let q = random(&[3, 6, 12], Kind::Float);
    let cache = random(&[72, 1, 12], Kind::Float);
    let rows = Tensor::from_slice(&[0i64, 5, 9, 26, 27, -1, 49, -1, -1]).view([3, 3]);
    let own = cache.narrow(2, 0, 8);
    assert_eq!(
        attend_selected_cached(&q, &cache, Values::KeyPrefix(8), &rows, 0.3),
        attend_selected_cached(&q, &cache, &own, &rows, 0.3)
    );
}

#[test]
fn tiles_shrink_with_what_a_query_gathers() {
    let size = |shape: &[i64]| Tensor::empty(shape, (Kind::Float, Device::Cpu));
    let selected = Tensor::zeros([1, 2048], (Kind::Int64, Device::Cpu));
    // DeepSeek-V3.2 at 32K keys: 2048 x (576 + 128) elements a query, of 2^25.
    let (q, k) = (size(&[1, 128, 576]), size(&[32_768, 1, 576]));
    assert_eq!(tile_rows(&q, &k, None, (&selected, true)), 23);
    // At 16K it masks: 128 x 16384 elements.
    assert_eq!(
        tile_rows(&q, &k.narrow(0, 0, 16_384), None, (&selected, false)),
        16
    );
}
