//! `baleen resume`: an interrupted run goes on from its newest checkpoint.

use std::path::PathBuf;

use super::{Failure, train};
use crate::config_file::{self, ConfigError};
use crate::resume_check::check_resumable;
use crate::run_folder::RunFolder;

/// Continue a run from its newest checkpoint
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The run continues bit for bit as if it had not been interrupted. --set may change checkpoints.*,
evaluation.* and raise the `steps` of the last stage while its learning rate is constant.")]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
    /// Replace a value of the run's configuration for good (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    overrides: Vec<String>,
}

/// Continues the run.
pub fn run(args: &Args) -> Result<(), Failure> {
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
    if config != saved {
        folder.write_config(&config)?;
    }
    train::work(&config, &folder)
}
