//! Exact top-k selection of keys, the same everywhere.
//!
//! S_t = the `topk` keys of highest score, ties to the lower index, in ascending order; keys at
//! -inf (not visible) are never selected. Rollout and training select with this one function: on
//! ties a selection that differs between them trains a policy that was never sampled from.
//! Shapes: scores [..,Q,S], selection [..,Q,K] with K = min(topk, S).

use tch::{Kind, Tensor};

/// Indices of the `topk` highest scores of each row, ties to the lower index, ascending.
///
/// Rows with fewer than K scores above -inf end in -1. Scores must not be NaN. Has no gradient.
///
/// # Shapes
/// scores `[..,Q,S]` -> i64 `[..,Q,min(topk,S)]`.
pub fn select_topk(scores: &Tensor, topk: i64) -> Tensor {
    let scores = scores.detach();
    let num_keys = *scores.size().last().expect("scores are [.., Q, S]");
    if topk < num_keys
        && !scores.device().is_cuda()
        && let Some(selected) = select_without_ties(&scores, topk)
    {
        return selected;
    }
    select_with_ties(&scores, topk.min(num_keys))
}

/// [`select_topk`] by libtorch's choice, or `None` where a row has a tie between the last key selected
/// and the first left out, among which that choice is arbitrary. Passes over K columns instead of S but
/// for one; looking for ties waits for the device.
fn select_without_ties(scores: &Tensor, topk: i64) -> Option<Tensor> {
    let num_keys = *scores.size().last()?;
    let (highest, keys) = scores.topk(topk + 1, -1, true, true);
    let (last, next) = (highest.select(-1, topk - 1), highest.select(-1, topk));
    let tied = last
        .eq_tensor(&next)
        .logical_and(&last.gt(f64::NEG_INFINITY));
    if tied.any().int64_value(&[]) != 0 {
        return None;
    }
    let absent = highest.narrow(-1, 0, topk).eq(f64::NEG_INFINITY);
    let (ascending, _) = keys
        .narrow(-1, 0, topk)
        .masked_fill(&absent, num_keys)
        .sort(-1, false);
    Some(ascending.masked_fill(&ascending.eq(num_keys), -1))
}

/// [`select_topk`] whatever the scores are, for `num_selected` at most S.
fn select_with_ties(scores: &Tensor, num_selected: i64) -> Tensor {
    let mut shape = scores.size();
    let num_keys = shape.pop().expect("scores are [.., Q, S]");
    let is_selected = if num_selected == num_keys {
        scores.gt(f64::NEG_INFINITY)
    } else {
        // Everything above the k-th highest value is in; what equals it fills up, lowest index
        // first. libtorch's own choice among equals is arbitrary, so only its values are used.
        let (highest, _) = scores.topk(num_selected, -1, true, false);
        let threshold = highest.amin(-1, true);
        let is_above = scores.gt_tensor(&threshold);
        let num_missing = -(is_above.sum_dim_intlist(-1, true, Kind::Int) - num_selected);
        let is_tie = scores
            .eq_tensor(&threshold)
            .logical_and(&threshold.gt(f64::NEG_INFINITY));
        let is_filled_up = is_tie.cumsum(-1, Kind::Int).le_tensor(&num_missing);
        is_above.logical_or(&is_tie.logical_and(&is_filled_up))
    };

    // The n-th selected key of a row goes to column n - 1, all others to a column that is cut off.
    let column = (is_selected.cumsum(-1, Kind::Int64) - 1)
        .masked_fill(&is_selected.logical_not(), num_selected);
    let options = (Kind::Int64, scores.device());
    let keys = Tensor::arange(num_keys, options).expand_as(&column);
    shape.push(num_selected + 1);
    Tensor::full(&shape, -1, options)
        .scatter_(-1, &column, &keys)
        .narrow(-1, 0, num_selected)
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use tch::Device;

    fn select(scores: &[f32], topk: i64) -> Vec<i64> {
        let row = Tensor::from_slice(scores).view([1, -1]);
        Vec::try_from(select_topk(&row, topk).view([-1])).unwrap()
    }

    const NONE: f32 = f32::NEG_INFINITY;

    #[test]
    fn highest_scores_come_in_ascending_key_order() {
        assert_eq!(select(&[0.1, 5.0, -2.0, 7.0, 6.0], 3), [1, 3, 4]);
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(select(&[1.0, 2.0, 1.0, 3.0, 1.0], 3), [0, 1, 3]);
        assert_eq!(select(&[0.0; 6], 4), [0, 1, 2, 3]);
        assert_eq!(select(&[-0.0, 0.0, -0.0, 0.0], 2), [0, 1]);
    }

    #[test]
    fn invisible_keys_are_absent_and_last() {
        assert_eq!(select(&[NONE, 1.0, NONE, 2.0, NONE], 3), [1, 3, -1]);
        assert_eq!(select(&[3.0, NONE, 1.0], 9), [0, 2, -1]);
        assert_eq!(select(&[NONE, NONE], 1), [-1]);
    }

    #[test]
    fn only_ties_at_the_boundary_take_the_long_way() {
        let row = |scores: &[f32]| Tensor::from_slice(scores).view([1, -1]);
        let short = |scores: &[f32]| {
            select_without_ties(&row(scores), 2)
                .map(|s| Vec::<i64>::try_from(s.view([-1])).unwrap())
        };
        assert_eq!(short(&[1.0, 3.0, 2.0, 2.0]), None);
        assert_eq!(short(&[1.0, 3.0, 3.0, 1.0]), Some(vec![1, 2]));
        assert_eq!(short(&[NONE, NONE, 3.0, NONE]), Some(vec![2, -1]));
        assert_eq!(short(&[-0.0, 3.0, 0.0, NONE]), None);
    }

    #[test]
    fn selection_has_no_gradient() {
        let scores = Tensor::from_slice(&[1.0_f32, 2.0])
            .view([1, 2])
            .set_requires_grad(true);
        assert!(!select_topk(&scores, 1).requires_grad());
    }

    #[test]
    fn selection_equals_the_stable_sort_bit_for_bit() {
        tch::manual_seed(4);
        let options = (Kind::Float, Device::Cpu);
        for (shape, topk) in [
            (vec![9, 40], 7),
            (vec![3, 5, 33], 16),
            (vec![4, 8], 8),
            (vec![4, 8], 20),
        ] {
            let smooth = Tensor::randn(&shape, options);
            // Few distinct values, zeros of both signs among them.
            let coarse = (&smooth * 1.5).round();
            let sparse = smooth.relu() * Tensor::rand(&shape, options).gt(0.5);
            let hidden =
                smooth.masked_fill(&Tensor::rand(&shape, options).gt(0.2), f64::from(NONE));
            let constant = smooth.zeros_like();
            for scores in [smooth, coarse, sparse, hidden, constant] {
                let expected = reference::select_topk(&scores, topk);
                assert_eq!(select_topk(&scores, topk), expected, "{scores}");
                let num_selected = topk.min(*shape.last().unwrap());
                assert_eq!(
                    select_with_ties(&scores, num_selected),
                    expected,
                    "{scores}"
                );
            }
        }
    }
}
