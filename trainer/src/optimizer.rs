//! AdamW on the f32 masters, with the gradient of each group clipped by its own global norm.
//!
//! ```text
//! g *= min(1, max_norm / ||g||)        ||g|| over the parameters of one group
//! p -= lr wd p                         matrices only
//! m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
//! p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
//! ```
//! m and v start as zeros when a parameter first has a gradient; t counts the updates of its group.
//! A parameter without gradient (an expert no token chose) keeps its value and moments.

use std::collections::BTreeMap;

use kernels::KernelError;
use kernels::foreach::{fused_adamw_, global_norm, scale_};
use kernels::tch::{self, Kind, Tensor};
use model::{Parameter, ParameterGroup};

use crate::config::OptimizerConfig;

/// Gradient norms before clipping; 0 for a group that was frozen or had no gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepNorms {
    /// The language model.
    pub main: f64,
    /// The lightning indexer.
    pub indexer: f64,
}

/// An update or a restored state that can't be applied.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerError {
    /// Some gradient is infinite or not a number; nothing was updated.
    #[error(
        "gradient norm of group {group:?} is {norm}, first in parameter '{parameter}'; \
         nothing was updated (lower the learning rate, or look for extreme ratios in the metrics)"
    )]
    NonFinite {
        /// Group concerned.
        group: ParameterGroup,
        /// First parameter, in model order, whose own gradient norm is not finite.
        parameter: String,
        /// Norm found.
        norm: f64,
    },
    /// Optimizer state that doesn't belong to the parameters.
    #[error("optimizer state '{name}': {problem}")]
    State {
        /// Name of the state tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The device layer refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// First and second moment of one parameter, f32 in the parameter's shape.
#[derive(Debug)]
struct Moments {
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// AdamW over the two parameter groups.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    main_steps: i64,
    indexer_steps: i64,
    /// By parameter name.
    moments: BTreeMap<String, Moments>,
}

const MAIN_STEPS: &str = "main.steps";
const INDEXER_STEPS: &str = "indexer.steps";
const EXP_AVG: &str = "exp_avg.";
const EXP_AVG_SQ: &str = "exp_avg_sq.";

impl AdamW {
    /// An optimizer that has made no step.
    pub fn new(config: &OptimizerConfig) -> AdamW {
        AdamW {
            config: config.clone(),
            main_steps: 0,
            indexer_steps: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Updates the masters that require and have a gradient, then drops every gradient.
    ///
    /// Clear `requires_grad` on the masters of a group to freeze it. The compute copies are
    /// refreshed by `Transformer::publish`, not here.
    ///
    /// # Errors
    /// A gradient norm that is not finite, in either group: then neither is updated and the
    /// gradients stay for inspection.
    pub fn step(
        &mut self,
        parameters: &[&Parameter],
        lr: f64,
    ) -> Result<StepNorms, OptimizerError> {
        let main = trained(parameters, ParameterGroup::Main);
        let indexer = trained(parameters, ParameterGroup::Indexer);
        let norms = StepNorms {
            main: gradient_norm(&main)?,
            indexer: gradient_norm(&indexer)?,
        };
        self.update_group(&main, norms.main, lr)?;
        self.update_group(&indexer, norms.indexer, lr)?;
        for parameter in parameters {
            parameter.clear_grad();
        }
        Ok(norms)
    }

    /// Updates `parameters`, all of one group, whose gradients have the global norm `norm`.
    fn update_group(
        &mut self,
        parameters: &[&Parameter],
        norm: f64,
        lr: f64,
    ) -> Result<(), OptimizerError> {
        let Some(first) = parameters.first() else {
            return Ok(());
        };
        let (steps, max_norm) = match first.group {
            ParameterGroup::Main => (&mut self.main_steps, self.config.max_grad_norm),
            ParameterGroup::Indexer => (&mut self.indexer_steps, self.config.max_indexer_grad_norm),
            ParameterGroup::Frozen => return Ok(()),
        };
        *steps += 1;
        if norm > max_norm {
            let grads: Vec<Tensor> = parameters.iter().map(|p| p.master.grad()).collect();
            scale_(&grads, max_norm / norm)?;
        }
        let (beta1, beta2) = self.config.betas;
        for (is_matrix, weight_decay) in [(true, self.config.weight_decay), (false, 0.0)] {
            let (mut params, mut grads) = (Vec::new(), Vec::new());
            let (mut exp_avgs, mut exp_avg_sqs) = (Vec::new(), Vec::new());
            let of_kind = |p: &&&Parameter| (p.master.dim() >= 2) == is_matrix;
            for parameter in parameters.iter().filter(of_kind) {
                let moments = self
                    .moments
                    .entry(parameter.name.clone())
                    .or_insert_with(|| Moments::zeros(&parameter.master));
                params.push(parameter.master.shallow_clone());
                grads.push(parameter.master.grad());
                exp_avgs.push(moments.exp_avg.shallow_clone());
                exp_avg_sqs.push(moments.exp_avg_sq.shallow_clone());
            }
            if params.is_empty() {
                continue;
            }
            fused_adamw_(
                &params,
                &grads,
                &exp_avgs,
                &exp_avg_sqs,
                *steps,
                lr,
                beta1,
                beta2,
                weight_decay,
                self.config.epsilon,
            )?;
        }
        Ok(())
    }

    /// Step counts and moments by name, for a checkpoint; the tensors share storage with `self`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let steps = |n: i64| Tensor::from_slice(&[n]);
        let mut state = vec![
            (MAIN_STEPS.to_string(), steps(self.main_steps)),
            (INDEXER_STEPS.to_string(), steps(self.indexer_steps)),
        ];
        for (name, moments) in &self.moments {
            state.push((format!("{EXP_AVG}{name}"), moments.exp_avg.shallow_clone()));
            let second = moments.exp_avg_sq.shallow_clone();
            state.push((format!("{EXP_AVG_SQ}{name}"), second));
        }
        state
    }

    /// Replaces step counts and moments by those of [`AdamW::state`], moved to the parameters' device.
    ///
    /// # Errors
    /// A name that is unknown or missing, or another shape or type than the parameter's; `self` is
    /// unchanged then.
    pub fn load_state(
        &mut self,
        state: Vec<(String, Tensor)>,
        parameters: &[&Parameter],
    ) -> Result<(), OptimizerError> {
        let mut state: BTreeMap<String, Tensor> = state.into_iter().collect();
        let main_steps = take_steps(&mut state, MAIN_STEPS)?;
        let indexer_steps = take_steps(&mut state, INDEXER_STEPS)?;
        let mut moments = BTreeMap::new();
        for parameter in parameters {
            let exp_avg = take_moment(&mut state, EXP_AVG, parameter)?;
            let exp_avg_sq = take_moment(&mut state, EXP_AVG_SQ, parameter)?;
            match (exp_avg, exp_avg_sq) {
                (None, None) => {}
                (Some(exp_avg), Some(exp_avg_sq)) => {
                    let both = Moments {
                        exp_avg,
                        exp_avg_sq,
                    };
                    moments.insert(parameter.name.clone(), both);
                }
                _ => {
                    return Err(state_error(
                        &parameter.name,
                        "one of its two moments is missing",
                    ));
                }
            }
        }
        if let Some(name) = state.keys().next() {
            return Err(state_error(name, "the model has no such parameter"));
        }
        self.main_steps = main_steps;
        self.indexer_steps = indexer_steps;
        self.moments = moments;
        Ok(())
    }
}

impl Moments {
    fn zeros(master: &Tensor) -> Moments {
        let zeros = || tch::no_grad(|| Tensor::zeros_like(master));
        Moments {
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
        }
    }
}

/// Parameters of `group` that require and have a gradient, in model order.
fn trained<'a>(parameters: &[&'a Parameter], group: ParameterGroup) -> Vec<&'a Parameter> {
    let of_group = parameters.iter().filter(|p| p.group == group);
    of_group
        .filter(|p| p.master.requires_grad() && p.master.grad().defined())
        .copied()
        .collect()
}

/// Global gradient norm of `parameters`, all of one group.
fn gradient_norm(parameters: &[&Parameter]) -> Result<f64, OptimizerError> {
    let grads: Vec<Tensor> = parameters.iter().map(|p| p.master.grad()).collect();
    let norm = global_norm(&grads)?.double_value(&[]);
    if norm.is_finite() {
        return Ok(norm);
    }
    let own = |p: &Parameter| p.master.grad().norm().double_value(&[]);
    let offender = parameters
        .iter()
        .find(|p| !own(p).is_finite())
        // All are finite and only their sum overflows: name the largest.
        .or_else(|| parameters.iter().max_by(|a, b| own(a).total_cmp(&own(b))))
        .expect("no gradients have norm 0");
    Err(OptimizerError::NonFinite {
        group: offender.group,
        parameter: offender.name.clone(),
        norm,
    })
}

fn state_error(name: &str, problem: impl Into<String>) -> OptimizerError {
    OptimizerError::State {
        name: name.to_string(),
        problem: problem.into(),
    }
}

fn take_steps(state: &mut BTreeMap<String, Tensor>, name: &str) -> Result<i64, OptimizerError> {
    let steps = state
        .remove(name)
        .ok_or_else(|| state_error(name, "it is missing"))?;
    if steps.size() != [1] || steps.kind() != Kind::Int64 {
        return Err(state_error(name, "it must be one i64"));
    }
    Ok(steps.int64_value(&[0]))
}

fn take_moment(
    state: &mut BTreeMap<String, Tensor>,
    prefix: &str,
    parameter: &Parameter,
) -> Result<Option<Tensor>, OptimizerError> {
    let name = format!("{prefix}{}", parameter.name);
    let Some(moment) = state.remove(&name) else {
        return Ok(None);
    };
    let (found, expected) = (moment.size(), parameter.master.size());
    if found != expected || moment.kind() != Kind::Float {
        let kind = moment.kind();
        let problem = format!("{kind:?} {found:?} in place of Float {expected:?}");
        return Err(state_error(&name, problem));
    }
    Ok(Some(
        moment.to_device(parameter.master.device()).contiguous(),
    ))
}

#[cfg(test)]
mod tests;
