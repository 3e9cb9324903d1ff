//! RMSNorm: y = weight * x * rsqrt(mean(x^2) + eps) along the last dim, statistics in f32.

use kernels::fused::norm;
use kernels::tch::Tensor;
use kernels::{KernelError, decode};

use crate::decode_graph::StepRecorder;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::weights::WeightError;

/// RMSNorm with its weight.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Parameter,
    eps: f64,
}

impl RmsNorm {
    /// Loads `name`, of `width` values.
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        name: &str,
        width: usize,
        eps: f64,
    ) -> Result<RmsNorm, WeightError> {
        let weight = loader.load(name, ParameterGroup::Main, &[width])?;
        Ok(RmsNorm { weight, eps })
    }

    /// `[.., width]` to the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        norm::rms_norm(x, &self.weight.weight(), self.eps)
    }

    /// `x + y` and its norm, all of one shape.
    pub(crate) fn add_forward(&self, x: &Tensor, y: &Tensor) -> (Tensor, Tensor) {
        norm::add_rms_norm(x, y, &self.weight.weight(), self.eps)
    }

    /// Puts x += y, where there is y, and h = norm(x) on the recorder's queue.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        y: Option<&Tensor>,
    ) -> Result<(), KernelError> {
        let weight = self.weight.weight();
        decode::rows::add_rms_norm(step.queue, &step.x, y, &weight, self.eps, &step.h)
    }

    /// Weight and epsilon, for a product that normalises its input itself.
    pub(crate) fn weight_and_epsilon(&self) -> (Tensor, f64) {
        (self.weight.weight(), self.eps)
    }

    pub(crate) fn parameter(&self) -> &Parameter {
        &self.weight
    }
}
