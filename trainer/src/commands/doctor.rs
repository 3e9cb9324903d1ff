//! `baleen doctor`: whether a run would be sound, before it starts.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::{Failure, logging, output};
use crate::config_file;
use crate::doctor::{self, Finding, State};
use crate::sandbox_check;
use crate::text;

/// Check before a run that sampler and trainer agree, and that all else fits
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration in RON, such as configs/quickstart.ron
    config: PathBuf,
    /// Prompts to play, a few samples each
    #[arg(long, default_value_t = 8, value_name = "N")]
    prompts: usize,
    /// Replace a value of the configuration, such as sampling.temperature=0.7 (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    overrides: Vec<String>,
    /// Also write the findings here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
struct Report<'a> {
    passed: bool,
    findings: &'a [Finding],
}

/// Prints a line a check; fails where one does.
pub fn run(args: &Args) -> Result<(), Failure> {
    let config = config_file::load(&args.config, &args.overrides)?;
    text::check_files(&config)?;
    sandbox_check::check(&config.environments)?;
    if args.prompts == 0 {
        return Err(Failure::usage("--prompts 0 leaves nothing to compare"));
    }
    logging::start()?;
    let runtime = kernels::runtime::start(config.threads);
    let mut findings: Vec<Finding> = Vec::new();
    let mut printed = Ok(true);
    doctor::examine(&config, &runtime, args.prompts, &mut |finding| {
        if let Ok(true) = printed {
            printed = output::print_line(&finding.to_string());
        }
        findings.push(finding);
    })?;
    let num_failed = findings.iter().filter(|f| f.has_failed()).count();
    let num_checks = findings.iter().filter(|f| f.state != State::Note).count();
    if printed? {
        output::print_line(&format!("{num_checks} checks, {num_failed} failed"))?;
    }
    if let Some(path) = &args.json {
        let report = Report {
            passed: num_failed == 0,
            findings: &findings,
        };
        let text = serde_json::to_string_pretty(&report).map_err(Failure::running)?;
        fs::write(path, text + "\n").map_err(|error| {
            Failure::running(format!("can't write {}: {error}", path.display()))
        })?;
    }
    if num_failed == 0 {
        return Ok(());
    }
    let checks = if num_failed == 1 { "check" } else { "checks" };
    Err(Failure::running(format!("{num_failed} {checks} failed"))
        .hint("docs/doctor.md tells more about each"))
}
