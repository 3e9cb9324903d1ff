//! SwiGLU feed-forward: down( silu(gate x) * up x ).

use kernels::tch::Tensor;

use crate::parameter::{Parameter, ParameterGroup, ParameterLoader, Place};
use crate::weights::WeightError;

/// One dense feed-forward, or one expert.
#[derive(Debug)]
pub struct Mlp {
    gate: Parameter,
    up: Parameter,
    down: Parameter,
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
        let mut load = |name: &str, shape: [usize; 2]| {
            loader.load(
                &format!("{prefix}.{name}.weight"),
                ParameterGroup::Main,
                &shape,
            )
        };
        Ok(Mlp {
            gate: load(names[0], [intermediate_size, hidden_size])?,
            up: load(names[1], [intermediate_size, hidden_size])?,
            down: load(names[2], [hidden_size, intermediate_size])?,
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
        })
    }

    /// `[T, hidden_size]` to `[T, hidden_size]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.down
            .project(&(self.gate.project(x).silu() * self.up.project(x)))
    }

    pub(crate) fn parameters(&self) -> [&Parameter; 3] {
        [&self.gate, &self.up, &self.down]
    }
}
