//! `baleen resume`: an interrupted run goes on from its newest checkpoint.

use std::path::PathBuf;

use super::{Failure, train};
use crate::checkpoint::Checkpoints;
use crate::config::RunConfig;
use crate::config_file::{self, ConfigError};
use crate::error::TrainerError;
use crate::resume_check::check_resumable;
use crate::run_folder::RunFolder;
use crate::sandbox_check;

/// Continue a run from its newest checkpoint
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The run continues bit for bit as if it had not been interrupted. --set may change checkpoints.*,
evaluation.*, grading.* and raise the `steps` of the last stage, unless it is over or its learning
rate decays.")]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
    /// Replace a value of the run's configuration for good (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    overrides: Vec<String>,
    /// Answer Prometheus at this address, such as 127.0.0.1:9464, while the run works
    #[arg(long, value_name = "ADDRESS")]
    prometheus: Option<String>,
}

/// Continues the run.
pub fn run(args: &Args) -> Result<(), Failure> {
    let endpoint = args
        .prometheus
        .as_deref()
        .map(train::endpoint)
        .transpose()?;
    let folder = RunFolder::open(&args.run)?;
    let saved = folder.read_config()?;
    let mut config = saved.clone();
    for argument in &args.overrides {
        config = config_file::with_override(&config, argument)?;
    }
    config
        .validate()
        .map_err(|problems| ConfigError::Problems {
            origin: "--set".to_string(),
            problems,
        })?;
    check_resumable(&saved, &config)?;
    sandbox_check::check(&config.environments)?;
    if config.stages != saved.stages {
        check_not_complete(&folder, &saved)?;
    }
    if config != saved {
        folder.write_config(&config)?;
    }
    train::work(&config, &folder, endpoint, None)
}

/// The last stage can be made longer only before it ends: its optimizer is not kept beyond.
fn check_not_complete(folder: &RunFolder, config: &RunConfig) -> Result<(), Failure> {
    let latest = Checkpoints::new(&folder.checkpoints_path(), config.checkpoints.keep)
        .latest()
        .map_err(TrainerError::from)?;
    match latest {
        Some(latest) if latest.checkpoint.state.stage >= config.stages.len() => {
            let path = folder.model_path();
            let hint = format!("start a new run with model.source Path({path:?})");
            let problem = "the run is complete; its last stage can't be made longer any more";
            Err(Failure::usage(problem).hint(hint))
        }
        _ => Ok(()),
    }
}
