//! The experts that a forward pass chose, on the host, handed out token by token.

use model::{ForwardOutput, RoutingTrace};
use tch::Kind;

/// The expert ids of a forward pass on the host, handed out row by row.
pub(super) struct RoutingRows {
    num_layers: usize,
    top_k: usize,
    ids: std::vec::IntoIter<i32>,
}

impl RoutingRows {
    pub(super) fn of(output: &ForwardOutput) -> RoutingRows {
        let Some(routing) = &output.routing else {
            return RoutingRows {
                num_layers: 0,
                top_k: 0,
                ids: Vec::new().into_iter(),
            };
        };
        let size = routing.size();
        // i32 halves the transfer of i64 ids; they fit (at most 65535 experts).
        let ids: Vec<i32> =
            Vec::try_from(routing.to_kind(Kind::Int).flatten(0, -1)).expect("a flat i32 tensor");
        RoutingRows {
            num_layers: size[1] as usize,
            top_k: size[2] as usize,
            ids: ids.into_iter(),
        }
    }

    /// The rows of the next `num_tokens` tokens.
    pub(super) fn take(&mut self, num_tokens: usize) -> RoutingTrace {
        let len = num_tokens * self.num_layers * self.top_k;
        RoutingTrace {
            num_layers: self.num_layers,
            top_k: self.top_k,
            ids: self.ids.by_ref().take(len).map(|id| id as u16).collect(),
        }
    }
}
