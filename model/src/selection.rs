//! Which keys the indexer selected: record, replay.
//!
//! [`Selection`] is an argument of every forward pass, as [`Routing`](crate::Routing) is. Runs select
//! freely: rollout and training select with one exact function, and `index_topk` positions a token and
//! layer (4 bytes each; half a megabyte a token at DeepSeek-V3.2's sizes) are too much to carry along.
//! Recorded and replayed, they tell apart what the indexer contributes to a difference between sampler
//! and trainer. Positions are those in a token's own sequence, whatever document it is packed into.

use std::ops::Range;

use kernels::tch::{Kind, Tensor};

use crate::context::DocumentContext;

/// What a forward pass with sparse attention does about the keys of each token.
#[derive(Debug)]
pub enum Selection {
    /// Select by the live scores; keep nothing.
    Free,
    /// Select by the live scores and return the choice in `ForwardOutput::selected`.
    Record,
    /// Attend to these keys: i64 `[T, num_layers, K]`, positions ascending, then -1 for absent ones.
    /// Tokens of documents in which no token sees more than `index_topk` keys attend to all they see.
    Replay(Tensor),
}

impl Selection {
    /// The same for one layer: `Replay` holds `[T, K]`.
    pub(crate) fn layer(&self, layer: usize) -> Selection {
        match self {
            Selection::Free => Selection::Free,
            Selection::Record => Selection::Record,
            Selection::Replay(keys) => Selection::Replay(keys.select(1, layer as i64)),
        }
    }
}

/// Keys selected for the tokens of one sequence; plain data that travels with a sample.
///
/// A token at position p sees p + 1 keys. Up to `topk` of them it attends to all, and nothing is kept;
/// from position `topk` on there is a row a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectionTrace {
    /// Layers; 0 where nothing was recorded.
    pub num_layers: usize,
    /// Keys per token and layer.
    pub topk: usize,
    /// Positions, ascending within a row, `[token - topk][layer][topk]` flattened.
    pub keys: Vec<u32>,
}

impl SelectionTrace {
    /// Number of `keys` in a whole trace of `num_tokens` tokens.
    pub fn expected_len(&self, num_tokens: usize) -> usize {
        num_tokens.saturating_sub(self.topk) * self.num_layers * self.topk
    }

    /// Appends the token at `position`: its rows `[layer][width]`, flattened.
    pub fn push(&mut self, position: usize, rows: &[i32]) {
        if position >= self.topk {
            self.keys.extend(rows.iter().map(|&key| key as u32));
        }
    }

    /// The rows of `tokens`, as [`Selection::Replay`] wants them: `[token][layer][width]` flattened.
    ///
    /// # Panics
    /// A token that was not recorded, or a `width` too small for its keys.
    pub fn rows(&self, tokens: Range<usize>, width: usize) -> Vec<i64> {
        let mut rows = Vec::with_capacity(tokens.len() * self.num_layers * width);
        for token in tokens {
            for layer in 0..self.num_layers {
                let end = rows.len() + width;
                if token < self.topk {
                    rows.extend(0..=token as i64);
                } else {
                    let first = ((token - self.topk) * self.num_layers + layer) * self.topk;
                    let keys = &self.keys[first..first + self.topk];
                    rows.extend(keys.iter().map(|&key| i64::from(key)));
                }
                assert!(rows.len() <= end, "width {width} for token {token}");
                rows.resize(end, -1);
            }
        }
        rows
    }
}

/// Every key that the tokens `first..first + rows` of `document` see, as positions, `[rows, width]`.
pub(crate) fn all_in_sight(
    document: &DocumentContext,
    first: i64,
    rows: i64,
    width: i64,
) -> Tensor {
    let positions = document.positions(first, rows).unsqueeze(1);
    let keys = Tensor::arange(width, (Kind::Int64, positions.device())).unsqueeze(0);
    let is_unseen = keys.gt_tensor(&positions);
    keys.expand_as(&is_unseen).masked_fill(&is_unseen, -1)
}

/// `keys` `[rows, K]` with absent ones added or left out at the end of the rows, `[rows, width]`.
pub(crate) fn of_width(keys: &Tensor, width: i64) -> Tensor {
    match width - keys.size()[1] {
        missing if missing > 0 => keys.pad([0, missing], "constant", -1.0),
        _ => keys.narrow(1, 0, width),
    }
}

/// How many recorded keys there are and how many of them free selection chooses, `[2]` i64, over the
/// tokens that see more than `topk` keys.
///
/// # Shapes
/// `own` and `recorded` `[rows, K]`, indices below `num_keys` or -1; `positions` `[rows]`.
pub(crate) fn agreement(
    own: &Tensor,
    recorded: &Tensor,
    positions: &Tensor,
    topk: i64,
    num_keys: i64,
) -> Tensor {
    let members = |keys: &Tensor| {
        let (rows, _) = keys.size2().expect("keys are [rows, K]");
        Tensor::zeros([rows, num_keys + 1], (Kind::Bool, keys.device()))
            .scatter_value(1, &keys.masked_fill(&keys.lt(0), num_keys), 1)
            .narrow(1, 0, num_keys)
            .logical_and(&positions.ge(topk).unsqueeze(1))
    };
    let recorded = members(recorded);
    let both = recorded.logical_and(&members(own));
    Tensor::stack(&[recorded.sum(Kind::Int64), both.sum(Kind::Int64)], 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers of top 2; tokens 0 and 1 see at most two keys.
    fn trace() -> SelectionTrace {
        let mut trace = SelectionTrace {
            num_layers: 2,
            topk: 2,
            keys: Vec::new(),
        };
        for (position, rows) in [[0, -1, 0, -1], [0, 1, 0, 1], [0, 2, 1, 2], [1, 3, 0, 3]]
            .iter()
            .enumerate()
        {
            trace.push(position, rows);
        }
        trace
    }

    #[test]
    fn a_trace_keeps_the_rows_of_tokens_that_see_more_than_they_may_select() {
        let trace = trace();
        assert_eq!(trace.keys, [0, 2, 1, 2, 1, 3, 0, 3]);
        assert_eq!(trace.expected_len(4), 8);
        assert_eq!(trace.expected_len(2), 0);
        assert_eq!(trace.expected_len(1), 0);
    }

    #[test]
    fn rows_of_a_trace_are_those_that_were_recorded() {
        let rows = trace().rows(1..4, 2);
        assert_eq!(rows, [0, 1, 0, 1, 0, 2, 1, 2, 1, 3, 0, 3]);
        assert_eq!(trace().rows(0..1, 3), [0, -1, -1, 0, -1, -1]);
        assert_eq!(trace().rows(3..4, 3), [1, 3, -1, 0, 3, -1]);
    }

    #[test]
    fn agreement_counts_the_keys_of_tokens_that_really_select() {
        let own = Tensor::from_slice2(&[[0i64, -1], [0, 1], [0, 2], [1, 2]]);
        let recorded = Tensor::from_slice2(&[[0i64, -1], [0, 1], [1, 2], [0, 3]]);
        let positions = Tensor::arange(4, (Kind::Int64, own.device()));
        let counts = agreement(&own, &recorded, &positions, 2, 4);
        assert_eq!(Vec::<i64>::try_from(counts).unwrap(), [4, 1]);
    }
}
