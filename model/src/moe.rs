//! Mixture of experts: y = sum_{e in S} g_e expert_e(x) + shared(x).
//!
//! Tokens are sorted by expert once, the experts run on the sorted rows ([`crate::experts`]), and the
//! results return to their tokens weighted by their gates. Routing itself is in [`crate::router`].

use kernels::fused::dispatch::Dispatch;
use kernels::tch::Tensor;
use kernels::{KernelError, decode};

use crate::config::{ModelConfig, ModelType, MoeConfig};
use crate::decode_graph::StepRecorder;
use crate::experts::Experts;
use crate::mlp::Mlp;
use crate::parameter::{Parameter, ParameterLoader};
use crate::router::{Routed, Router};
use crate::weights::WeightError;

/// Names of a SwiGLU's gate, up and down projections.
pub(crate) const MLP_NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// Experts up to which each sees every token of a recorded decode step.
const MOST_RECORDED_EXPERTS: i64 = 8;
const MIXTRAL_NAMES: [&str; 3] = ["w1", "w3", "w2"];

/// The experts of one layer and their router.
#[derive(Debug)]
pub struct Moe {
    router: Router,
    experts: Experts,
    /// Passed by every token; several shared experts are one of their joint width.
    shared: Option<Mlp>,
}

impl Moe {
    /// Loads the experts of the layer `prefix` by the names of the model's family.
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
        moe: &MoeConfig,
    ) -> Result<Moe, WeightError> {
        let (hidden, width) = (config.hidden_size, config.expert_intermediate_size());
        let (prefix, names) = match config.model_type {
            ModelType::Mixtral => (format!("{prefix}.block_sparse_moe"), MIXTRAL_NAMES),
            _ => (format!("{prefix}.mlp"), MLP_NAMES),
        };
        Ok(Moe {
            router: Router::load(loader, &prefix, moe, hidden)?,
            experts: Experts::load(loader, &prefix, names, moe.num_experts, [hidden, width])?,
            shared: match moe.n_shared_experts {
                0 => None,
                count => Some(Mlp::load(
                    loader,
                    &format!("{prefix}.shared_experts"),
                    MLP_NAMES,
                    hidden,
                    count * width,
                )?),
            },
        })
    }

    /// `x` `[T, hidden_size]` to the weighted sum of experts, and how the tokens were routed.
    pub(crate) fn forward(&self, x: &Tensor, recorded: Option<&Tensor>) -> (Tensor, Routed) {
        let routed = self.router.route(x, recorded);
        let dispatch = Dispatch::new(&routed.experts, self.experts.len());
        let outputs = self.experts.forward(&dispatch.gather(x), dispatch.ends());
        let y = dispatch.combine(&outputs, &routed.gates);
        let y = match &self.shared {
            Some(shared) => y + shared.forward(x),
            None => y,
        };
        (y, routed)
    }

    /// Whether [`Moe::record`] can be used.
    pub(crate) fn can_be_recorded(&self) -> bool {
        self.shared.is_none()
            && self.experts.stacks().is_some()
            && self.experts.len() <= MOST_RECORDED_EXPERTS
            && self.router.gating().is_some()
    }

    /// Puts a decode step on the recorder's queue: `h` to `y`. Every expert sees every token: with few experts
    /// all of them are read in any case, and reading is what such a step is bound by.
    pub(crate) fn record(&self, step: &StepRecorder) -> Result<(), KernelError> {
        let [gate_up, down] = self.experts.stacks().expect("asked before");
        let gating = self.router.gating().expect("asked before");
        let (queue, experts) = (step.queue, self.experts.len());
        let (gates, ids) = step.routing(experts);
        let (gate, bias) = self.router.weights();
        decode::experts::route(queue, gating, &step.h, &gate, bias.as_ref(), &gates, &ids)?;
        let (both, inner) = step.feed_forward(experts, down.size()[2]);
        let outputs = step.expert_outputs(experts);
        queue.products(&step.h.unsqueeze(0), gate_up, &both)?;
        decode::rows::swiglu(queue, &both, &inner)?;
        queue.products(&inner, down, &outputs)?;
        decode::experts::combine(queue, &outputs, &gates, &step.y)
    }

    /// The experts that a router chooses among.
    pub(crate) fn experts(&self) -> &Experts {
        &self.experts
    }

    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> = self.router.parameters().collect();
        all.extend(self.experts.parameters());
        all.extend(self.shared.iter().flat_map(Mlp::parameters));
        all
    }
}
