//! One frame of the dashboard, for a terminal or as plain text.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Widget, Wrap};

use super::curves::{Figure, draw_curves, draw_rewards};
use super::files::RunFiles;
use super::health::{draw_health, health_line, health_rows};
use super::samples::draw_samples;
use super::text::{bar, number, printable};
use super::view::{KEYS, Panel, View};
use crate::metrics::StepMetrics;
use crate::summary::duration;

/// Below this a frame says that it needs more room.
const LEAST: (u16, u16) = (40, 12);
/// Columns of a name and its value.
const FIGURE_WIDTH: u16 = 26;
/// Rows of figures, at most.
const FIGURE_ROWS: usize = 4;
/// Steps whose time is averaged for the time left.
const TIMED_STEPS: usize = 10;
/// Rows of the parts of a plain frame, but for the advice: head, overview, curves, samples.
const PLAIN_ROWS: [u16; 4] = [4, 26, 28, 18];

/// The figures of the newest step, the most telling first: as many are shown as there is room.
const FIGURES: [(&str, Figure); 18] = [
    ("reward", |step| step.reward_mean),
    ("pass rate", |step| step.pass_rate),
    ("KL", |step| step.kl),
    ("entropy", |step| step.entropy),
    ("masked sequences", |step| {
        step.masked_sequences.map(|count| count as f64)
    }),
    ("masked advantage", |step| {
        step.off_policy.masked_advantage_share
    }),
    ("log-prob gap", |step| step.logprob_gap_mean),
    ("loss", |step| step.loss),
    ("indexer KL", |step| step.indexer_kl),
    ("rollout tokens/s", |step| step.rollout_tokens_per_sec),
    ("train tokens/s", |step| step.train_tokens_per_sec),
    ("step seconds", |step| step.secs.total),
    ("completion length", |step| step.completion_tokens_mean),
    ("finished share", |step| step.finished_share),
    ("groups, no spread", |step| {
        step.zero_spread_groups.map(|count| count as f64)
    }),
    ("gradient norm", |step| step.grad_norm),
    ("policy age", |step| step.policy_age),
    ("preemptions", |step| {
        step.preemptions.map(|count| count as f64)
    }),
];

/// Draws what `view` looks at.
pub fn draw(buffer: &mut Buffer, area: Rect, files: &RunFiles, view: &mut View) {
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!(
            "{}x{} is too small; 80x24 is enough",
            area.width, area.height
        );
        Paragraph::new(text)
            .wrap(Wrap { trim: true })
            .render(area, buffer);
        return;
    }
    let [head, tabs, body, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(buffer, head, files);
    draw_tabs(buffer, tabs, view.panel);
    match view.panel {
        Panel::Overview => draw_overview(buffer, body, files),
        Panel::Curves => draw_curves(buffer, body, files.steps()),
        Panel::Samples => draw_samples(buffer, body, files, view),
        Panel::Health => draw_health(buffer, body, files, &mut view.scroll),
        Panel::Log => draw_log(buffer, body, files, &mut view.log_scroll),
    }
    draw_foot(buffer, foot, files);
    if view.is_help_open {
        draw_help(buffer, area);
    }
}

/// Everything in one frame of `width` columns, as plain text; the samples only where there are some.
pub fn plain(files: &RunFiles, width: u16) -> String {
    let [head, overview, curves, samples] = PLAIN_ROWS;
    let samples = if files.rollouts.groups.is_empty() {
        0
    } else {
        samples
    };
    let health = health_rows(files, width);
    let rows = [head, overview, curves, health, samples];
    let area = Rect::new(0, 0, width, rows.iter().sum());
    let mut buffer = Buffer::empty(area);
    let [head, overview, curves, health, samples] =
        Layout::vertical(rows.map(Constraint::Length)).areas(area);
    draw_head(&mut buffer, head, files);
    draw_overview(&mut buffer, overview, files);
    draw_curves(&mut buffer, curves, files.steps());
    draw_health(&mut buffer, health, files, &mut 0);
    if !samples.is_empty() {
        draw_samples(&mut buffer, samples, files, &mut View::default());
    }
    let mut text: String = files
        .problems
        .iter()
        .map(|problem| format!("can't read all: {}\n", printable(problem)))
        .collect();
    for row in buffer.content.chunks(usize::from(width)) {
        text.push_str(row_text(row).trim_end());
        text.push('\n');
    }
    text.trim_end().to_string()
}

/// The characters of a row; the cell after one of two columns has none of its own.
fn row_text(cells: &[ratatui::buffer::Cell]) -> String {
    let mut text = String::new();
    let mut covered = 0;
    for cell in cells {
        if covered > 0 {
            covered -= 1;
            continue;
        }
        text.push_str(cell.symbol());
        covered = Span::raw(cell.symbol()).width().saturating_sub(1);
    }
    text
}

/// Name and state of the run, its stages, and how far the current one is.
fn draw_head(buffer: &mut Buffer, area: Rect, files: &RunFiles) {
    let folder = files.layout.root().display();
    let (state, place) = match &files.holder {
        Some(process) => (
            format!("running: {process}").fg(Color::Green),
            folder.to_string(),
        ),
        None if files.is_complete() => ("complete".fg(Color::Cyan), folder.to_string()),
        None => {
            let hint = format!("`baleen resume {folder}` continues");
            ("not running".fg(Color::Yellow), hint)
        }
    };
    // The path last: it may be cut.
    let name = Line::from(vec![
        files.config.name.as_str().bold(),
        "  ".into(),
        state,
        format!("  {place}").dark_gray(),
    ]);
    let [first, second, third] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    name.render(first, buffer);
    let (stages, current) = stages(files);
    stages.render(second, buffer);
    current.render(third, buffer);
}

/// The line of all stages, and the line of the current one.
fn stages(files: &RunFiles) -> (Line<'_>, Line<'static>) {
    let stages = &files.config.stages;
    let done = |index: usize| -> usize {
        let of_stage = |step: &&StepMetrics| step.stage_index == index && step.step > 0;
        files
            .steps()
            .iter()
            .rfind(of_stage)
            .map_or(0, |step| step.step)
    };
    let current = (0..stages.len())
        .find(|index| done(*index) < stages[*index].steps())
        .unwrap_or(stages.len().saturating_sub(1));
    let mut all: Vec<Span> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let text = format!("{} {}/{}", stage.name(), done(index), stage.steps());
        all.push(match index == current {
            true => text.bold(),
            false => text.dark_gray(),
        });
        all.push("  ".into());
    }
    // The one at work comes first where there are too many for a line.
    all.rotate_left(if stages.len() > 4 { 2 * current } else { 0 });
    let Some(stage) = stages.get(current) else {
        return (Line::from(all), Line::default());
    };
    let (made, total) = (done(current), stage.steps());
    let share = made as f64 / total.max(1) as f64;
    let mut text = format!(" {:.0} %", 100.0 * share);
    if let Some(secs) = secs_left(files.steps(), current, total.saturating_sub(made)) {
        text.push_str(&format!(", {} left in {}", duration(secs), stage.name()));
    }
    let line = Line::from(vec![bar(share, 30).fg(Color::Cyan), text.into()]);
    (Line::from(all), line)
}

/// What the rest of a stage takes if its steps go on as its last ones did.
fn secs_left(steps: &[StepMetrics], stage: usize, num_left: usize) -> Option<f64> {
    let secs: Vec<f64> = steps
        .iter()
        .rev()
        .take_while(|step| step.stage_index == stage && step.step > 0)
        .filter_map(|step| step.secs.total)
        .take(TIMED_STEPS)
        .collect();
    let is_known = num_left > 0 && !secs.is_empty();
    is_known.then(|| secs.iter().sum::<f64>() / secs.len() as f64 * num_left as f64)
}

fn draw_tabs(buffer: &mut Buffer, area: Rect, shown: Panel) {
    let mut spans: Vec<Span> = Vec::new();
    for (index, panel) in Panel::ALL.iter().enumerate() {
        let text = format!(" {} {} ", index + 1, panel.title());
        spans.push(match *panel == shown {
            true => text.reversed(),
            false => text.into(),
        });
        spans.push(" ".into());
    }
    Line::from(spans).render(area, buffer);
}

/// What could not be read, or the most needed keys.
fn draw_foot(buffer: &mut Buffer, area: Rect, files: &RunFiles) {
    let line = match files.problems.first() {
        Some(problem) => printable(problem).fg(Color::Red),
        None => "q quit   Tab panels   arrows samples   ? help".dark_gray(),
    };
    line.render(area, buffer);
}

fn draw_overview(buffer: &mut Buffer, area: Rect, files: &RunFiles) {
    let figures = newest_figures(files.steps());
    let num_columns = usize::from((area.width.saturating_sub(2) / FIGURE_WIDTH).max(1));
    let num_rows = figures.len().div_ceil(num_columns).clamp(1, FIGURE_ROWS);
    let [charts, middle, health, log] = Layout::vertical([
        Constraint::Fill(3),
        Constraint::Length(num_rows as u16 + 2),
        Constraint::Length(1),
        Constraint::Fill(2),
    ])
    .areas(area);
    draw_rewards(buffer, charts, files.steps());

    let title = match files.steps().last() {
        Some(step) => format!("step {}", step.global_step),
        None => "no step yet".to_string(),
    };
    let rows: Vec<Line> = figures
        .chunks(num_columns)
        .take(num_rows)
        .map(|row| Line::from_iter(row.iter().flat_map(|(name, value)| figure(name, *value))))
        .collect();
    Paragraph::new(rows)
        .block(block(&title))
        .render(middle, buffer);
    health_line(&files.advisories).render(health, buffer);
    draw_log(buffer, log, files, &mut 0);
}

/// Names and values of the newest step's figures.
fn newest_figures(steps: &[StepMetrics]) -> Vec<(&'static str, f64)> {
    let Some(newest) = steps.last() else {
        return Vec::new();
    };
    let value = |(name, figure): &(&'static str, Figure)| Some((*name, figure(newest)?));
    FIGURES.iter().filter_map(value).collect()
}

fn figure(name: &str, value: f64) -> [Span<'static>; 2] {
    // Name, value and two columns between figures.
    let width = usize::from(FIGURE_WIDTH) - 2;
    let value = number(value);
    let name = format!("{name:<0$}", width - value.len());
    [name.dark_gray(), format!("{value}  ").into()]
}

/// The log, `scroll` lines before its end; `scroll` is kept within it.
fn draw_log(buffer: &mut Buffer, area: Rect, files: &RunFiles, scroll: &mut usize) {
    let lines: Vec<Line> = files.log.iter().map(|line| log_line(line)).collect();
    let log = Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .block(block("log"));
    let num_lines = log.line_count(area.width.saturating_sub(2));
    let hidden = num_lines.saturating_sub(usize::from(area.height));
    *scroll = (*scroll).min(hidden);
    let above = u16::try_from(hidden - *scroll).unwrap_or(u16::MAX);
    log.scroll((above, 0)).render(area, buffer);
}

/// `2026-01-31T12:34:56.789012Z  INFO text` with its time alone, and its level only where it matters.
fn log_line(line: &str) -> Line<'static> {
    let line = printable(line);
    let parts = line.split_once(' ').and_then(|(time, rest)| {
        let (level, text) = rest.trim_start().split_once(' ')?;
        Some((time.get(11..19)?, level, text))
    });
    match parts {
        Some((time, "INFO", text)) => Line::from(format!("{time} {text}")),
        Some((time, level @ ("WARN" | "ERROR"), text)) => {
            let color = if level == "WARN" {
                Color::Yellow
            } else {
                Color::Red
            };
            Line::from(format!("{time} {level} {text}").fg(color))
        }
        _ => Line::from(line),
    }
}

fn draw_help(buffer: &mut Buffer, area: Rect) {
    let width = area.width.min(76);
    let height = area.height.min(KEYS.len() as u16 + 2);
    let inside = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let lines: Vec<Line> = KEYS
        .iter()
        .map(|(keys, meaning)| Line::from(vec![format!("{keys:<14}").bold(), (*meaning).into()]))
        .collect();
    Clear.render(inside, buffer);
    Paragraph::new(lines)
        .block(block("keys"))
        .render(inside, buffer);
}

/// The frame around a part.
pub(super) fn block(title: &str) -> Block<'_> {
    Block::bordered()
        .border_style(Style::new().dark_gray())
        .title(title.bold())
}

#[cfg(test)]
mod tests;
