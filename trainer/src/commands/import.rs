//! `baleen import`: any model that baleen reads becomes a folder in Hugging Face layout, on request
//! with experts copied from its dense feed-forward and with a fresh indexer.

use std::path::PathBuf;

use clap::ValueEnum;
use kernels::tch::{Device, Kind};
use model::DsaConfig;

use super::model_arguments::{parse_dsa, parse_upcycle};
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
    /// Search the source for weights that are NaN or infinite first, and refuse them
    #[arg(long)]
    check_finite: bool,
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
        check_finite: args.check_finite,
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
