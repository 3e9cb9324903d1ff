//! What goes into a decode step and what comes out, row by row: word by word of the buffers between host and card.

use kernels::cuda::Launched;
use kernels::decode::sampling::kept_ids;
use kernels::tch::Tensor;

/// Where a row of a step finds the token that it forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepToken {
    /// The host knows it.
    Known(u32),
    /// The step before drew it in this row; only the card knows it yet.
    Drawn(usize),
}

impl StepToken {
    /// As `kernels::decode::rows::embed` reads it.
    pub(super) fn word(self) -> i32 {
        match self {
            StepToken::Known(id) => id.cast_signed(),
            StepToken::Drawn(row) => -1 - row as i32,
        }
    }
}

/// A step under way, which [`super::GraphDecoder::read`] waits for.
#[derive(Debug)]
pub struct LaunchedStep {
    pub(super) launched: Launched,
    /// Sequences.
    pub(super) batch: usize,
    /// Rows of the graph.
    pub(super) rows: usize,
}

/// What a step gave.
#[derive(Debug)]
pub struct DecodedStep<'a> {
    pub(super) words: &'a [i32],
    pub(super) rows: usize,
    /// Layers with experts times experts a token.
    pub(super) routing_width: usize,
    /// Words of the ids that a row was drawn from; 0 where nothing truncates.
    pub(super) kept_words: usize,
    /// Logits `[B, V]` bf16, where the graph does not sample; the next step overwrites them.
    pub logits: Option<Tensor>,
}

/// One row of a step that sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnToken {
    /// Token id.
    pub id: u32,
    /// Log-prob over what it was drawn from (all columns of the logits where nothing truncates) after temperature; NaN
    /// where logits are not finite.
    pub logprob: f32,
    /// Entropy over the allowed ids, nats.
    pub entropy: f32,
}

impl DecodedStep<'_> {
    /// What was drawn in `row`.
    pub fn drawn(&self, row: usize) -> DrawnToken {
        let word = |place: usize| self.words[place * self.rows + row].cast_unsigned();
        DrawnToken {
            id: word(0),
            logprob: f32::from_bits(word(1)),
            entropy: f32::from_bits(word(2)),
        }
    }

    /// The ids that `row` was drawn from, ascending; none where nothing truncates.
    pub fn kept(&self, row: usize) -> Vec<u32> {
        let routing_words = (self.rows * self.routing_width).div_ceil(2);
        let first = 3 * self.rows + routing_words + row * self.kept_words;
        kept_ids(&self.words[first..first + self.kept_words])
    }

    /// The experts of row `row`, `[num_moe_layers, top_k]` flattened.
    pub fn experts(&self, row: usize) -> impl Iterator<Item = u16> + '_ {
        let first = row * self.routing_width;
        (first..first + self.routing_width).map(|index| {
            let word = self.words[3 * self.rows + index / 2].cast_unsigned();
            (word >> (16 * (index % 2))) as u16
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_rows_are_words_below_zero() {
        let words = [
            StepToken::Known(0),
            StepToken::Known(7),
            StepToken::Drawn(0),
            StepToken::Drawn(5),
        ];
        assert_eq!(words.map(StepToken::word), [0, 7, -1, -6]);
    }

    #[test]
    fn words_of_a_step_are_read_row_by_row() {
        let mut words = vec![7, 8, 0, 0, 0, 0];
        words[2] = (-0.5_f32).to_bits().cast_signed();
        words[5] = 2.0_f32.to_bits().cast_signed();
        // Routing of two rows with three numbers each: 1 2 3, 4 5 65535.
        words.extend([0x0002_0001, 0x0004_0003, 0xFFFF_0005_u32.cast_signed()]);
        words.extend([1, 2, 0, 0b1001]);
        let step = DecodedStep {
            words: &words,
            rows: 2,
            routing_width: 3,
            kept_words: 2,
            logits: None,
        };
        let first = step.drawn(0);
        assert_eq!((first.id, first.logprob), (7, -0.5));
        assert_eq!((step.drawn(1).id, step.drawn(1).entropy), (8, 2.0));
        assert_eq!(step.experts(0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(step.experts(1).collect::<Vec<_>>(), [4, 5, 65_535]);
        assert_eq!(step.kept(0), [0, 33]);
        assert_eq!(step.kept(1), [32, 35]);
    }
}
