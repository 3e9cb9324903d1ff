//! Expert routing: choose, record, replay.
//!
//! scores s = softmax(x W^T) or sigmoid(x W^T), in f32;  choice c = s + bias (DeepSeek-V3's `noaux_tc`: the
//! bias balances loads and acts on the choice alone);  with groups of neighbouring experts, c = -inf
//! outside the `topk_group` groups whose two best experts sum highest;  S = top-k of c, ties to the lower
//! expert;  gate g_e = factor s_e / (sum_{S} s + 1e-20) for e in S, undivided without `norm_topk_prob`.
//! [`Routing`] is an argument of every forward pass, never a mode of a global. Under `Replay` the
//! recorded experts are S and the gates come from the live scores of those experts (report 3.1,
//! Keep Routing), so the gradient still reaches the router.

use kernels::decode::experts::Gating;
use kernels::fused;
use kernels::fused::route::route;
use kernels::tch::{self, Kind, Tensor};

use crate::config::{MoeConfig, ScoringFunc};
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::weights::WeightError;

/// Experts chosen for the tokens of one sequence; plain data that travels with a sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingTrace {
    /// Layers with experts.
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
    /// Force these experts: i64 `[T, num_moe_layers, top_k]`.
    Replay(Tensor),
}

impl Routing {
    /// The recorded experts of one layer, counted among those with experts, `[T, top_k]` i64, when
    /// replaying.
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
    gate: Parameter,
    /// `e_score_correction_bias`, never trained: the sampler chooses with it, the learner replays.
    correction_bias: Option<Parameter>,
    config: MoeConfig,
}

/// Experts and gates of T tokens.
#[derive(Debug)]
pub(crate) struct Routed {
    /// Expert ids, `[T, top_k]` i64.
    pub(crate) experts: Tensor,
    /// Gate weights, `[T, top_k]` f32.
    pub(crate) gates: Tensor,
    /// Under replay: how many of the T * top_k recorded experts free routing would choose now.
    pub(crate) agreeing: Option<Tensor>,
}

impl Router {
    /// Loads `{prefix}.gate`.
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &MoeConfig,
        hidden_size: usize,
    ) -> Result<Router, WeightError> {
        let (gate, bias) = (
            format!("{prefix}.gate.weight"),
            format!("{prefix}.gate.e_score_correction_bias"),
        );
        let experts = config.num_experts;
        Ok(Router {
            gate: loader.load(&gate, ParameterGroup::Main, &[experts, hidden_size])?,
            correction_bias: match config.correction_bias {
                true => Some(loader.load(&bias, ParameterGroup::Frozen, &[experts])?),
                false => None,
            },
            config: config.clone(),
        })
    }

    pub(crate) fn top_k(&self) -> i64 {
        self.config.num_experts_per_tok as i64
    }

    /// How gates follow from scores, in the terms of the decode kernel; `None` where experts form groups, which
    /// it does not know.
    pub(crate) fn gating(&self) -> Option<Gating> {
        (self.config.n_group == self.config.topk_group).then_some(Gating {
            top_k: self.top_k(),
            is_sigmoid: self.config.scoring_func == ScoringFunc::Sigmoid,
            normalise: self.config.norm_topk_prob,
            scaling: self.config.routed_scaling_factor,
        })
    }

    /// The f32 weight, and the bias of the choice.
    pub(crate) fn weights(&self) -> (Tensor, Option<Tensor>) {
        let bias = self.correction_bias.as_ref().map(Parameter::weight_f32);
        (self.gate.weight_f32(), bias)
    }

    /// Routes `x` `[T, hidden_size]`; `recorded` `[T, top_k]` forces the experts.
    pub(crate) fn route(&self, x: &Tensor, recorded: Option<&Tensor>) -> Routed {
        let logits = x
            .to_kind(Kind::Float)
            .linear(&self.gate.weight_f32(), None::<&Tensor>);
        if let Some(routed) = self.fused(x, &logits, recorded) {
            return routed;
        }
        let scores = match self.config.scoring_func {
            ScoringFunc::Softmax => logits.softmax(-1, Kind::Float),
            ScoringFunc::Sigmoid => logits.sigmoid(),
        };
        let (experts, agreeing) = match recorded {
            None => (self.choose(&scores), None),
            Some(recorded) => {
                let same = self
                    .choose(&scores)
                    .unsqueeze(-1)
                    .eq_tensor(&recorded.unsqueeze(-2))
                    .any_dim(-1, false);
                (recorded.shallow_clone(), Some(same.sum(Kind::Int64)))
            }
        };
        let chosen = scores.gather(-1, &experts, false);
        let gates = match self.config.norm_topk_prob {
            true => &chosen / (chosen.sum_dim_intlist(-1, true, Kind::Float) + 1e-20),
            false => chosen,
        };
        let gates = match self.config.routed_scaling_factor {
            1.0 => gates,
            factor => gates * factor,
        };
        Routed {
            experts,
            gates,
            agreeing,
        }
    }

    /// The same in one kernel, where there is one.
    fn fused(&self, x: &Tensor, logits: &Tensor, recorded: Option<&Tensor>) -> Option<Routed> {
        let gating = self.gating().filter(|_| fused::runs_on(x))?;
        let bias = self.correction_bias.as_ref().map(Parameter::weight_f32);
        let routed = route(logits, bias.as_ref(), recorded, gating)?;
        Some(Routed {
            experts: routed.experts,
            gates: routed.gates,
            agreeing: recorded.map(|_| routed.agreeing.sum(Kind::Int64)),
        })
    }

    /// The experts that `scores` `[T, num_experts]` choose, `[T, top_k]`, best first.
    fn choose(&self, scores: &Tensor) -> Tensor {
        tch::no_grad(|| {
            let choice = match &self.correction_bias {
                Some(bias) => scores + bias.weight_f32(),
                None => scores.shallow_clone(),
            };
            best(&self.within_best_groups(choice), self.top_k())
        })
    }

    /// `choice` with -inf for the experts of all but the best groups.
    fn within_best_groups(&self, choice: Tensor) -> Tensor {
        let (groups, kept) = (self.config.n_group as i64, self.config.topk_group as i64);
        if groups == kept {
            return choice;
        }
        let (tokens, experts) = choice.size2().expect("choice is [T, num_experts]");
        let by_group = choice.view([tokens, groups, experts / groups]);
        let (best_two, _) = by_group.topk(2, -1, true, true);
        let group_scores = best_two.sum_dim_intlist(-1, false, Kind::Float);
        let is_kept = group_scores
            .zeros_like()
            .scatter_value_(1, &best(&group_scores, kept), 1.0)
            .gt(0.5);
        by_group
            .masked_fill(&is_kept.logical_not().unsqueeze(-1), f64::NEG_INFINITY)
            .view([tokens, experts])
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.gate).chain(&self.correction_bias)
    }
}

/// Columns of the `count` highest scores of each row, highest first, ties to the lower column.
fn best(scores: &Tensor, count: i64) -> Tensor {
    // A stable sort, because top-k promises no order among ties.
    let (_, order) = scores.sort_stable(true, -1, true);
    order.narrow(-1, 0, count).contiguous()
}

#[cfg(test)]
mod tests;
