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

/// What lies in the run folder.
const FILES: [(&str, &str); 6] = [
    ("model/", "final policy, a Hugging Face folder"),
    ("checkpoints/", "what a stopped run continues from"),
    (
        "rollouts/",
        "every prompt, sample and reward, a parquet file a step",
    ),
    ("metrics.jsonl", "the figures of every step"),
    ("log.txt", "what the console said"),
    (
        "config.ron",
        "the configuration with every default written out",
    ),
];

/// One figure, in plain words, at the start and at the end of its stage.
struct Figure {
    name: String,
    before: Option<String>,
    after: String,
}

/// The table of a complete run; `None` until every stage has made its last step.
pub fn table(config: &RunConfig, layout: &RunLayout, steps: &[StepMetrics]) -> Option<String> {
    let stages: Vec<Vec<&StepMetrics>> = (0..config.stages.len())
        .map(|index| {
            let of_stage = |step: &&StepMetrics| step.stage_index == index && step.step > 0;
            steps.iter().filter(of_stage).collect()
        })
        .collect();
    let is_over = |(stage, lines): (&StageConfig, &Vec<&StepMetrics>)| {
        lines.last().is_some_and(|last| last.step >= stage.steps())
    };
    if stages.is_empty() || !config.stages.iter().zip(&stages).all(is_over) {
        return None;
    }

    let num_steps: usize = stages.iter().map(Vec::len).sum();
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
    for (index, lines) in stages.iter().enumerate() {
        let (steps_column, time_column) = (lines.len().to_string(), duration(secs(lines)));
        let mut stage_columns = [
            lines[0].stage.as_str(),
            steps_column.as_str(),
            time_column.as_str(),
        ];
        for figure in figures(config, index, lines, steps) {
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
    let of_all: Vec<&StepMetrics> = steps.iter().collect();
    let mut cost = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<18}{value}");
        }
    };
    cost("time", Some(duration(secs(&of_all))));
    let tokens_per_sec = |rate: fn(&StepMetrics) -> Option<f64>, time| {
        speed(steps, rate, time).map(|speed| format!("{speed:.0} tokens/s"))
    };
    cost(
        "rollout",
        tokens_per_sec(|s| s.rollout_tokens_per_sec, |s| s.secs.rollout),
    );
    cost(
        "training",
        tokens_per_sec(|s| s.train_tokens_per_sec, |s| s.secs.train),
    );
    let peak = steps.iter().filter_map(|s| s.peak_memory_bytes).max();
    cost(
        "peak memory",
        peak.map(|bytes| format!("{:.2} GB", bytes as f64 / 1e9)),
    );
    let _ = write!(text, "\nfiles in {}", layout.root().display());
    for (name, holds) in FILES {
        let _ = write!(text, "\n  {name:<18}{holds}");
    }
    Some(text)
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
    let rewards = values(|line| line.reward_mean);
    if !rewards.is_empty() {
        let count = REWARD_STEPS.min(rewards.len() / 2).max(1);
        let average = |part: &[f64]| format!("{:.3}", mean(part).expect("count is at least 1"));
        found.push(Figure {
            name: format!("reward, mean of {count} step(s) at either end"),
            before: Some(average(&rewards[..count])),
            after: average(&rewards[rewards.len() - count..]),
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
fn duration(secs: f64) -> String {
    let whole = secs.round() as u64;
    match whole {
        _ if secs < 59.95 => format!("{secs:.1} s"),
        ..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests;
