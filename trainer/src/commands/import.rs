//! `baleen import`: any model that baleen reads becomes a folder in Hugging Face layout, on request
//! with experts copied from its dense feed-forward and with a fresh indexer.

use std::path::PathBuf;

use clap::ValueEnum;
use kernels::tch::{Device, Kind};
use model::DsaConfig;

use super::{Failure, logging};
use crate::config::{PolicyConfig, PolicySource, UpcycleConfig};
use crate::policy;

/// Larger models are split into files of at most this size.
const SHARD_BYTES: usize = 4 << 30;

/// Turn a model into a Hugging Face folder, if wanted with experts and an indexer
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model folder or .gguf file
    source: PathBuf,
    /// Folder to make; a model there is replaced
    target: PathBuf,
    /// Make experts of a dense model, each a copy of its feed-forward: experts=4,top_k=2
    #[arg(long, value_parser = parse_upcycle, value_name = "experts=N,top_k=K")]
    upcycle: Option<UpcycleConfig>,
    /// Attach a lightning indexer, untrained: heads=4,dim=32,topk=16
    #[arg(long, value_parser = parse_dsa, value_name = "heads=H,dim=D,topk=K")]
    dsa: Option<DsaConfig>,
    /// Type to store; f32 keeps every bit of the source
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Draws what is new: router and indexer
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

/// Reads, transforms and writes the model.
pub fn run(args: &Args) -> Result<(), Failure> {
    logging::start()?;
    let wish = PolicyConfig {
        source: PolicySource::Path(args.source.display().to_string()),
        upcycle: args.upcycle.clone(),
        dsa: args.dsa.clone(),
    };
    let parts = policy::open(&wish, args.seed)?;
    let (policy, tokenizer) = policy::load(parts, Kind::Float, Device::Cpu)?;
    let tensors: Vec<_> = policy
        .parameters()
        .into_iter()
        .map(|parameter| (parameter.name.clone(), parameter.master.detach()))
        .collect();
    let (kind, name) = match args.dtype {
        Dtype::F32 => (Kind::Float, "f32"),
        Dtype::Bf16 => (Kind::BFloat16, "bf16"),
    };
    let config = policy.config();
    model::checkpoint::save(
        &args.target,
        config,
        &tokenizer,
        &tensors,
        kind,
        SHARD_BYTES,
    )?;
    tracing::info!(
        "{}: {:.1} M parameters in {name}",
        args.target.display(),
        config.num_parameters() as f64 / 1e6
    );
    Ok(())
}

fn parse_upcycle(text: &str) -> Result<UpcycleConfig, String> {
    let [experts, top_k] = numbers(text, ["experts", "top_k"])?;
    Ok(UpcycleConfig { experts, top_k })
}

fn parse_dsa(text: &str) -> Result<DsaConfig, String> {
    let [index_n_heads, index_head_dim, index_topk] = numbers(text, ["heads", "dim", "topk"])?;
    Ok(DsaConfig {
        index_n_heads,
        index_head_dim,
        index_topk,
    })
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
