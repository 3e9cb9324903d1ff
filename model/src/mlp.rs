//! SwiGLU feed-forward: down( silu(gate x) * up x ).

use kernels::decode::small_products::{Epilogue, small_product};
use kernels::tch::Tensor;
use kernels::{KernelError, decode, fused};

use crate::decode_graph::StepRecorder;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader, Place, stacked};
use crate::weights::WeightError;

/// One dense feed-forward, or one expert.
#[derive(Debug)]
pub struct Mlp {
    gate: Parameter,
    up: Parameter,
    down: Parameter,
    /// Gate above up projection, for a GPU's decode steps.
    gate_up: Option<Tensor>,
}

impl Mlp {
    /// Loads `{prefix}.{names}.weight`; `names` are the gate, up and down projections.
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        names: [&str; 3],
        hidden_size: usize,
        intermediate_size: usize,
    ) -> Result<Mlp, WeightError> {
        let name = |name| format!("{prefix}.{name}.weight");
        let ([gate, up], gate_up) = loader.load_stacked(
            [name(names[0]), name(names[1])],
            [intermediate_size; 2],
            &[hidden_size],
        )?;
        let down = [hidden_size, intermediate_size];
        Ok(Mlp {
            gate,
            up,
            down: loader.load(&name(names[2]), ParameterGroup::Main, &down)?,
            gate_up,
        })
    }

    /// Loads `{prefix}.{names}.weight` to `places`.
    pub(crate) fn load_at(
        loader: &mut ParameterLoader,
        prefix: &str,
        names: [&str; 3],
        places: [Place; 3],
    ) -> Result<Mlp, WeightError> {
        let mut load = |name, place| loader.load_at(&format!("{prefix}.{name}.weight"), place);
        let [gate, up, down] = places;
        Ok(Mlp {
            gate: load(names[0], gate)?,
            up: load(names[1], up)?,
            down: load(names[2], down)?,
            gate_up: None,
        })
    }

    /// `[T, hidden_size]` to `[T, hidden_size]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if fused::runs_on(x) {
            let weight = stacked([&self.gate, &self.up], self.gate_up.as_ref());
            let both = x.linear(&weight, None::<&Tensor>);
            return self.down.project(&fused::swiglu::swiglu(&both));
        }
        self.down
            .project(&(self.gate.project(x).silu() * self.up.project(x)))
    }

    /// Puts a decode step on the recorder's queue: `h` to `y`.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        norm: Option<(&Tensor, f64)>,
    ) -> Result<(), KernelError> {
        let width = self.down.weight().size()[1];
        let gate_up = self.gate_up.as_ref().expect("a stack in bf16");
        let (both, inner) = step.feed_forward(1, width);
        let (both, inner) = (both.get(0), inner.get(0));
        let (queue, down) = (step.queue, self.down.weight());
        if norm.is_some() {
            small_product(queue, &step.x, gate_up, norm, Epilogue::Gated, &inner)?;
            return small_product(queue, &inner, &down, None, Epilogue::Added, &step.x);
        }
        queue.product(&step.h, gate_up, &both)?;
        decode::rows::swiglu(queue, &both, &inner)?;
        queue.product(&inner, &down, &step.y)
    }

    pub(crate) fn parameters(&self) -> [&Parameter; 3] {
        [&self.gate, &self.up, &self.down]
    }
}
