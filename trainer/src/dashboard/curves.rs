//! Figures over the steps of a run, as small charts.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Widget};

use super::text::number;
use crate::metrics::StepMetrics;

/// A chart that is this high has its steps written below it.
const HEIGHT_WITH_STEPS: u16 = 8;
/// Charts beside each other where they are at least this wide, at most four.
const CHART_WIDTH: u16 = 36;

/// A figure of a step.
pub type Figure = fn(&StepMetrics) -> Option<f64>;

/// A figure that is charted.
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    /// What it is, with its unit.
    pub title: &'static str,
    /// Its value at a step.
    pub figure: Figure,
}

/// The reward; until there is one, what the stages before it are to lower.
const PROGRESS: [Curve; 3] = [
    Curve {
        title: "reward",
        figure: |step| step.reward_mean,
    },
    Curve {
        title: "loss, nats a token",
        figure: |step| step.loss,
    },
    Curve {
        title: "indexer KL, nats a token",
        figure: |step| step.indexer_kl,
    },
];

const HELD_OUT: Curve = Curve {
    title: "held-out pass rate",
    figure: |step| step.held_out_pass_rate,
};

/// The panel of curves.
const CURVES: [Curve; 8] = [
    Curve {
        title: "KL to the reference",
        figure: |step| step.kl,
    },
    Curve {
        title: "entropy, nats a token",
        figure: |step| step.entropy,
    },
    Curve {
        title: "masked sequences",
        figure: |step| step.masked_sequences.map(|count| count as f64),
    },
    Curve {
        title: "masked share of advantage",
        figure: |step| step.off_policy.masked_advantage_share,
    },
    Curve {
        title: "log-prob gap, mean",
        figure: |step| step.logprob_gap_mean,
    },
    Curve {
        title: "rollout, tokens/s",
        figure: |step| step.rollout_tokens_per_sec,
    },
    Curve {
        title: "training, tokens/s",
        figure: |step| step.train_tokens_per_sec,
    },
    Curve {
        title: "step, seconds",
        figure: |step| step.secs.total,
    },
];

/// Draws how the rewards go, and the held-out pass rate beside it.
pub fn draw_rewards(buffer: &mut Buffer, area: Rect, steps: &[StepMetrics]) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(area);
    let has_values = |curve: &&Curve| steps.iter().any(|step| (curve.figure)(step).is_some());
    let progress = PROGRESS.iter().find(has_values).unwrap_or(&PROGRESS[0]);
    draw_curve(buffer, left, progress, steps);
    draw_curve(buffer, right, &HELD_OUT, steps);
}

/// Draws all curves of the panel in a grid.
pub fn draw_curves(buffer: &mut Buffer, area: Rect, steps: &[StepMetrics]) {
    let num_columns = match area.width / CHART_WIDTH {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => 4,
    };
    let num_rows = CURVES.len() / num_columns;
    let rows = Layout::vertical(vec![Constraint::Fill(1); num_rows]).split(area);
    for (row, curves) in rows.iter().zip(CURVES.chunks(num_columns)) {
        let cells = Layout::horizontal(vec![Constraint::Fill(1); num_columns]).split(*row);
        for (cell, curve) in cells.iter().zip(curves) {
            draw_curve(buffer, *cell, curve, steps);
        }
    }
}

fn draw_curve(buffer: &mut Buffer, area: Rect, curve: &Curve, steps: &[StepMetrics]) {
    let all = points(curve.figure, steps);
    let mut title = vec![curve.title.bold()];
    if let Some((_, newest)) = all.last() {
        title.push(format!("  {}", number(*newest)).fg(Color::Cyan));
    }
    let block = Block::bordered()
        .border_style(Style::new().dark_gray())
        .title(Line::from(title));
    let (Some((first, _)), Some((last, _))) = (all.first(), all.last()) else {
        Paragraph::new("no figures yet".dark_gray())
            .block(block)
            .render(area, buffer);
        return;
    };
    let of_steps = [*first, *last];
    // A character of the chart holds two points side by side.
    let shown = thinned(&all, 2 * usize::from(area.width).max(1));
    let values = shown.iter().map(|(_, value)| *value);
    let least = values.clone().fold(f64::INFINITY, f64::min);
    let greatest = values.fold(f64::NEG_INFINITY, f64::max);
    let mut x_axis = Axis::default().bounds(widened(of_steps));
    if area.height >= HEIGHT_WITH_STEPS {
        x_axis = x_axis.labels(of_steps.map(|step| format!("{step:.0}")));
    }
    let y_axis = Axis::default()
        .bounds(widened([least, greatest]))
        .labels([number(least), number(greatest)]);
    let line = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().cyan())
        .data(&shown);
    Chart::new(vec![line])
        .block(block)
        .x_axis(x_axis.style(Style::new().dark_gray()))
        .y_axis(y_axis.style(Style::new().dark_gray()))
        .render(area, buffer);
}

/// Global step and value of the steps that have the figure, as finite numbers.
fn points(figure: Figure, steps: &[StepMetrics]) -> Vec<(f64, f64)> {
    let of_step = |step: &StepMetrics| {
        let value = figure(step).filter(|value| value.is_finite())?;
        Some((step.global_step as f64, value))
    };
    steps.iter().filter_map(of_step).collect()
}

/// At most `num_points` of them, means of neighbours where there are more.
fn thinned(points: &[(f64, f64)], num_points: usize) -> Vec<(f64, f64)> {
    let per_point = points.len().div_ceil(num_points).max(1);
    points
        .chunks(per_point)
        .map(|chunk| {
            let count = chunk.len() as f64;
            let sum = chunk
                .iter()
                .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
            (sum.0 / count, sum.1 / count)
        })
        .collect()
}

/// Bounds of an axis; what has no extent lies in its middle.
fn widened([least, greatest]: [f64; 2]) -> [f64; 2] {
    match greatest > least {
        true => [least, greatest],
        false => {
            let margin = least.abs().max(1.0) / 2.0;
            [least - margin, greatest + margin]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_or_not_finite_is_no_point() {
        let values = [
            Some(0.5),
            None,
            Some(f64::INFINITY),
            Some(f64::NAN),
            Some(0.25),
        ];
        let steps: Vec<StepMetrics> = values
            .iter()
            .enumerate()
            .map(|(step, value)| StepMetrics {
                global_step: step as u64,
                kl: *value,
                ..StepMetrics::default()
            })
            .collect();
        assert_eq!(points(|step| step.kl, &steps), [(0.0, 0.5), (4.0, 0.25)]);
    }

    #[test]
    fn many_points_are_thinned_to_means() {
        let points: Vec<(f64, f64)> = (0..10).map(|i| (f64::from(i), f64::from(i * i))).collect();
        assert_eq!(thinned(&points, 3), [(1.5, 3.5), (5.5, 31.5), (8.5, 72.5)]);
        assert_eq!(thinned(&points, 10), points);
    }

    #[test]
    fn a_single_value_lies_in_the_middle_of_its_axis() {
        assert_eq!(widened([3.0, 3.0]), [1.5, 4.5]);
        assert_eq!(widened([0.0, 0.0]), [-0.5, 0.5]);
        assert_eq!(widened([0.0, 2.0]), [0.0, 2.0]);
    }
}
