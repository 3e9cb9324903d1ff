//! Expert routing: choose, record, replay.
//!
//! scores s = softmax(x W^T) or sigmoid(x W^T), in f32;  S = top-k of s, ties to the lower expert;
//! gate g_e = s_e / sum_{S} s for e in S.
//! [`Routing`] is an argument of every forward pass, never a mode of a global. Under `Replay` the
//! recorded experts are S and the gates come from the live scores of those experts (report 3.1,
//! Keep Routing), so the gradient still reaches the router.

use kernels::tch::{self, Kind, Tensor};

use crate::config::{MoeConfig, ScoringFunc};
use crate::parameter::Parameter;

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
        self.ids.len().checked_div(row).unwrap_or(0)
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
            Routing::Replay(ids) => Some(ids.select(1, layer as i64)),
            Routing::Free | Routing::Record => None,
        }
    }
}

/// The router of one layer.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) gate: Parameter,
    pub(crate) config: MoeConfig,
}

/// Experts and gates of T tokens.
#[derive(Debug)]
pub(crate) struct Routed {
    /// Expert ids, `[T, top_k]` i64.
    pub(crate) experts: Tensor,
    /// Gate weights, `[T, top_k]` f32, rows sum to 1.
    pub(crate) gates: Tensor,
    /// Under replay: how many of the T * top_k recorded experts free routing would choose now.
    pub(crate) agreeing: Option<Tensor>,
}

impl Router {
    /// Routes `x` `[T, hidden_size]`; `recorded` `[T, top_k]` forces the experts.
    pub(crate) fn route(&self, x: &Tensor, recorded: Option<&Tensor>) -> Routed {
        let logits = x
            .to_kind(Kind::Float)
            .linear(&self.gate.weight_f32(), None::<&Tensor>);
        let scores = match self.config.scoring_func {
            ScoringFunc::Softmax => logits.softmax(-1, Kind::Float),
            ScoringFunc::Sigmoid => logits.sigmoid(),
        };
        let top_k = self.config.num_experts_per_tok as i64;
        let choose = || {
            // A stable sort, because top-k promises no order among ties.
            tch::no_grad(|| {
                scores
                    .sort_stable(true, -1, true)
                    .1
                    .narrow(-1, 0, top_k)
                    .contiguous()
            })
        };
        let (experts, agreeing) = match recorded {
            None => (choose(), None),
            Some(recorded) => {
                let free = choose();
                let same = free
                    .unsqueeze(-1)
                    .eq_tensor(&recorded.unsqueeze(-2))
                    .any_dim(-1, false);
                (recorded.shallow_clone(), Some(same.sum(Kind::Int64)))
            }
        };
        let chosen = scores.gather(-1, &experts, false);
        let gates = &chosen / (chosen.sum_dim_intlist(-1, true, Kind::Float) + 1e-20);
        Routed {
            experts,
            gates,
            agreeing,
        }
    }
}
