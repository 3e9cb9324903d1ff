//! One trainable tensor: the f32 master and the copy the forward pass computes with.

use kernels::tch::{self, Kind, Tensor};

/// Which optimizer group a parameter belongs to; the two are clipped apart (the indexer learns
/// only from its own loss).
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
            master.to_kind(kind)
        };
        Parameter {
            name: name.to_string(),
            group,
            master,
            compute,
        }
    }

    /// The weight for a forward pass, in the compute type. Under autograd it is derived from the
    /// master, so that gradients arrive there in f32; otherwise it is the published copy.
    pub fn weight(&self) -> Tensor {
        if self.master.requires_grad() && kernels::autograd::is_enabled() {
            self.master.to_kind(self.compute.kind())
        } else {
            self.compute.detach()
        }
    }

    /// The f32 weight for a forward pass (norms, router and indexer projections keep f32).
    pub fn weight_f32(&self) -> Tensor {
        self.master.shallow_clone()
    }

    /// Drops the gradient: the master becomes a fresh leaf over the same storage.
    pub fn clear_grad(&mut self) {
        if self.master.grad().defined() {
            let requires_grad = self.master.requires_grad();
            self.master = self.master.detach().set_requires_grad(requires_grad);
        }
    }

    /// Refreshes the compute copy after the optimizer changed the master.
    pub fn publish(&mut self) {
        if self.compute.kind() != Kind::Float {
            tch::no_grad(|| self.compute.copy_(&self.master));
        }
    }
}
