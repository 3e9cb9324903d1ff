//! Mixture of experts: y = sum_{e in S} g_e expert_e(x).
//!
//! Tokens are sorted by expert once, each expert runs one batch, and the results return to their
//! tokens weighted by their gates. Routing itself is in [`crate::router`].

use kernels::tch::{Kind, Tensor};

use crate::config::MoeConfig;
use crate::mlp::Mlp;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::router::{Routed, Router};
use crate::weights::WeightError;

/// The experts of one layer and their router.
#[derive(Debug)]
pub struct Moe {
    router: Router,
    experts: Vec<Mlp>,
}

impl Moe {
    /// Loads `{prefix}.gate` and `{prefix}.experts.N.{w1,w3,w2}` (Mixtral's names).
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &MoeConfig,
        hidden_size: usize,
        intermediate_size: usize,
    ) -> Result<Moe, WeightError> {
        let gate = loader.load(
            &format!("{prefix}.gate.weight"),
            ParameterGroup::Main,
            &[config.num_experts, hidden_size],
        )?;
        let experts = (0..config.num_experts)
            .map(|e| {
                let prefix = format!("{prefix}.experts.{e}");
                Mlp::load(
                    loader,
                    &prefix,
                    ["w1", "w3", "w2"],
                    hidden_size,
                    intermediate_size,
                )
            })
            .collect::<Result<_, _>>()?;
        Ok(Moe {
            router: Router {
                gate,
                config: config.clone(),
            },
            experts,
        })
    }

    /// `x` `[T, hidden_size]` to the weighted sum of experts, and how the tokens were routed.
    pub(crate) fn forward(&self, x: &Tensor, recorded: Option<&Tensor>) -> (Tensor, Routed) {
        let routed = self.router.route(x, recorded);
        let top_k = self.router.config.num_experts_per_tok as i64;
        let assignments = routed.experts.flatten(0, 1);
        let order = assignments.sort_stable(true, 0, false).1;
        let counts: Vec<i64> = assignments
            .bincount(None::<&Tensor>, self.experts.len() as i64)
            .try_into()
            .expect("bincount of i64 gives i64");
        let token_of = order.floor_divide_scalar(top_k);
        let sorted = x.index_select(0, &token_of);
        let mut start = 0;
        let outputs: Vec<Tensor> = self
            .experts
            .iter()
            .zip(&counts)
            .filter(|&(_, &count)| count > 0)
            .map(|(expert, &count)| {
                let rows = sorted.narrow(0, start, count);
                start += count;
                expert.forward(&rows)
            })
            .collect();
        let gates = routed
            .gates
            .flatten(0, 1)
            .index_select(0, &order)
            .unsqueeze(1);
        // The sum over experts runs in f32, in expert order.
        let weighted = Tensor::cat(&outputs, 0).to_kind(Kind::Float) * gates;
        let sum =
            Tensor::zeros(x.size(), (Kind::Float, x.device())).index_add(0, &token_of, &weighted);
        (sum.to_kind(x.kind()), routed)
    }

    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        std::iter::once(&self.router.gate)
            .chain(self.experts.iter().flat_map(Mlp::parameters))
            .collect()
    }
}
