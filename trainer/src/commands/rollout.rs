//! `baleen rollout`: the sampling half of a grpo step, for looking at what the policy says.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::{Failure, logging, output, stop};
use crate::checkpoint::Checkpoints;
use crate::config::{GrpoConfig, RunConfig, StageConfig};
use crate::config_file;
use crate::error::TrainerError;
use crate::run_folder::{RunLayout, replace_file};
use crate::sandbox_check;
use crate::session::{Rollout, Session};
use crate::stages::grpo;

/// Sample and grade as a grpo stage would, and train nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Of a configuration, the starting policy answers the first prompts of its first grpo stage; of a run folder, the
policy of its newest checkpoint answers the prompts that come next. Every sample lands in
DIR/rollouts/step-NNNNNN.parquet, as in a run (docs/run-folder.md).")]
pub struct Args {
    /// Configuration in RON, or a run folder
    source: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Steps to sample for
    #[arg(long, default_value_t = 1)]
    steps: u64,
    /// Replace a value of the configuration, such as sampling.temperature=0.7 (repeatable)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    overrides: Vec<String>,
}

/// Samples, and prints a line a step.
pub fn run(args: &Args) -> Result<(), Failure> {
    let run = RunLayout::new(&args.source);
    let config = match args.source.is_dir() {
        true => {
            run.read_config()?;
            config_file::load(&run.config_path(), &args.overrides)?
        }
        false => config_file::load(&args.source, &args.overrides)?,
    };
    if std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        let text = format!("{} is there already and not empty", args.out.display());
        return Err(Failure::usage(text).hint("name another folder with --out"));
    }
    sandbox_check::check(&config.environments)?;
    logging::start()?;
    let stop = stop::on_signal()?;
    let out = RunLayout::new(&args.out);
    let mut session = Session::new(&config, &out, stop)?;
    let checkpoints = Checkpoints::new(&run.checkpoints_path(), 1);
    if args.source.is_dir()
        && let Some(checkpoint) = checkpoints
            .newest_until(u64::MAX)
            .map_err(TrainerError::from)?
    {
        session.restore(&checkpoint)?;
        tracing::info!("using {}", checkpoint.path.display());
    }
    let stage = grpo_stage(&config, session.state.stage).ok_or_else(|| {
        Failure::usage(format!(
            "{} has no grpo stage to sample for",
            args.source.display()
        ))
    })?;
    let stage = GrpoConfig {
        asynchronous: None,
        ..stage.clone()
    };
    let write = |error| TrainerError::Io {
        path: out.config_path(),
        source: error,
    };
    std::fs::create_dir_all(out.root()).map_err(write)?;
    replace_file(&out.config_path(), config_file::to_ron(&config).as_bytes()).map_err(write)?;
    for _ in 0..args.steps {
        let number = session.state.global_step + 1;
        let Some(rollout) = session.next_rollout(&stage)? else {
            break;
        };
        grpo::write_rollout(&session, &rollout)?;
        session.grader.check().map_err(TrainerError::from)?;
        session.state.global_step = number;
        output::print_line(&line(&out, number, &rollout))?;
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    Ok(())
}

/// The grpo stage that runs now, else the next one, else the last.
fn grpo_stage(config: &RunConfig, now: usize) -> Option<&GrpoConfig> {
    let of_grpo = |stage: &'_ StageConfig| matches!(stage, StageConfig::Grpo(_));
    let later = config.stages.iter().skip(now).find(|stage| of_grpo(stage));
    match later.or(config.stages.iter().rfind(|stage| of_grpo(stage)))? {
        StageConfig::Grpo(stage) => Some(stage),
        _ => None,
    }
}

fn line(out: &RunLayout, number: u64, rollout: &Rollout) -> String {
    let samples = || rollout.groups.iter().flat_map(|group| &group.samples);
    let rewards: Vec<f64> = samples().filter_map(|s| s.verdict.reward()).collect();
    let tokens: usize = samples().map(|sample| sample.tokens.len()).sum();
    let num_samples = samples().count();
    let passed = rewards.iter().filter(|&&reward| reward >= 1.0).count();
    let earned = match rewards.len() {
        0 => "no reward".to_string(),
        valid => format!(
            "reward {:.3}, pass rate {:.3}",
            rewards.iter().sum::<f64>() / valid as f64,
            passed as f64 / valid as f64
        ),
    };
    let preempted = match rollout.stats.preemptions {
        0 => String::new(),
        count => format!("; {count} times a sequence was taken out of the cache (`cache_memory`)"),
    };
    format!(
        "{}: {num_samples} samples of {} prompts, {} invalid; {earned}, {:.1} tokens each; {:.0} tokens/s{preempted}",
        out.rollout_path(number).display(),
        rollout.groups.len(),
        num_samples - rewards.len(),
        tokens as f64 / num_samples.max(1) as f64,
        rollout.stats.sampled_tokens as f64 / rollout.sampling_secs
    )
}
