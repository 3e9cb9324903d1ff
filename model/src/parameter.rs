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
    /// Never trained, but saved with the rest: the gate's correction bias.
    Frozen,
}

/// A parameter by its Hugging Face name.
#[derive(Debug)]
pub struct Parameter {
    /// Hugging Face name.
    pub name: String,
    /// Optimizer group.
    pub group: ParameterGroup,
    /// f32 master weights, a leaf of the autograd graph (without gradient in the frozen group).
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
            master: master.set_requires_grad(group != ParameterGroup::Frozen),
            compute,
        }
    }

    /// The weight for a forward pass, in the compute type. Under autograd it derives from the
    /// master, so that gradients arrive there in f32; otherwise it is the published copy.
    pub fn weight(&self) -> Tensor {
        if self.is_tracked() {
            self.master.to_kind(self.compute.kind())
        } else {
            self.compute.shallow_clone()
        }
    }

    /// The f32 weight for a forward pass: the router with its correction bias, and the indexer's key
    /// norm and head weights, keep f32. It is the master itself and needs no publishing.
    pub fn weight_f32(&self) -> Tensor {
        self.master.shallow_clone()
    }

    /// `x W^T` in the compute type.
    pub fn project(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight(), None::<&Tensor>)
    }

    /// Where inference computes with a copy of its own: that copy and the master.
    pub(crate) fn copied(&self) -> Option<[&Tensor; 2]> {
        (self.compute.kind() != Kind::Float).then_some([&self.compute, &self.master])
    }

    /// Whether a forward pass is recorded for the master's sake.
    fn is_tracked(&self) -> bool {
        self.master.requires_grad() && kernels::autograd::is_enabled()
    }

    /// Drops the gradient.
    pub fn clear_grad(&self) {
        kernels::autograd::clear_grad(&self.master);
    }

    /// Refreshes the compute copy after the master has changed. With f32 computation both share one storage
    /// and nothing needs doing.
    pub(crate) fn publish(&self) {
        if let Some([compute, master]) = self.copied() {
            tch::no_grad(|| compute.shallow_clone().copy_(master));
        }
    }
}

/// The weights for a forward pass beneath each other; `copies` is where their compute copies lie so already.
pub(crate) fn stacked<const N: usize>(parts: [&Parameter; N], copies: Option<&Tensor>) -> Tensor {
    if parts.iter().any(|part| part.is_tracked()) {
        // One conversion, and one back of the gradient.
        let masters = parts.map(|part| &part.master);
        return Tensor::cat(&masters, 0).to_kind(parts[0].compute.kind());
    }
    match copies {
        Some(copies) => copies.shallow_clone(),
        None => Tensor::cat(&parts.map(|part| &part.compute), 0),
    }
}

/// A projection with or without a bias.
#[derive(Debug)]
pub(crate) struct Projection {
    weight: Parameter,
    bias: Option<Parameter>,
}

impl Projection {
    /// Loads `{name}.weight` `[out, in]`, and `{name}.bias` where the projection has one.
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        name: &str,
        shape: [usize; 2],
        has_bias: bool,
    ) -> Result<Projection, WeightError> {
        let mut load = |part: &str, shape: &[usize]| {
            loader.load(&format!("{name}.{part}"), ParameterGroup::Main, shape)
        };
        Ok(Projection {
            weight: load("weight", &shape)?,
            bias: match has_bias {
                true => Some(load("bias", &shape[..1])?),
                false => None,
            },
        })
    }

    /// The same for projections of one input, with what inference computes all of them by in types other than
    /// f32.
    pub(crate) fn load_stacked<const N: usize>(
        loader: &mut ParameterLoader,
        names: [String; N],
        rows: [usize; N],
        inner: usize,
        has_bias: bool,
    ) -> Result<([Projection; N], Option<Stack>), WeightError> {
        let parts = |part: &str| names.each_ref().map(|name| format!("{name}.{part}"));
        let (weights, weight) = loader.load_stacked(parts("weight"), rows, &[inner])?;
        let (biases, bias) = match has_bias {
            true => {
                let (biases, bias) = loader.load_stacked(parts("bias"), rows, &[])?;
                (biases.map(Some), bias)
            }
            false => ([const { None }; N], None),
        };
        let mut biases = biases.into_iter();
        let projections = weights.map(|weight| Projection {
            weight,
            bias: biases.next().flatten(),
        });
        Ok((projections, weight.map(|weight| Stack { weight, bias })))
    }

    /// `x W^T + b` in the compute type.
    pub(crate) fn project(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(Parameter::weight);
        x.linear(&self.weight.weight(), bias.as_ref())
    }

    /// What `parts`, projections of the same input, make of it, beside each other; `stack` are their compute copies.
    pub(crate) fn project_stacked<const N: usize>(
        parts: [&Projection; N],
        stack: Option<&Stack>,
        x: &Tensor,
    ) -> Tensor {
        let weight = stacked(
            parts.map(|part| &part.weight),
            stack.map(|stack| &stack.weight),
        );
        let biases = parts.map(|part| part.bias.as_ref());
        let bias = biases[0].is_some().then(|| {
            let biases = biases.map(|bias| bias.expect("all have a bias or none"));
            stacked(biases, stack.and_then(|stack| stack.bias.as_ref()))
        });
        x.linear(&weight, bias.as_ref())
    }

    /// The weight for a forward pass.
    pub(crate) fn weight(&self) -> Tensor {
        self.weight.weight()
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.weight).chain(&self.bias)
    }
}

/// What inference multiplies by where several projections read the same input: their weights beneath each
/// other, `[sum of outs, in]`, of which the parameters are parts, and their biases likewise.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

/// Where a parameter lies that is part of a larger tensor.
pub(crate) struct Place {
    /// f32.
    pub(crate) master: Tensor,
    /// In the compute type; in f32 the same storage as `master`.
    pub(crate) compute: Tensor,
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

    /// The model's compute type.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The model's device.
    pub(crate) fn device(&self) -> Device {
        self.device
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

    /// Parameters of the main group whose compute copies lie beneath each other in one tensor; `None` in place of
    /// that in f32, where masters are computed with.
    pub(crate) fn load_stacked<const N: usize>(
        &mut self,
        names: [String; N],
        rows: [usize; N],
        columns: &[usize],
    ) -> Result<([Parameter; N], Option<Tensor>), WeightError> {
        let sizes = |rows: usize| [&[rows], columns].concat();
        let mut parameters = Vec::with_capacity(N);
        for (name, rows) in names.iter().zip(rows) {
            parameters.push(self.load(name, ParameterGroup::Main, &sizes(rows))?);
        }
        let mut parameters: [Parameter; N] = parameters.try_into().expect("one a name");
        if self.kind == Kind::Float {
            return Ok((parameters, None));
        }
        let copies = parameters.each_ref().map(|parameter| &parameter.compute);
        let stack = Tensor::cat(&copies, 0);
        let mut first = 0;
        for (parameter, rows) in parameters.iter_mut().zip(rows) {
            parameter.compute = stack.narrow(0, first, rows as i64);
            first += rows as i64;
        }
        Ok((parameters, Some(stack)))
    }

    /// The parameter `name` of the main group, read to `place`.
    pub(crate) fn load_at(&mut self, name: &str, place: Place) -> Result<Parameter, WeightError> {
        self.source.read_into(name, &place.master)?;
        let parameter = Parameter {
            name: name.to_string(),
            group: ParameterGroup::Main,
            master: place.master.detach().set_requires_grad(true),
            compute: place.compute,
        };
        parameter.publish();
        Ok(parameter)
    }
}
