//! A chart as inline SVG: curves with bands, or stacked bars; stages marked, healthy bounds dashed.
//!
//! Our own few lines instead of a plotting crate: colours must come from the page's style sheet, so that dark mode and
//! print work, and the values must travel with the curves, so that the page can show them under the pointer.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::html::{escaped, short};
use super::points::{MAX_POINTS, Point, restarts, thinned};

/// Size of the drawing, in its own units.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 200.0;
/// The area of the values within it.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 432.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 176.0;

/// Width of a letter of a stage's name, about.
const LETTER: f64 = 5.6;
/// Curves with at most so many points show each of them.
const DOTTED_POINTS: usize = 40;
/// Bars side by side, at most.
const MAX_BARS: usize = 96;

/// One chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// What it shows.
    pub title: String,
    /// Unit of the values; empty for plain numbers.
    pub unit: &'static str,
    /// Scale of the values.
    pub scale: Scale,
    /// Whether the range of the values begins at 0.
    pub from_zero: bool,
    /// Curves or bars.
    pub body: Body,
    /// Ends of the healthy range.
    pub bounds: Vec<f64>,
    /// Where stages begin.
    pub stages: Vec<StageStart>,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Lines over one another.
    Curves(Vec<Curve>),
    /// The parts of a whole on top of one another, equally long.
    Bars(Vec<Curve>),
}

/// One line, or one part of the bars.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    /// For legend and pointer.
    pub label: String,
    /// The run it belongs to, where the chart shows several.
    pub run: Option<String>,
    /// Number of its colour in the style sheet.
    pub color: usize,
    /// Number of its dash pattern in the style sheet.
    pub dash: usize,
    /// Its points, ascending in x.
    pub points: Vec<Point>,
}

/// Where a stage begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StageStart {
    /// First step of the run in it.
    pub x: f64,
    /// Name of the stage.
    pub name: String,
    /// Number of the color of the run; `None` where all runs agree.
    pub color: Option<usize>,
}

impl Chart {
    /// Whether nothing can be drawn.
    pub fn is_empty(&self) -> bool {
        self.axes().is_none()
    }

    /// The curves or the parts.
    pub fn curves(&self) -> &[Curve] {
        match &self.body {
            Body::Curves(curves) | Body::Bars(curves) => curves,
        }
    }

    /// The axes of x and y.
    fn axes(&self) -> Option<(Axis, Axis)> {
        let points = || self.curves().iter().flat_map(|curve| &curve.points);
        // A point without a place on the scale of y has none on x either.
        let is_shown = |point: &&Point| self.scale == Scale::Linear || point.y > 0.0;
        // Half a bar beyond the first and the last.
        let margin = if matches!(self.body, Body::Bars(_)) {
            0.5
        } else {
            0.0
        };
        let steps = points()
            .filter(is_shown)
            .flat_map(|p| [p.x - margin, p.x + margin]);
        let x = Axis::over(Scale::Linear, steps, (LEFT, RIGHT))?;
        let zero = self.from_zero.then_some(0.0);
        let pixels = (BOTTOM, TOP);
        let y = match &self.body {
            Body::Curves(_) => {
                let ends = points().flat_map(|p| [p.y - p.spread, p.y + p.spread]);
                Axis::over(self.scale, ends.chain(zero), pixels)?
            }
            Body::Bars(parts) => {
                let height = |i: usize| {
                    parts
                        .iter()
                        .filter_map(|part| part.points.get(i))
                        .map(|p| p.y)
                        .sum()
                };
                let bars = 0..parts.first().map_or(0, |part| part.points.len());
                Axis::over(self.scale, bars.map(height).chain(zero), pixels)?
            }
        };
        Some((x, y.with_headroom()))
    }

    /// The drawing; empty where there is nothing to draw.
    pub fn svg(&self) -> String {
        let Some((x, y)) = self.axes() else {
            return String::new();
        };
        let (first, last) = x.ends();
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" \
             data-left=\"{LEFT}\" data-right=\"{RIGHT}\" data-first=\"{first}\" data-last=\"{last}\">",
            escaped(&self.title)
        );
        self.draw_grid(&mut svg, &x, &y);
        self.draw_stages(&mut svg, &x);
        match &self.body {
            Body::Curves(curves) => {
                for &bound in self.bounds.iter().filter(|&&bound| y.covers(bound)) {
                    if let Some(at) = y.pixel(bound) {
                        let _ =
                            write!(svg, "<path class=\"bound\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>");
                    }
                }
                for curve in curves {
                    draw_curve(&mut svg, curve, &x, &y);
                }
            }
            Body::Bars(parts) => draw_bars(&mut svg, parts, &x, &y),
        }
        svg.push_str("</svg>");
        svg
    }

    fn draw_grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        for (value, label) in y.ticks(4, false) {
            if let Some(at) = y.pixel(value) {
                let _ = write!(
                    svg,
                    "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/><text class=\"tick\" x=\"{}\" y=\"{:.1}\" \
                     text-anchor=\"end\">{label}</text>",
                    LEFT - 5.0,
                    at + 3.5
                );
            }
        }
        let _ = write!(svg, "<path class=\"base\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>");
        for (value, label) in x.ticks(6, true) {
            if let Some(at) = x.pixel(value) {
                // Labels at the right end stay within the drawing.
                let at = at.min(WIDTH - label.len() as f64 * LETTER / 2.0);
                let _ = write!(
                    svg,
                    "<text class=\"tick\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    BOTTOM + 15.0
                );
            }
        }
    }

    /// A line where each stage begins, with its name where there is room for it.
    fn draw_stages(&self, svg: &mut String, x: &Axis) {
        let (first, last) = x.ends();
        // Of the stages that began before the first step shown, the newest is the one shown.
        let before = self.stages.iter().rposition(|stage| stage.x <= first);
        let shown: Vec<(f64, &StageStart)> = self
            .stages
            .iter()
            .enumerate()
            .filter(|(i, stage)| Some(*i) == before || (stage.x > first && stage.x <= last))
            .filter_map(|(_, stage)| Some((x.pixel(stage.x.max(first))?, stage)))
            .collect();
        let mut free_from = LEFT;
        for (i, (at, stage)) in shown.iter().enumerate() {
            let class = stage
                .color
                .map_or(String::new(), |color| format!(" c{color}"));
            if *at > LEFT {
                let _ = write!(
                    svg,
                    "<path class=\"stage{class}\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>"
                );
            }
            let end = shown.get(i + 1).map_or(RIGHT, |next| next.0);
            let width = stage.name.len() as f64 * LETTER;
            if *at >= free_from - 0.5 && at + width + 3.0 <= end {
                let _ = write!(
                    svg,
                    "<text class=\"stage{class}\" x=\"{:.1}\" y=\"{}\">{}</text>",
                    at + 2.0,
                    TOP - 6.0,
                    escaped(&stage.name)
                );
                free_from = at + width + 3.0;
            }
        }
    }
}

fn draw_curve(svg: &mut String, curve: &Curve, x: &Axis, y: &Axis) {
    let points = thinned(&curve.points, MAX_POINTS);
    let placed: Vec<(f64, f64, Point)> = points
        .iter()
        .filter_map(|&point| Some((x.pixel(point.x)?, y.pixel(point.y)?, point)))
        .collect();
    open_group(svg, curve, placed.iter().map(|(_, _, point)| point));
    if placed.iter().any(|(_, _, point)| point.spread > 0.0) {
        let edge = |sign: f64| {
            let at = move |(px, _, point): &(f64, f64, Point)| {
                Some((*px, y.pixel(point.y + sign * point.spread)?))
            };
            placed.iter().filter_map(at)
        };
        let lower: Vec<_> = edge(-1.0).collect();
        let outline = path(edge(1.0).chain(lower.into_iter().rev()));
        let _ = write!(svg, "<path class=\"band\" d=\"{outline}Z\"/>");
    }
    let restarts = restarts(&curve.points);
    let parts = placed.chunk_by(|(_, _, a), (_, _, b)| {
        let is_between = |&x: &f64| a.x < x && x <= b.x;
        !restarts.iter().any(is_between)
    });
    let line: String = parts
        .map(|part| {
            let line = path(part.iter().map(|&(px, py, _)| (px, py)));
            // Alone, a point has no line: a round cap makes it a dot.
            line + if part.len() == 1 { "h0" } else { "" }
        })
        .collect();
    let _ = write!(svg, "<path class=\"line d{}\" d=\"{line}\"/>", curve.dash);
    if placed.len() <= DOTTED_POINTS {
        for (px, py, _) in &placed {
            let _ = write!(svg, "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"1.8\"/>");
        }
    }
    svg.push_str("</g>");
}

/// Neighbouring steps share a bar, the mean of theirs, where there are more than fit.
fn draw_bars(svg: &mut String, parts: &[Curve], x: &Axis, y: &Axis) {
    let count = parts.first().map_or(0, |part| part.points.len());
    let per_bar = count.div_ceil(MAX_BARS).max(1);
    let bars = count.div_ceil(per_bar);
    let (first, last) = x.ends();
    let pixels_a_step = (RIGHT - LEFT) / (last - first).max(1.0);
    let mut heights = vec![0.0; bars];
    for part in parts {
        let means: Vec<Point> = part
            .points
            .chunks(per_bar)
            .map(|chunk| {
                let mean =
                    |of: fn(&Point) -> f64| chunk.iter().map(of).sum::<f64>() / chunk.len() as f64;
                Point {
                    x: mean(|p| p.x),
                    y: mean(|p| p.y),
                    spread: 0.0,
                }
            })
            .collect();
        open_group(svg, part, means.iter());
        let mut outline = String::new();
        for (mean, height) in means.iter().zip(&mut heights) {
            let (Some(center), Some(low), Some(high)) =
                (x.pixel(mean.x), y.pixel(*height), y.pixel(*height + mean.y))
            else {
                continue;
            };
            *height += mean.y;
            let half = (pixels_a_step * per_bar as f64 * 0.4).clamp(0.5, 12.0);
            let (left, right) = ((center - half).max(LEFT), (center + half).min(RIGHT));
            if low - high > 0.05 {
                let _ = write!(
                    outline,
                    "M{left:.1} {low:.1}V{high:.1}H{right:.1}V{low:.1}Z"
                );
            }
        }
        let _ = write!(svg, "<path class=\"bar\" d=\"{outline}\"/></g>");
    }
}

/// Opens a curve's group, which carries its values for the pointer.
fn open_group<'a>(
    svg: &mut String,
    curve: &Curve,
    points: impl Iterator<Item = &'a Point> + Clone,
) {
    let list = |of: fn(&Point) -> f64| {
        points
            .clone()
            .map(|p| short(of(p)))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let steps = points
        .clone()
        .map(|p| format!("{:.0}", p.x))
        .collect::<Vec<_>>()
        .join(" ");
    let _ = write!(
        svg,
        "<g class=\"curve c{}\" data-label=\"{}\" data-x=\"{steps}\" data-y=\"{}\">",
        curve.color,
        escaped(&match &curve.run {
            Some(run) => format!("{run}, {}", curve.label),
            None => curve.label.clone(),
        }),
        list(|p| p.y)
    );
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (i, (x, y)) in points.enumerate() {
        let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    path
}

#[cfg(test)]
mod tests;
