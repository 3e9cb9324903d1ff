//! Which way a document attends to its selected keys on a GPU: the one that takes the least time.
//!
//! Where no query sees more than `topk` keys all are selected, and dense attention is the same. Elsewhere the times of both other ways
//! are estimated, with pairs of a query and a key that each multiplies, and the speeds measured on one H100 by `baleen bench
//! deepseek-v32-layer --dtype bf16 --only sparse-ways` (docs/benchmarks.md), which prints what was chosen beside what was best:
//!   gathered: sum_t min(t, topk) pairs;   masked: L (L + rows) / 2 pairs, each with a part of making and reading the mask.

use super::masked::rows_at_once;

/// The ways to one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Dense attention to every visible key, since all of them are selected.
    Dense,
    /// Dense attention under a mask of what is not selected ([`super::masked`]), in the expanded form of latent attention.
    Masked,
    /// Attention to gathered keys ([`super::attention`]), in the absorbed form of latent attention.
    Gathered,
}

/// Heads of a layer, `[width of keys, width of values]` in the form of each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Of queries.
    pub heads: i64,
    /// Of the keys that are gathered.
    pub gathered_kv_heads: i64,
    /// For gathered keys.
    pub gathered: [i64; 2],
    /// For dense attention.
    pub dense: [i64; 2],
}

/// A document's attention in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// Tokens of the document, with all its branches.
    pub len: i64,
    /// Keys that the query which sees most sees.
    pub most_visible: i64,
    /// Keys that a query attends to at most.
    pub topk: i64,
    /// Whether a backward pass follows.
    pub learns: bool,
    /// Its heads.
    pub shape: HeadShape,
}

/// Operations a second of a pass forward, and of one forward and back.
type Speeds = [f64; 2];
/// Gathered keys, more than 32 heads of V3.2's widths that share keys.
const GATHERED_BY_WGMMA: Speeds = [390e12, 255e12];
/// Other gathered keys, rows of heads that a block has and leaves empty counted.
const GATHERED: Speeds = [92e12, 46e12];
const MASKED: Speeds = [335e12, 205e12];
/// Seconds for the mask of a pair.
const MASK_SECS: [f64; 2] = [18e-12, 0.0];
/// Masks that a backward pass may keep, in bytes.
const MOST_MASK_BYTES: i64 = 1 << 29;

/// The way that is taken.
pub fn choose(problem: &Problem) -> Way {
    if problem.most_visible <= problem.topk {
        return Way::Dense;
    }
    let has_room = !problem.learns || 2 * problem.masked_pairs() <= MOST_MASK_BYTES;
    match has_room && problem.masked_secs() < problem.gathered_secs() {
        true => Way::Masked,
        false => Way::Gathered,
    }
}

impl Problem {
    fn masked_pairs(&self) -> i64 {
        self.len * (self.len + rows_at_once(self.len, self.learns)) / 2
    }

    fn masked_secs(&self) -> f64 {
        let flops = self.shape.heads as f64 * self.flops_of_pair(self.shape.dense);
        let part = usize::from(self.learns);
        self.masked_pairs() as f64 * (flops / MASKED[part] + MASK_SECS[part])
    }

    fn gathered_secs(&self) -> f64 {
        let growing = self.topk.min(self.len);
        let pairs = growing * (growing + 1) / 2 + (self.len - growing) * self.topk;
        let HeadShape {
            heads,
            gathered_kv_heads,
            gathered,
            ..
        } = self.shape;
        let group = heads / gathered_kv_heads;
        let is_wgmma = gathered == [576, 512] && gathered_kv_heads == 1 && heads > 32;
        let (speeds, rows) = match group {
            _ if is_wgmma => (GATHERED_BY_WGMMA, (group + 63) / 64 * 64),
            _ => (GATHERED, (group + 15) / 16 * 16),
        };
        let flops = (gathered_kv_heads * rows) as f64 * self.flops_of_pair(gathered);
        pairs as f64 * flops / speeds[usize::from(self.learns)]
    }

    /// Of one head: scores and values, and in the backward pass scores, gradients of probabilities, queries, keys and values.
    fn flops_of_pair(&self, [dim, v_dim]: [i64; 2]) -> f64 {
        let forward = 2 * (dim + v_dim);
        let backward = 2 * (3 * dim + 2 * v_dim);
        (forward + i64::from(self.learns) * backward) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENT: HeadShape = HeadShape {
        heads: 128,
        gathered_kv_heads: 1,
        gathered: [576, 512],
        dense: [192, 128],
    };
    const GROUPED: HeadShape = HeadShape {
        heads: 32,
        gathered_kv_heads: 4,
        gathered: [128, 128],
        dense: [128, 128],
    };

    fn chosen(len: i64, learns: bool, shape: HeadShape) -> Way {
        choose(&Problem {
            len,
            most_visible: len,
            topk: 2048,
            learns,
            shape,
        })
    }

    #[test]
    fn all_keys_are_selected_up_to_topk() {
        for learns in [false, true] {
            for shape in [LATENT, GROUPED] {
                assert_eq!(chosen(1, learns, shape), Way::Dense);
                assert_eq!(chosen(2048, learns, shape), Way::Dense);
                assert_eq!(chosen(2049, learns, shape), Way::Masked);
            }
        }
    }

    #[test]
    fn branches_count_for_what_a_query_sees_of_them() {
        let mut problem = Problem {
            len: 100_000,
            most_visible: 2048,
            topk: 2048,
            learns: true,
            shape: LATENT,
        };
        assert_eq!(choose(&problem), Way::Dense);
        problem.most_visible = 2049;
        assert_eq!(choose(&problem), Way::Gathered);
    }

    #[test]
    fn latents_are_gathered_where_that_was_measured_to_be_faster() {
        for (len, forward, learning) in [
            (6144, Way::Masked, Way::Masked),
            (8192, Way::Masked, Way::Gathered),
            (16_384, Way::Gathered, Way::Gathered),
        ] {
            assert_eq!(chosen(len, false, LATENT), forward, "{len}");
            assert_eq!(chosen(len, true, LATENT), learning, "{len}");
        }
    }

    #[test]
    fn groups_of_few_heads_are_masked_as_long_as_the_masks_have_room() {
        for (len, way) in [
            (8192, Way::Masked),
            (16_384, Way::Masked),
            (32_768, Way::Gathered),
        ] {
            assert_eq!(chosen(len, true, GROUPED), way, "{len}");
            assert_eq!(chosen(len, false, GROUPED), way, "{len}");
        }
    }
}
