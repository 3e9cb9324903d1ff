//! What a run's figures mean: [`advisories`] names those that are outside their healthy range, with what to do.
//!
//! Pure: from the configuration and the lines of `metrics.jsonl`. The stage of the newest line is judged, by means over
//! its first and newest steps, never by a single one (a spike of the gradient and a stall apart). The ranges and where
//! they come from are in [`ranges`]. A figure that a stage doesn't have is not judged.

mod checks;
pub mod ranges;

use std::fmt;

pub use self::ranges::{Figure, HealthyRange};
use crate::config::{RunConfig, StageConfig};
use crate::metrics::StepMetrics;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; the run may be fine.
    Notice,
    /// The run is losing time or quality.
    Warning,
}

/// A figure outside its healthy range.
#[derive(Clone, Debug, PartialEq)]
pub struct Advisory {
    /// Which; its range and meaning are in [`Figure::range`].
    pub figure: Figure,
    /// How bad.
    pub severity: Severity,
    /// Index of the stage that was judged.
    pub stage_index: usize,
    /// What was found, in words: `0.81 of the groups in the last 10 steps`.
    pub found: String,
    /// What to do.
    pub advice: String,
}

impl fmt::Display for Advisory {
    /// One line: `entropy: 0.01 nats .. (healthy: ..): the policy .. Raise ..`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.figure.range();
        write!(
            f,
            "{}: {} (healthy: {}): {}. {}",
            range.keys[0], self.found, range.healthy, range.meaning, self.advice
        )
    }
}

/// What is out of range in the stage of the newest step, warnings first.
///
/// `silent_secs` is the time since the newest line, where a process works on the run; `None` where none does.
pub fn advisories(
    config: &RunConfig,
    steps: &[StepMetrics],
    silent_secs: Option<f64>,
) -> Vec<Advisory> {
    let Some(newest) = steps.last() else {
        return Vec::new();
    };
    let is_of_stage = |step: &&StepMetrics| step.stage_index == newest.stage_index && step.step > 0;
    let lines = StageLines {
        config,
        index: newest.stage_index,
        steps: steps.iter().filter(is_of_stage).collect(),
    };
    let mut found = checks::of_any_stage(&lines);
    if let Some(StageConfig::Grpo(stage)) = config.stages.get(lines.index) {
        found.extend(checks::of_grpo(&lines, stage));
    }
    found.extend(silent_secs.and_then(|secs| checks::silence(&lines, secs)));
    found.sort_by_key(|advisory| (std::cmp::Reverse(advisory.severity), advisory.figure));
    found
}

/// The steps of one stage.
struct StageLines<'a> {
    config: &'a RunConfig,
    index: usize,
    steps: Vec<&'a StepMetrics>,
}

impl StageLines<'_> {
    /// A figure of the steps that have it.
    fn values(&self, figure: impl Fn(&StepMetrics) -> Option<f64>) -> Vec<f64> {
        self.steps.iter().filter_map(|step| figure(step)).collect()
    }

    fn warning(&self, figure: Figure, found: String, advice: impl Into<String>) -> Advisory {
        Advisory {
            figure,
            severity: Severity::Warning,
            stage_index: self.index,
            found,
            advice: advice.into(),
        }
    }

    fn notice(&self, figure: Figure, found: String, advice: impl Into<String>) -> Advisory {
        Advisory {
            severity: Severity::Notice,
            ..self.warning(figure, found, advice)
        }
    }
}

/// The newest values, [`ranges::WINDOW`] at most; `None` before there are [`ranges::MIN_STEPS`].
fn newest(values: &[f64]) -> Option<&[f64]> {
    let count = values.len().min(ranges::WINDOW);
    (values.len() >= ranges::MIN_STEPS).then(|| &values[values.len() - count..])
}

/// The first and the newest values, equally many and none in both; `None` where that leaves too few.
fn ends(values: &[f64]) -> Option<(&[f64], &[f64])> {
    let count = (values.len() / 2).min(ranges::WINDOW);
    (count >= ranges::MIN_STEPS).then(|| (&values[..count], &values[values.len() - count..]))
}

/// Mean; 0 of nothing.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Median, the upper one of an even number; 0 of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Standard error of the difference of two means, from the spread within each.
fn standard_error(a: &[f64], b: &[f64]) -> f64 {
    let of_mean = |values: &[f64]| {
        let (center, n) = (mean(values), values.len() as f64);
        let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
        squares / (n - 1.0).max(1.0) / n.max(1.0)
    };
    (of_mean(a) + of_mean(b)).sqrt()
}

#[cfg(test)]
mod tests;
