//! The table at the end of a run: what each stage was to move, from where to where, and its cost.
//!
//! Everything comes from the lines of `metrics.jsonl`, so the table is the same after a resume. A
//! figure without lines (no evaluation, no indexer) is left out. Speeds are tokens over seconds of
//! all steps together; time is that of the steps with their evaluations, without loading and saving.

use std::fmt::Write;

use crate::config::{RunConfig, StageConfig};
use crate::metrics::StepMetrics;
use crate::run_folder::RunLayout;

/// Steps at either end of a grpo stage whose rewards are averaged, at most.
const REWARD_STEPS: usize = 5;

/// Names of what a run takes, in the order of [`costs`].
pub(crate) const COSTS: [&str; 4] = ["time", "rollout", "training", "peak memory"];

/// What lies in the run folder.
const FILES: [(&str, &str); 7] = [
    ("model/", "final policy, a Hugging Face folder"),
    ("checkpoints/", "what a stopped run continues from"),
    (
        "rollouts/",
        "every prompt, sample and reward, a parquet file a step",
    ),
    ("metrics.jsonl", "the figures of every step"),
    ("tensorboard/", "the same figures, for TensorBoard"),
    ("log.txt", "what the console said"),
    (
        "config.ron",
        "the configuration with every default written out",
    ),
];

/// One figure, in plain words, at the start and at the end of its stage.
pub(crate) struct Figure {
    /// What it is.
    pub name: String,
    /// At the start, where it has two ends.
    pub before: Option<String>,
    /// At the end, or over the whole stage.
    pub after: String,
}

/// What a stage was to move, and its cost so far.
pub(crate) struct StageSummary {
    /// Kind of stage.
    pub name: String,
    /// Its figures.
    pub figures: Vec<Figure>,
    /// Steps made.
    pub num_steps: usize,
    /// Their time, for people.
    pub time: String,
}

/// The table of a complete run; `None` until every stage has made its last step.
pub fn table(config: &RunConfig, layout: &RunLayout, steps: &[StepMetrics]) -> Option<String> {
    if !is_complete(config, steps) {
        return None;
    }
    let stages = stages(config, steps);
    let num_steps: usize = stages.iter().map(|stage| stage.num_steps).sum();
    let mut text = format!("run {}: complete, {num_steps} steps\n\n", config.name);
    let held_out: Vec<f64> = steps.iter().filter_map(|s| s.held_out_pass_rate).collect();
    if let [first, .., last] = held_out[..] {
        let evaluation = &config.evaluation;
        let _ = writeln!(
            text,
            "held-out pass rate ({} prompts, temperature {:?}): {first:.3} -> {last:.3}\n",
            evaluation.prompts, evaluation.temperature
        );
    }
    let _ = writeln!(
        text,
        "{:<18}{:<42}{:>9}    {:>9}{:>7}{:>9}",
        "stage", "figure", "before", "after", "steps", "time"
    );
    for stage in &stages {
        let steps_column = stage.num_steps.to_string();
        let mut stage_columns = [
            stage.name.as_str(),
            steps_column.as_str(),
            stage.time.as_str(),
        ];
        for figure in &stage.figures {
            let [stage, count, time] = std::mem::take(&mut stage_columns);
            let (before, arrow) = match &figure.before {
                Some(before) => (before.as_str(), "->"),
                None => ("", ""),
            };
            let line = format!(
                "{stage:<18}{:<42}{before:>9} {arrow:>2} {:>9}{count:>7}{time:>9}",
                figure.name, figure.after
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }

    text.push('\n');
    for (name, value) in costs(steps) {
        let _ = writeln!(text, "{name:<18}{value}");
    }
    let _ = write!(text, "\nfiles in {}", layout.root().display());
    for (name, holds) in FILES {
        let _ = write!(text, "\n  {name:<18}{holds}");
    }
    Some(text)
}

/// Whether every stage has made its last step.
pub(crate) fn is_complete(config: &RunConfig, steps: &[StepMetrics]) -> bool {
    let is_over = |(index, stage): (usize, &StageConfig)| {
        let last = lines_of_stage(steps, index).last().copied();
        last.is_some_and(|last| last.step >= stage.steps())
    };
    !config.stages.is_empty() && config.stages.iter().enumerate().all(is_over)
}

/// The stages that have made a step.
pub(crate) fn stages(config: &RunConfig, steps: &[StepMetrics]) -> Vec<StageSummary> {
    let summary = |index| {
        let lines = lines_of_stage(steps, index);
        Some(StageSummary {
            name: lines.first()?.stage.clone(),
            figures: figures(config, index, &lines, steps),
            num_steps: lines.len(),
            time: duration(secs(&lines)),
        })
    };
    (0..config.stages.len()).filter_map(summary).collect()
}

/// Name and value of what the run took so far: time, speeds, memory.
pub(crate) fn costs(steps: &[StepMetrics]) -> Vec<(&'static str, String)> {
    let of_all: Vec<&StepMetrics> = steps.iter().collect();
    let tokens_per_sec = |rate: fn(&StepMetrics) -> Option<f64>, time| {
        speed(steps, rate, time).map(|speed| format!("{speed:.0} tokens/s"))
    };
    let peak = steps.iter().filter_map(|s| s.peak_memory_bytes).max();
    let costs = [
        Some(duration(secs(&of_all))),
        tokens_per_sec(|s| s.rollout_tokens_per_sec, |s| s.secs.rollout),
        tokens_per_sec(|s| s.train_tokens_per_sec, |s| s.secs.train),
        peak.map(|bytes| format!("{:.2} GB", bytes as f64 / 1e9)),
    ];
    let named = COSTS.into_iter().zip(costs);
    named
        .filter_map(|(name, cost)| Some((name, cost?)))
        .collect()
}

/// The rewards at either end, each the mean of that many steps; `None` where no step has one.
pub(crate) fn reward_ends(rewards: &[f64]) -> Option<(f64, f64, usize)> {
    let count = REWARD_STEPS.min(rewards.len() / 2).max(1);
    let first = mean(rewards.get(..count)?)?;
    Some((first, mean(&rewards[rewards.len() - count..])?, count))
}

fn lines_of_stage(steps: &[StepMetrics], index: usize) -> Vec<&StepMetrics> {
    let of_stage = |step: &&StepMetrics| step.stage_index == index && step.step > 0;
    steps.iter().filter(of_stage).collect()
}

/// What stage `index` was to move; `lines` are its steps, `steps` those of the whole run.
fn figures(
    config: &RunConfig,
    index: usize,
    lines: &[&StepMetrics],
    steps: &[StepMetrics],
) -> Vec<Figure> {
    let values = |figure: fn(&StepMetrics) -> Option<f64>| -> Vec<f64> {
        lines.iter().filter_map(|line| figure(line)).collect()
    };
    let mut found = Vec::new();
    let mut from_to = |name: &str, figure: fn(&StepMetrics) -> Option<f64>| {
        let values = values(figure);
        if let Some(last) = values.last() {
            found.push(Figure {
                name: name.to_string(),
                before: (values.len() > 1).then(|| format!("{:.4}", values[0])),
                after: format!("{last:.4}"),
            });
        }
    };
    let is_grpo = matches!(config.stages[index], StageConfig::Grpo(_));
    if !is_grpo {
        from_to("loss, nats a token", |line| line.loss);
    }
    from_to("indexer KL, nats a token", |line| line.indexer_kl);
    if let Some(after) = values(|line| line.held_out_pass_rate).last() {
        let before = steps
            .iter()
            .take_while(|step| step.step == 0 || step.stage_index < index)
            .filter_map(|step| step.held_out_pass_rate)
            .last();
        found.push(Figure {
            name: "held-out pass rate".to_string(),
            before: before.map(|before| format!("{before:.3}")),
            after: format!("{after:.3}"),
        });
    }
    if let Some((before, after, count)) = reward_ends(&values(|line| line.reward_mean)) {
        found.push(Figure {
            name: format!("reward, mean of {count} step(s) at either end"),
            before: Some(format!("{before:.3}")),
            after: format!("{after:.3}"),
        });
    }
    if let Some(share) = mean(&values(|line| line.keys_selected_share)).filter(|&s| s < 1.0) {
        found.push(Figure {
            name: "keys attended, share of those visible".to_string(),
            before: None,
            after: format!("{share:.3}"),
        });
    }
    if let Some(share) = mean(&values(|line| line.clipped_share)) {
        found.push(Figure {
            name: "tokens clipped, share".to_string(),
            before: None,
            after: format!("{share:.4}"),
        });
    }
    let masked: Vec<usize> = lines.iter().filter_map(|l| l.masked_sequences).collect();
    if !masked.is_empty() {
        found.push(Figure {
            name: "sequences dropped by the off-policy mask".to_string(),
            before: None,
            after: masked.iter().sum::<usize>().to_string(),
        });
    }
    found
}

/// Seconds of steps with their evaluations; the starting policy's line has its evaluation alone.
fn secs(lines: &[&StepMetrics]) -> f64 {
    lines
        .iter()
        .filter_map(|line| line.secs.total.or(line.secs.evaluation))
        .sum()
}

/// Tokens of all steps over their seconds.
fn speed(
    steps: &[StepMetrics],
    rate: fn(&StepMetrics) -> Option<f64>,
    time: fn(&StepMetrics) -> Option<f64>,
) -> Option<f64> {
    let (mut tokens, mut secs) = (0.0, 0.0);
    for step in steps {
        if let (Some(rate), Some(time)) = (rate(step), time(step)) {
            tokens += rate * time;
            secs += time;
        }
    }
    (secs > 0.0).then(|| tokens / secs)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// `59.4 s`, `2m 05s`, `3h 07m`.
pub(crate) fn duration(secs: f64) -> String {
    let whole = secs.round() as u64;
    match whole {
        _ if secs < 59.95 => format!("{secs:.1} s"),
        ..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests;
