//! `baleen export`: a checkpoint of a run as a Hugging Face folder, at any time.

use std::path::PathBuf;

use clap::ValueEnum;
use kernels::tch::{Device, Kind};

use super::{Failure, logging, output};
use crate::checkpoint::{Checkpoints, manifest};
use crate::error::TrainerError;
use crate::orchestrator::EXPORT_SHARD_BYTES;
use crate::policy;
use crate::run_folder::RunLayout;

/// Write a checkpoint of a run as a Hugging Face folder
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The run may be working, stopped or complete; it is only read.")]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
    /// Folder to write; it must not hold a model yet
    folder: PathBuf,
    /// Step of the checkpoint [default: the newest intact one]
    #[arg(long)]
    step: Option<u64>,
    /// Type of the weights
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    /// bfloat16, as a complete run's model/
    Bf16,
    /// float32: every bit of the checkpoint
    F32,
}

/// Writes the folder.
pub fn run(args: &Args) -> Result<(), Failure> {
    logging::start()?;
    let layout = RunLayout::new(&args.run);
    let config = layout.read_config()?;
    if args.folder.join("config.json").exists() {
        let text = format!("{} holds a model already", args.folder.display());
        return Err(Failure::usage(text).hint("name another folder"));
    }
    let checkpoints = Checkpoints::new(&layout.checkpoints_path(), 1);
    let found = checkpoints.newest_until(args.step.unwrap_or(u64::MAX));
    let found = found.map_err(TrainerError::from)?;
    let is_asked_for = |step: u64| args.step.is_none_or(|asked| asked == step);
    let checkpoint = found.filter(|found| is_asked_for(found.state.global_step));
    let Some(checkpoint) = checkpoint else {
        let all = checkpoints.verify_all().map_err(TrainerError::from)?;
        let intact = all
            .into_iter()
            .filter_map(|(name, found)| found.ok().map(|_| name));
        let intact: Vec<String> = intact.collect();
        let text = match args.step {
            Some(step) => format!(
                "{} has no intact checkpoint of step {step}",
                args.run.display()
            ),
            None => format!("{} has no intact checkpoint yet", args.run.display()),
        };
        return Err(Failure::running(text).hint(match intact.is_empty() {
            true => "wait for the run's first checkpoint".to_string(),
            false => format!("there are {}", intact.join(", ")),
        }));
    };
    let parts = policy::open(&config.model, config.seed).map_err(Failure::from)?;
    let (policy, tokenizer) = policy::load(parts, Kind::Float, Device::Cpu)?;
    checkpoint
        .load_weights(&policy::masters(&policy))
        .map_err(TrainerError::from)?;
    model::checkpoint::save(
        &args.folder,
        policy.config(),
        &tokenizer,
        &policy::owned_masters(&policy),
        match args.dtype {
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::F32 => Kind::Float,
        },
        EXPORT_SHARD_BYTES,
    )?;
    manifest::seal_folder(&args.folder).map_err(TrainerError::from)?;
    output::print_line(&format!(
        "{}: the policy of {} after step {}",
        args.folder.display(),
        args.run.display(),
        checkpoint.state.global_step
    ))
    .map(|_| ())
}
