//! One trainable tensor: the f32 master and the copy that inference computes with.

use kernels::tch::{self, Device, Kind, Tensor};

use crate::weights::{WeightError, WeightSource};

/// Which optimizer group a parameter belongs to; the two are clipped apart, since the indexer
/// learns only from its own loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterGroup {
    /// The language model.
    Main,
    /// The lightning indexer.
    Indexer,
}

/// A parameter by its Hugging Face name.
#[derive(Debug)]
pub struct Parameter {
    /// Hugging Face name.
    pub name: String,
    /// Optimizer group.
    pub group: ParameterGroup,
    /// f32 master weights, a leaf of the autograd graph.
    pub master: Tensor,
    compute: Tensor,
}

impl Parameter {
    /// Wraps f32 `master`; computation runs in `kind`.
    pub fn new(name: &str, group: ParameterGroup, master: Tensor, kind: Kind) -> Parameter {
        let compute = if kind == Kind::Float {
            // The same storage without the master's gradient.
            master.detach()
        } else {
            master.detach().to_kind(kind)
        };
        Parameter {
            name: name.to_string(),
            group,
            master: master.set_requires_grad(true),
            compute,
        }
    }

    /// The weight for a forward pass, in the compute type. Under autograd it derives from the
    /// master, so that gradients arrive there in f32; otherwise it is the published copy.
    pub fn weight(&self) -> Tensor {
        if self.master.requires_grad() && kernels::autograd::is_enabled() {
            self.master.to_kind(self.compute.kind())
        } else {
            self.compute.shallow_clone()
        }
    }

    /// The f32 weight for a forward pass: the router, and the indexer's key norm and head weights,
    /// keep f32. It is the master itself and needs no publishing.
    pub fn weight_f32(&self) -> Tensor {
        self.master.shallow_clone()
    }

    /// `x W^T` in the compute type.
    pub fn project(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight(), None::<&Tensor>)
    }

    /// Drops the gradient.
    pub fn clear_grad(&self) {
        kernels::autograd::clear_grad(&self.master);
    }

    /// Refreshes the compute copy after the optimizer changed the master. With f32 computation
    /// both share one storage and nothing needs doing.
    pub fn publish(&self) {
        if self.compute.kind() != Kind::Float {
            tch::no_grad(|| self.compute.shallow_clone().copy_(&self.master));
        }
    }
}

/// Reads parameters from a source, one name after the other.
pub(crate) struct ParameterLoader<'a> {
    source: &'a mut dyn WeightSource,
    kind: Kind,
    device: Device,
}

impl<'a> ParameterLoader<'a> {
    pub(crate) fn new(source: &'a mut dyn WeightSource, kind: Kind, device: Device) -> Self {
        ParameterLoader {
            source,
            kind,
            device,
        }
    }

    /// The parameter `name` of `shape`, computing in the model's type.
    pub(crate) fn load(
        &mut self,
        name: &str,
        group: ParameterGroup,
        shape: &[usize],
    ) -> Result<Parameter, WeightError> {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let master = self.source.tensor(name, &shape)?.to_device(self.device);
        Ok(Parameter::new(name, group, master, self.kind))
    }
}
