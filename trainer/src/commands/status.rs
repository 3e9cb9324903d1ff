//! `baleen status`: how far a run is and how its rewards go. Reads only; the run may be working.

use std::fmt::Write;
use std::path::PathBuf;

use super::{Failure, output};
use crate::metrics::{self, StepMetrics};
use crate::run_folder::RunLayout;
use crate::summary;

/// Characters of a sparkline, lowest value first.
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of a sparkline, at most.
const SPARK_COLUMNS: usize = 60;

/// Show how far a run is and how its rewards go
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, such as runs/quickstart
    run: PathBuf,
}

/// Prints the status.
pub fn run(args: &Args) -> Result<(), Failure> {
    let layout = RunLayout::new(&args.run);
    let config = layout.read_config()?;
    let path = layout.metrics_path();
    let steps = if path.exists() {
        metrics::read(&path)
            .map_err(|error| Failure::running(format!("{}: {error}", path.display())))?
    } else {
        Vec::new()
    };
    let stages: Vec<(&str, usize)> = config
        .stages
        .iter()
        .map(|stage| (stage.name(), stage.steps()))
        .collect();
    let state = match layout.holder() {
        Some(process) => format!("running: {process}"),
        None => "not running".to_string(),
    };
    let mut text = format!("run {} in {}, {state}\n", config.name, args.run.display());
    match summary::table(&config, &layout, &steps) {
        Some(table) => text = table + "\n",
        None => text.push_str(&progress(&stages, &steps)),
    }
    text.push_str(&curves(&steps));
    let _ = writeln!(text, "\ncheckpoints: {}", checkpoints(&layout));
    output::print_line(text.trim_end()).map(|_| ())
}

fn checkpoints(layout: &RunLayout) -> String {
    let mut names: Vec<String> = std::fs::read_dir(layout.checkpoints_path())
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("step-"))
        .collect();
    names.sort();
    if names.is_empty() {
        "none yet".to_string()
    } else {
        names.join(", ")
    }
}

/// The table of stages and the last step.
fn progress(stages: &[(&str, usize)], steps: &[StepMetrics]) -> String {
    let mut text = String::new();
    for (index, (name, total)) in stages.iter().enumerate() {
        let last = steps
            .iter()
            .rev()
            .find(|step| step.stage_index == index && step.step > 0);
        let done = last.map_or(0, |step| step.step);
        let state = match done {
            0 => "waiting",
            done if done >= *total => "complete",
            _ => "in progress",
        };
        let _ = writeln!(text, "  {index}  {name:<15} {done:>6}/{total:<6} {state}");
    }
    if let Some(last) = steps.last() {
        let total = stages.get(last.stage_index).map_or(0, |stage| stage.1);
        let _ = writeln!(text, "\nlast step: {}", last.summary(total));
    }
    text
}

/// Rewards and pass rates over time.
fn curves(steps: &[StepMetrics]) -> String {
    let mut text = String::new();
    let mut curve = |name: &str, figure: fn(&StepMetrics) -> Option<f64>| {
        let values: Vec<f64> = steps.iter().filter_map(figure).collect();
        if let (Some(first), Some(last)) = (values.first(), values.last()) {
            let line = sparkline(&values);
            let _ = writeln!(text, "\n{name}: {first:.3} -> {last:.3}\n  {line}");
        }
    };
    curve("reward", |step| step.reward_mean);
    curve("held-out pass rate", |step| step.held_out_pass_rate);
    text
}

/// `values` as bars between their least and their greatest; long series are averaged into columns.
fn sparkline(values: &[f64]) -> String {
    let per_column = values.len().div_ceil(SPARK_COLUMNS).max(1);
    let columns: Vec<f64> = values
        .chunks(per_column)
        .map(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64)
        .collect();
    let least = columns.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = columns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = (greatest - least).max(f64::MIN_POSITIVE);
    columns
        .iter()
        .map(|value| SPARKS[((value - least) / range * 7.0).round() as usize])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(stage_index: usize, step: usize, reward: Option<f64>) -> StepMetrics {
        StepMetrics {
            stage: ["sft", "grpo"][stage_index].to_string(),
            stage_index,
            step,
            reward_mean: reward,
            ..StepMetrics::default()
        }
    }

    #[test]
    fn stages_last_step_and_rewards_are_reported() {
        let steps = [
            step(0, 1, None),
            step(0, 2, None),
            step(1, 1, Some(0.25)),
            step(1, 2, Some(0.5)),
        ];
        assert_eq!(
            progress(&[("sft", 2), ("grpo", 5)], &steps) + &curves(&steps),
            "  0  sft                  2/2      complete
  1  grpo                 2/5      in progress

last step: grpo 2/5  reward 0.500

reward: 0.250 -> 0.500
  ▁█
"
        );
    }

    #[test]
    fn a_run_that_has_not_begun_is_waiting() {
        let text = progress(&[("grpo", 5)], &[]);
        assert!(text.contains("0/5      waiting"), "{text}");
    }

    #[test]
    fn sparkline_of_many_values_stays_narrow_and_rises() {
        let values: Vec<f64> = (0..600).map(f64::from).collect();
        let line: Vec<char> = sparkline(&values).chars().collect();
        assert_eq!(line.len(), 60);
        assert_eq!((line[0], line[59]), ('▁', '█'));
        assert_eq!(sparkline(&[0.5, 0.5]), "▁▁");
    }
}
