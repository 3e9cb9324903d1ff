//! The keys that a forward pass selected, on the host, handed out token by token.

use std::ops::Range;

use model::{ForwardOutput, SelectionTrace, Transformer};
use tch::Kind;

/// Rows of the tokens of a pass, none where keys were not recorded.
pub(super) struct SelectedRows {
    /// A trace without keys.
    empty: SelectionTrace,
    /// Keys a token and layer in this pass; fewer than the trace's where no token sees more.
    width: usize,
    keys: Vec<i32>,
    next: usize,
}

impl SelectedRows {
    pub(super) fn of(model: &Transformer, output: &ForwardOutput) -> SelectedRows {
        let dsa = model.config().dsa.as_ref();
        let (Some(selected), Some(dsa)) = (&output.selected, dsa) else {
            return SelectedRows {
                empty: SelectionTrace::default(),
                width: 0,
                keys: Vec::new(),
                next: 0,
            };
        };
        let size = selected.size();
        // i32 halves the transfer of i64 positions.
        let keys = Vec::try_from(selected.to_kind(Kind::Int).flatten(0, -1));
        SelectedRows {
            empty: SelectionTrace {
                num_layers: size[1] as usize,
                topk: dsa.index_topk,
                keys: Vec::new(),
            },
            width: size[2] as usize,
            keys: keys.expect("a flat i32 tensor"),
            next: 0,
        }
    }

    /// Appends the next token, at `position` of its sequence, to `trace`.
    pub(super) fn take(&mut self, position: usize, trace: &mut SelectionTrace) {
        let row = self.empty.num_layers * self.width;
        trace.push(position, &self.keys[self.next..self.next + row]);
        self.next += row;
    }

    /// Appends those of the next tokens, which are at `positions` of a sequence, that `trace` does not hold yet.
    pub(super) fn take_new(&mut self, positions: Range<usize>, trace: &mut SelectionTrace) {
        let row = self.empty.num_layers * self.width;
        for position in positions {
            match trace.expected_len(position) == trace.keys.len() {
                true => self.take(position, trace),
                false => self.next += row,
            }
        }
    }

    /// Appends the next tokens, which are at `positions` of a prompt, to `trace`.
    pub(super) fn take_prompt(&mut self, positions: Range<usize>, trace: &mut SelectionTrace) {
        trace.num_layers = self.empty.num_layers;
        trace.topk = self.empty.topk;
        positions.for_each(|position| self.take(position, trace));
    }
}
