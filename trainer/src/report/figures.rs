//! Which figures of `metrics.jsonl` the page shows, and how: a chart each, of one run or of several over one another.

mod plans;

use self::plans::{PHASES, PLANS, Plan, Value};
use super::axis::Scale;
use super::chart::{Body, Chart, Curve, StageStart};
use super::points::Point;
use crate::config::RunConfig;
use crate::health::Figure;
use crate::metrics::StepMetrics;

/// A run's configuration and steps, as charts need them.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunSteps<'a> {
    /// Its name in legends.
    pub label: &'a str,
    /// Configuration.
    pub config: &'a RunConfig,
    /// Lines of metrics.jsonl.
    pub steps: &'a [StepMetrics],
}

/// A chart with the figures that are judged in it.
#[derive(Clone, Debug)]
pub(super) struct JudgedChart {
    /// The chart.
    pub chart: Chart,
    /// Those whose healthy range stands beside it.
    pub figures: &'static [Figure],
}

/// Every chart that has something to show.
pub(super) fn charts(runs: &[RunSteps]) -> Vec<JudgedChart> {
    let overlaid = PLANS.iter().map(|plan| JudgedChart {
        chart: plan.chart(runs),
        figures: plan.figures,
    });
    // Bars can't lie over one another: one chart a run.
    let phases = runs.iter().map(|run| JudgedChart {
        chart: phases(run, runs),
        figures: &[Figure::Silence],
    });
    overlaid
        .chain(phases)
        .filter(|judged| !judged.chart.is_empty())
        .collect()
}

impl Plan {
    /// One run: a colour for each curve. Several: a colour for each run, a dash pattern for each curve.
    fn chart(&self, runs: &[RunSteps]) -> Chart {
        let mut curves = Vec::new();
        for (run_index, run) in runs.iter().enumerate() {
            for (curve_index, (name, value)) in self.curves.iter().enumerate() {
                let spread = |step: &StepMetrics| match curve_index {
                    0 => (self.spread)(run.config, step).unwrap_or(0.0),
                    _ => 0.0,
                };
                let points = points(run, *value, spread);
                if points.is_empty() {
                    continue;
                }
                let is_alone = runs.len() == 1;
                curves.push(Curve {
                    label: name.to_string(),
                    run: (!is_alone).then(|| run.label.to_string()),
                    color: if is_alone { curve_index } else { run_index },
                    dash: if is_alone { 0 } else { curve_index },
                    points,
                });
            }
        }
        let mut bounds: Vec<f64> = runs
            .iter()
            .flat_map(|run| (self.bounds)(run.config))
            .collect();
        bounds.sort_unstable_by(f64::total_cmp);
        bounds.dedup();
        Chart {
            title: self.title.to_string(),
            unit: self.unit,
            scale: self.scale,
            from_zero: self.from_zero,
            body: Body::Curves(curves),
            bounds,
            stages: stages(runs),
        }
    }
}

fn points(run: &RunSteps, value: Value, spread: impl Fn(&StepMetrics) -> f64) -> Vec<Point> {
    let point = |step: &StepMetrics| {
        let y = value(run.config, step).filter(|y| y.is_finite())?;
        Some(Point {
            x: step.global_step as f64,
            y,
            spread: spread(step),
        })
    };
    run.steps.iter().filter_map(point).collect()
}

/// Where the time of each step went; what no part accounts for is `other`.
fn phases(run: &RunSteps, runs: &[RunSteps]) -> Chart {
    let has_time = |step: &&StepMetrics| step.secs.total.is_some();
    let timed: Vec<&StepMetrics> = run.steps.iter().filter(has_time).collect();
    let part_of = |step: &StepMetrics, value: Value| value(run.config, step).unwrap_or(0.0);
    let part = |color: usize, label: &str, secs: &dyn Fn(&StepMetrics) -> f64| Curve {
        label: label.to_string(),
        run: None,
        color,
        dash: 0,
        points: timed
            .iter()
            .map(|step| Point {
                x: step.global_step as f64,
                y: secs(step),
                spread: 0.0,
            })
            .collect(),
    };
    let mut parts: Vec<Curve> = PHASES
        .iter()
        .enumerate()
        .map(|(color, &(label, value))| part(color, label, &|step| part_of(step, value)))
        .collect();
    parts.push(part(PHASES.len(), "other", &|step| {
        let known: f64 = PHASES.iter().map(|&(_, value)| part_of(step, value)).sum();
        (step.secs.total.unwrap_or(0.0) - known).max(0.0)
    }));
    parts.retain(|part| part.points.iter().any(|point| point.y > 0.0));
    Chart {
        title: match runs.len() {
            1 => "Time of a step".to_string(),
            _ => format!("Time of a step, {}", run.label),
        },
        unit: "seconds",
        scale: Scale::Linear,
        from_zero: true,
        body: Body::Bars(parts),
        bounds: Vec::new(),
        stages: stages(std::slice::from_ref(run)),
    }
}

/// Where the stages of the runs begin, in the colour of the run; without one where several begin the same stage.
fn stages(runs: &[RunSteps]) -> Vec<StageStart> {
    let of_run = |(index, run): (usize, &RunSteps)| -> Vec<StageStart> {
        let first_steps = run.steps.iter().filter(|step| step.step == 1);
        first_steps
            .map(|step| StageStart {
                x: step.global_step as f64,
                name: step.stage.clone(),
                color: (runs.len() > 1).then_some(index),
            })
            .collect()
    };
    let mut all: Vec<StageStart> = runs.iter().enumerate().flat_map(of_run).collect();
    all.sort_by(|a, b| a.x.total_cmp(&b.x).then_with(|| a.name.cmp(&b.name)));
    let mut stages: Vec<StageStart> = Vec::new();
    for stage in all {
        match stages.last_mut() {
            Some(last) if last.x == stage.x && last.name == stage.name => last.color = None,
            _ => stages.push(stage),
        }
    }
    stages
}

#[cfg(test)]
mod tests;
