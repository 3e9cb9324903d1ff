//! Expert routing: choose, record, replay.
//!
//! `Routing` is an argument of every forward pass, never a mode of a global. Under `Replay` the
//! recorded experts are forced and the gate weights are computed from the live scores of those
//! experts (report 3.1, Keep Routing), so the gradient still reaches the router.

use kernels::tch::{Kind, Tensor};

/// Experts chosen for the tokens of one sequence; plain data that travels with a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingTrace {
    /// Mixture-of-experts layers.
    pub num_layers: usize,
    /// Experts per token and layer.
    pub top_k: usize,
    /// Expert ids, `[token][layer][k]` flattened.
    pub ids: Vec<u16>,
}

impl RoutingTrace {
    /// Rows (forwarded tokens) recorded.
    pub fn num_tokens(&self) -> usize {
        let row = self.num_layers * self.top_k;
        if row == 0 { 0 } else { self.ids.len() / row }
    }
}

/// What a forward pass does about experts.
#[derive(Debug)]
pub enum Routing {
    /// Choose by the live scores; keep nothing.
    Free,
    /// Choose by the live scores and return the choice in `ForwardOutput::routing`.
    Record,
    /// Force these experts: i64 `[T, num_layers, top_k]`.
    Replay(Tensor),
}

impl Routing {
    /// The recorded experts of one layer, `[T, top_k]` i64, when replaying.
    pub fn layer(&self, layer: usize) -> Option<Tensor> {
        match self {
            Routing::Replay(ids) => Some(ids.select(1, layer as i64).to_kind(Kind::Int64)),
            Routing::Free | Routing::Record => None,
        }
    }
}
