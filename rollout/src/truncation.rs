//! How many of a row's most likely tokens top-k and top-p keep.
//!
//! With p sorted in descending order, top-k keeps a prefix of k tokens and top-p the shortest prefix
//! with sum >= top_p. Only the values at the head of the row are sorted: k of them for top-k, and a
//! growing number for top-p, until every row's prefix has ended. Min-p needs no order and lives with
//! the sampler. Legend: B rows, A allowed ids.

use tch::{Kind, Tensor};

use crate::sampler::{to_f64, to_i64};

/// Tokens sorted first where only top-p limits their number.
const FIRST_CANDIDATES: i64 = 64;
/// Growth of that number for the rows whose prefix is longer.
const WIDENING: i64 = 16;
/// Ids per block when looking for the largest values.
const BLOCK: i64 = 16;

/// The most likely tokens of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefix {
    /// Number of tokens.
    pub len: usize,
    /// Logit of the last of them; tokens outside may share it.
    pub floor: f32,
}

/// What top-k (0 keeps all) and top-p (1 keeps all) leave of each row.
///
/// # Shapes
/// `logits` f32 `[B, A]`, their row maxima `max` `[B, 1]`, `total` = sum exp(logits - max) f64 `[B]`.
pub(crate) fn prefixes(
    logits: &Tensor,
    max: &Tensor,
    total: &Tensor,
    top_k: usize,
    top_p: f64,
) -> Vec<Prefix> {
    let (num_rows, num_ids) = logits.size2().expect("logits are [B, A]");
    let everything = Prefix {
        len: num_ids as usize,
        floor: f32::NEG_INFINITY,
    };
    let mut prefixes = vec![everything; num_rows as usize];
    if top_k == 0 && top_p == 1.0 {
        return prefixes;
    }
    let widest = match top_k as i64 {
        0 => num_ids,
        top_k => top_k.min(num_ids),
    };
    let mut width = match top_p < 1.0 {
        true => widest.min(FIRST_CANDIDATES),
        false => widest,
    };
    let mut pending: Vec<usize> = (0..prefixes.len()).collect();
    let (mut logits, mut max, mut total) = (
        logits.shallow_clone(),
        max.shallow_clone(),
        total.unsqueeze(1),
    );
    loop {
        let values = largest(&logits, width);
        let lens = prefix_lens(&values, &max, &total, top_p);
        let ends: Tensor = lens.clamp_max(width) - 1;
        let floors = to_f64(&values.gather(1, &ends.unsqueeze(1), false));
        let mut longer = Vec::new();
        for (i, (len, floor)) in to_i64(&lens).into_iter().zip(floors).enumerate() {
            if len > width && width < widest {
                longer.push(i);
                continue;
            }
            prefixes[pending[i]] = Prefix {
                len: len.min(width) as usize,
                floor: floor as f32,
            };
        }
        if longer.is_empty() {
            return prefixes;
        }
        let index: Vec<i64> = longer.iter().map(|&i| i as i64).collect();
        let index = Tensor::from_slice(&index).to_device(logits.device());
        logits = logits.index_select(0, &index);
        max = max.index_select(0, &index);
        total = total.index_select(0, &index);
        pending = longer.into_iter().map(|i| pending[i]).collect();
        width = widest.min(width * WIDENING);
    }
}

/// Length of each row's top-p prefix, one more than the width of `values` where it goes on.
fn prefix_lens(values: &Tensor, max: &Tensor, total: &Tensor, top_p: f64) -> Tensor {
    let (num_rows, width) = values.size2().expect("values are [B, width]");
    if top_p == 1.0 {
        return Tensor::full([num_rows], width, (Kind::Int64, values.device()));
    }
    let sums = (values - max).exp_().cumsum(1, Kind::Double) / total;
    // The prefixes that fall short of top_p, and the one after them.
    sums.lt(top_p).sum_dim_intlist(1, false, Kind::Int64) + 1
}

/// The `k` largest values of each row, descending. The blocks with the k largest maxima hold k
/// values at least as large as any outside, so only those are looked into.
fn largest(values: &Tensor, k: i64) -> Tensor {
    let (num_rows, num_ids) = values.size2().expect("values are [B, A]");
    let num_blocks = (num_ids + BLOCK - 1) / BLOCK;
    if k >= num_blocks {
        return values.topk(k, 1, true, true).0;
    }
    let padding = num_blocks * BLOCK - num_ids;
    let padded = match padding {
        0 => values.shallow_clone(),
        _ => values.pad([0, padding], "constant", f64::NEG_INFINITY),
    };
    // Block j holds the ids j, j + num_blocks, ...: its maximum is then a vectorised reduction.
    let blocks = padded.reshape([num_rows, BLOCK, num_blocks]);
    let (_, best) = blocks.amax(1, false).topk(k, 1, true, false);
    let index = best.unsqueeze(1).expand([-1, BLOCK, -1], false);
    let candidates = blocks.gather(2, &index, false).view([num_rows, BLOCK * k]);
    candidates.topk(k, 1, true, true).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::uniform;

    #[test]
    fn block_search_finds_the_largest_values_in_order() {
        // 1003 ids: the last of 63 blocks is cut. Values on a coarse grid, so that many tie.
        let values: Vec<f32> = (0..3 * 1003)
            .map(|i| (uniform(4, i, 0, 0) * 50.0).floor() as f32 - 60.0)
            .collect();
        let tensor = Tensor::from_slice(&values).view([3, 1003]);
        for k in [1, 7, 62, 63, 500] {
            let found = to_f64(&largest(&tensor, k));
            for (row, found) in found.chunks_exact(k as usize).enumerate() {
                let mut sorted: Vec<f64> = values[row * 1003..(row + 1) * 1003]
                    .iter()
                    .map(|&value| f64::from(value))
                    .collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                assert_eq!(found, &sorted[..k as usize], "k {k}");
            }
        }
    }
}
