//! Which model a command works with and how it computes; loading it.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use kernels::tch::{Device, Kind};
use model::{Attention, DsaConfig, ForwardOptions, Routing, Selection, Tokenizer, Transformer};
use rollout::{GenerationSettings, MemorySettings, SamplingConfig, Vocabulary};

use super::{Failure, logging};
use crate::checkpoint::Checkpoints;
use crate::config::{Compute, PolicyConfig, PolicySource, UpcycleConfig};
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
    /// Search the model for weights that are NaN or infinite first, and refuse them
    #[arg(long)]
    check_finite: bool,
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
        let (kind, device) = self.start()?;
        let layout = RunLayout::new(&self.model);
        let (policy, tokenizer, attention) = if layout.is_run() {
            self.load_run(&layout, kind, device)?
        } else {
            let (policy, tokenizer) = self.load_path(&self.model, kind, device)?;
            (policy, tokenizer, Attention::Sparse)
        };
        Ok(self.loaded(policy, tokenizer, attention))
    }

    /// The same, but `source` instead of what `model` names.
    pub fn load_policy(&self, source: &PolicyConfig) -> Result<LoadedModel, Failure> {
        let (kind, device) = self.start()?;
        let (policy, tokenizer) = policy::load(policy::open(source, 0)?, kind, device)?;
        Ok(self.loaded(policy, tokenizer, Attention::Sparse))
    }

    fn load_path(
        &self,
        path: &Path,
        kind: Kind,
        device: Device,
    ) -> Result<(Transformer, Tokenizer), TrainerError> {
        let source = self.source(PolicySource::Path(path.display().to_string()));
        policy::load(policy::open(&source, 0)?, kind, device)
    }

    /// What `source` holds, looked through where that is asked for.
    pub fn source(&self, source: PolicySource) -> PolicyConfig {
        PolicyConfig {
            check_finite: self.check_finite,
            ..PolicyConfig::unchanged(source)
        }
    }

    /// The final policy of a complete run, else that of the newest checkpoint, with the attention it
    /// was trained for.
    fn load_run(
        &self,
        layout: &RunLayout,
        kind: Kind,
        device: Device,
    ) -> Result<(Transformer, Tokenizer, Attention), Failure> {
        let config = layout.read_config()?;
        if layout.model_path().exists() {
            let (policy, tokenizer) = self.load_path(&layout.model_path(), kind, device)?;
            let attention = attention_at(&config, config.stages.len());
            return Ok((policy, tokenizer, attention));
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
        let targets = policy::masters(&policy);
        latest.load_weights(&targets).map_err(TrainerError::from)?;
        if self.check_finite {
            model::checkpoint::check_finite_weights(&latest.path, targets)?;
        }
        policy.publish();
        tracing::info!("using {}", latest.path.display());
        let attention = attention_at(&config, latest.state.stage);
        Ok((policy, tokenizer, attention))
    }

    fn start(&self) -> Result<(Kind, Device), Failure> {
        logging::start()?;
        let device = kernels::runtime::start(self.threads).device;
        Ok((policy::compute_kind(self.compute(), device), device))
    }

    fn loaded(&self, policy: Transformer, tokenizer: Tokenizer, own: Attention) -> LoadedModel {
        LoadedModel {
            policy,
            tokenizer,
            attention: match self.attention {
                Some(AttentionArgument::Sparse) => Attention::Sparse,
                Some(AttentionArgument::Dense) => Attention::Dense,
                None => own,
            },
        }
    }

    fn compute(&self) -> Compute {
        match self.dtype {
            Dtype::Auto => Compute::Auto,
            Dtype::F32 => Compute::F32,
            Dtype::Bf16 => Compute::Bf16,
        }
    }
}

impl LoadedModel {
    /// How to generate with this model.
    pub fn generation(
        &self,
        sampling: SamplingConfig,
        seed: u64,
        max_batch_sequences: usize,
        memory: MemorySettings,
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
            vocabulary: Vocabulary::of(&self.tokenizer, config.vocab_size),
            seed,
            policy_version: 0,
            max_batch_sequences,
            memory,
            record_selection: false,
        })
    }

    /// A forward pass that records the experts and, if asked to, the selected keys.
    pub fn recording(&self, record_selected: bool) -> ForwardOptions {
        ForwardOptions {
            routing: Routing::Record,
            attention: self.attention,
            selection: match record_selected {
                true => Selection::Record,
                false => Selection::Free,
            },
            ..ForwardOptions::inference()
        }
    }
}

/// Reads `experts=4,top_k=2`.
pub fn parse_upcycle(text: &str) -> Result<UpcycleConfig, String> {
    let [experts, top_k] = numbers(text, ["experts", "top_k"])?;
    Ok(UpcycleConfig { experts, top_k })
}

/// Reads `heads=4,dim=32,topk=16`.
pub fn parse_dsa(text: &str) -> Result<DsaConfig, String> {
    let [index_n_heads, index_head_dim, index_topk] = numbers(text, ["heads", "dim", "topk"])?;
    Ok(DsaConfig::new(index_n_heads, index_head_dim, index_topk))
}

/// The numbers of `a=1,b=2` in the order of `names`, every one of which must be there.
fn numbers<const N: usize>(text: &str, names: [&str; N]) -> Result<[usize; N], String> {
    let mut found = [None; N];
    for part in text.split(',') {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("'{part}' is not of the form name=number"))?;
        let index = names
            .iter()
            .position(|known| *known == name.trim())
            .ok_or_else(|| format!("unknown name '{name}'; valid: {}", names.join(", ")))?;
        let value = value
            .trim()
            .parse()
            .map_err(|_| format!("{name} must be a whole number, not '{value}'"))?;
        found[index] = Some(value);
    }
    let mut numbers = [0; N];
    for ((number, value), name) in numbers.iter_mut().zip(found).zip(names) {
        *number = value.ok_or_else(|| format!("{name}=... is missing"))?;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_any_order() {
        assert_eq!(
            numbers("top_k=2, experts=4", ["experts", "top_k"]),
            Ok([4, 2])
        );
    }

    #[test]
    fn mistakes_are_named() {
        let mistake = |text| numbers(text, ["experts", "top_k"]).expect_err("a mistake");
        assert_eq!(mistake("experts=4"), "top_k=... is missing");
        assert_eq!(
            mistake("expert=4"),
            "unknown name 'expert'; valid: experts, top_k"
        );
        assert_eq!(
            mistake("experts=x,top_k=1"),
            "experts must be a whole number, not 'x'"
        );
        assert_eq!(mistake("4,2"), "'4' is not of the form name=number");
    }
}
