//! `baleen train`: a new run from a configuration.

use std::path::{Path, PathBuf};

use kernels::profiler::ProfileError;

use super::{Failure, logging, output, plan, stop};
use crate::config::RunConfig;
use crate::config_file;
use crate::metrics;
use crate::orchestrator::{self, Outcome};
use crate::prometheus::Endpoint;
use crate::run_folder::RunFolder;
use crate::sandbox_check;
use crate::step_profile::StepProfile;
use crate::summary;
use crate::text;

/// Start a run from a configuration file
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration in RON, such as configs/quickstart.ron
    config: PathBuf,
    /// Run folder to make [default: runs/NAME, with the configuration's `name`]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Replace a value of the configuration, such as sampling.temperature=0.7 (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    overrides: Vec<String>,
    /// Print the whole configuration and what it amounts to, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer Prometheus at this address, such as 127.0.0.1:9464, while the run works
    #[arg(long, value_name = "ADDRESS")]
    prometheus: Option<String>,
    /// Write the timeline of one step there, for ui.perfetto.dev: the third of the first grpo stage, or
    /// of the first stage where there is no grpo; the last step of a shorter one
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

/// Starts the run, or only shows it.
pub fn run(args: &Args) -> Result<(), Failure> {
    let config = config_file::load(&args.config, &args.overrides)?;
    text::check_files(&config)?;
    sandbox_check::check(&config.environments)?;
    if args.dry_run {
        return plan::print(&config);
    }
    let root = match &args.run {
        Some(root) => root.clone(),
        None => Path::new("runs").join(&config.name),
    };
    let endpoint = args.prometheus.as_deref().map(endpoint).transpose()?;
    let profile = args.profile.as_deref().map(|path| profile(path, &config));
    let profile = profile.transpose()?;
    let folder = RunFolder::create(&root, &config)?;
    work(&config, &folder, endpoint, profile.as_ref())
}

/// Makes the file of a profile, so that one that can't be written costs no run.
fn profile(path: &Path, config: &RunConfig) -> Result<StepProfile, Failure> {
    StepProfile::create(path, config).map_err(no_profile)
}

/// A profile that can't be written, known before the work.
pub fn no_profile(error: ProfileError) -> Failure {
    Failure::usage(error).hint("name a file in a folder that exists and can be written to")
}

/// Takes the address where a run is to answer Prometheus.
pub fn endpoint(address: &str) -> Result<Endpoint, Failure> {
    Endpoint::bind(address).map_err(|error| {
        Failure::usage(format!("can't answer Prometheus at {address}: {error}"))
            .hint("name an address of this machine with a free port, such as 127.0.0.1:9464")
    })
}

/// Runs what is left of the run in `folder`, logging into it, answering at `endpoint` and recording
/// `profile`, until it is complete or stopped; what a complete run has come to is printed.
pub fn work(
    config: &RunConfig,
    folder: &RunFolder,
    endpoint: Option<Endpoint>,
    profile: Option<&StepProfile>,
) -> Result<(), Failure> {
    logging::start_with_file(&folder.log_path())?;
    let stop = stop::on_signal()?;
    tracing::info!("run folder: {}", folder.root().display());
    let exporter = endpoint.map(|endpoint| {
        tracing::info!("metrics for Prometheus: {}", endpoint.url());
        endpoint.serve(&config.name)
    });
    let exporter = exporter.transpose().map_err(Failure::running)?;
    let outcome =
        orchestrator::run(config, folder, stop, exporter, profile).map_err(Failure::from)?;
    if outcome == Outcome::Complete {
        let path = folder.metrics_path();
        let steps = metrics::read(&path)
            .map_err(|error| Failure::running(format!("{}: {error}", path.display())))?;
        if let Some(table) = summary::table(config, folder, &steps) {
            output::print_line(&format!("\n{table}"))?;
        }
    }
    Ok(())
}
