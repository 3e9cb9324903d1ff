//! The starting policy: from the config's `model` to a loaded network and its tokenizer.

use std::path::Path;

use kernels::tch::{Device, Kind, Tensor};
use model::random_model::RandomSource;
use model::upcycle::{IndexerSource, UpcycledSource, indexer_config, upcycle_config};
use model::{ModelConfig, Tokenizer, Transformer, WeightSource};

use crate::config::{Compute, PolicyConfig, PolicySource, RunConfig, StageConfig};
use crate::error::TrainerError;

/// A policy's parts before its tensors are read.
pub struct PolicyParts {
    /// Shape after upcycling and attaching the indexer.
    pub config: ModelConfig,
    /// Tensors by their names in that shape.
    pub source: Box<dyn WeightSource>,
    /// Tokenizer.
    pub tokenizer: Tokenizer,
}

/// Opens what `policy` names; nothing large is read yet, unless it asks for a check of all weights.
///
/// # Errors
/// Missing or damaged files, transformations that the model doesn't allow, and with `check_finite`
/// weights that are NaN or infinite.
pub fn open(policy: &PolicyConfig, seed: u64) -> Result<PolicyParts, TrainerError> {
    let (mut config, mut source, tokenizer): (_, Box<dyn WeightSource>, _) = match &policy.source {
        PolicySource::Path(path) => {
            let path = Path::new(path);
            if policy.check_finite {
                model::checkpoint::check_finite(path)?;
            }
            model::checkpoint::open(path)?
        }
        PolicySource::Random(config) => (
            ModelConfig::clone(config),
            Box::new(RandomSource::new(config, seed)),
            Tokenizer::byte_level(),
        ),
    };
    if let Some(upcycle) = &policy.upcycle {
        config = upcycle_config(&config, upcycle.experts, upcycle.top_k)?;
        source = Box::new(UpcycledSource::new(source, seed));
    }
    if let Some(dsa) = &policy.dsa {
        config = indexer_config(&config, dsa.clone())?;
        source = Box::new(IndexerSource::new(source, seed));
    }
    Ok(PolicyParts {
        config,
        source,
        tokenizer,
    })
}

/// Reads every tensor.
///
/// # Errors
/// A tensor that is missing or of another shape.
pub fn load(
    mut parts: PolicyParts,
    kind: Kind,
    device: Device,
) -> Result<(Transformer, Tokenizer), TrainerError> {
    let policy = Transformer::load(&parts.config, parts.source.as_mut(), kind, device)?;
    Ok((policy, parts.tokenizer))
}

/// Whether the stages of `config` can train a policy of `shape`.
///
/// # Errors
/// A policy without a token that ends a sample, or without an indexer that a stage needs.
pub fn check(config: &RunConfig, shape: &ModelConfig) -> Result<(), TrainerError> {
    if shape.eos_token_ids.is_empty() {
        return Err(TrainerError::NoStopToken);
    }
    let needs_indexer = |stage: &StageConfig| match stage {
        StageConfig::IndexerWarmup(_) | StageConfig::SparseTraining(_) => true,
        StageConfig::Sft(_) => false,
        StageConfig::Grpo(grpo) => grpo.train_indexer,
    };
    match config.stages.iter().position(needs_indexer) {
        Some(index) if shape.dsa.is_none() => {
            let stage = config.stages[index].name();
            Err(TrainerError::NoIndexer { index, stage })
        }
        _ => Ok(()),
    }
}

/// The masters by name.
pub fn masters(policy: &Transformer) -> Vec<(&str, &Tensor)> {
    let parameters = policy.parameters().into_iter();
    parameters.map(|p| (p.name.as_str(), &p.master)).collect()
}

/// The masters by name, to be written down: the same storage, without gradient.
pub fn owned_masters(policy: &Transformer) -> Vec<(String, Tensor)> {
    let masters = masters(policy).into_iter();
    masters
        .map(|(name, master)| (name.to_string(), master.detach()))
        .collect()
}

/// The tensor type that `compute` means on `device`.
pub fn compute_kind(compute: Compute, device: Device) -> Kind {
    match compute {
        Compute::F32 => Kind::Float,
        Compute::Bf16 => Kind::BFloat16,
        Compute::Auto if kernels::runtime::has_fast_bf16(device) => Kind::BFloat16,
        Compute::Auto => Kind::Float,
    }
}
