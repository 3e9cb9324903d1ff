//! Which model a command works with and how it computes; loading it.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use kernels::tch::{Device, Kind};
use model::{Attention, ForwardOptions, Routing, Tokenizer, Transformer};
use rollout::SamplingConfig;
use rollout::engine::GenerationSettings;

use super::{Failure, logging};
use crate::checkpoint::Checkpoints;
use crate::config::{Compute, PolicyConfig, PolicySource};
use crate::error::TrainerError;
use crate::policy;
use crate::run_folder::RunLayout;
use crate::session::attention_at;

/// The model and how to compute with it.
#[derive(Debug, clap::Args)]
pub struct ModelArguments {
    /// Model folder, .gguf file, or run folder (its final policy, else its newest checkpoint)
    pub model: PathBuf,
    /// Type to compute in
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Attention, where the model has an indexer [default: sparse; in a run folder, the run's own]
    #[arg(long, value_enum)]
    attention: Option<AttentionArgument>,
    /// CPU threads; 0 takes all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    /// bf16 where the hardware multiplies it fast, else f32
    Auto,
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttentionArgument {
    /// Over the keys that the indexer selects
    Sparse,
    /// Over every key; suits an indexer that has not been trained yet
    Dense,
}

/// A model ready to compute.
pub struct LoadedModel {
    pub policy: Transformer,
    pub tokenizer: Tokenizer,
    pub attention: Attention,
}

impl ModelArguments {
    /// Loads the model; log lines go to standard error from here on.
    pub fn load(&self) -> Result<LoadedModel, Failure> {
        logging::start()?;
        let device = kernels::runtime::start(self.threads).device;
        let kind = policy::compute_kind(self.compute(), device);
        let layout = RunLayout::new(&self.model);
        let (policy, tokenizer, attention) = if layout.is_run() {
            policy_of_run(&layout, kind, device)?
        } else {
            let (policy, tokenizer) = load_path(&self.model, kind, device)?;
            (policy, tokenizer, Attention::Sparse)
        };
        Ok(LoadedModel {
            policy,
            tokenizer,
            attention: match self.attention {
                Some(AttentionArgument::Sparse) => Attention::Sparse,
                Some(AttentionArgument::Dense) => Attention::Dense,
                None => attention,
            },
        })
    }

    fn compute(&self) -> Compute {
        match self.dtype {
            Dtype::Auto => Compute::Auto,
            Dtype::F32 => Compute::F32,
            Dtype::Bf16 => Compute::Bf16,
        }
    }
}

fn load_path(
    path: &Path,
    kind: Kind,
    device: Device,
) -> Result<(Transformer, Tokenizer), TrainerError> {
    let source = PolicyConfig {
        source: PolicySource::Path(path.display().to_string()),
        upcycle: None,
        dsa: None,
    };
    policy::load(policy::open(&source, 0)?, kind, device)
}

/// The final policy of a complete run, else that of the newest checkpoint, with the attention it
/// was trained for.
fn policy_of_run(
    layout: &RunLayout,
    kind: Kind,
    device: Device,
) -> Result<(Transformer, Tokenizer, Attention), Failure> {
    let config = layout.read_config()?;
    if layout.model_path().exists() {
        let (policy, tokenizer) = load_path(&layout.model_path(), kind, device)?;
        return Ok((
            policy,
            tokenizer,
            attention_at(&config, config.stages.len()),
        ));
    }
    let latest = Checkpoints::new(&layout.checkpoints_path(), config.checkpoints.keep)
        .latest()
        .map_err(TrainerError::from)?
        .ok_or_else(|| {
            let text = format!("run {} has no checkpoint yet", layout.root().display());
            Failure::running(text).hint("wait for its first one, or resume it if it has ended")
        })?
        .checkpoint;
    let (policy, tokenizer) =
        policy::load(policy::open(&config.model, config.seed)?, kind, device)?;
    let targets: Vec<_> = policy
        .parameters()
        .into_iter()
        .map(|parameter| (parameter.name.as_str(), &parameter.master))
        .collect();
    latest.load_weights(&targets).map_err(TrainerError::from)?;
    policy.publish();
    tracing::info!("using {}", latest.path.display());
    let attention = attention_at(&config, latest.state.stage);
    Ok((policy, tokenizer, attention))
}

impl LoadedModel {
    /// How to generate with this model.
    pub fn generation(
        &self,
        sampling: SamplingConfig,
        seed: u64,
        max_batch_sequences: usize,
    ) -> Result<GenerationSettings, Failure> {
        let problems = sampling.problems();
        if !problems.is_empty() {
            return Err(Failure::usage(problems.join("; ")));
        }
        let config = self.policy.config();
        Ok(GenerationSettings {
            sampling,
            attention: self.attention,
            stop_tokens: config.eos_token_ids.clone(),
            allowed_vocab: self.tokenizer.vocab_size().min(config.vocab_size),
            seed,
            policy_version: 0,
            max_batch_sequences,
        })
    }

    /// A forward pass that records the experts and, if asked to, the selected keys.
    pub fn recording(&self, record_selected: bool) -> ForwardOptions {
        ForwardOptions {
            routing: Routing::Record,
            attention: self.attention,
            record_selected,
            ..ForwardOptions::inference()
        }
    }
}
