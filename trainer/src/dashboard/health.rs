//! What is outside its healthy range: a line that names it, and the panel that says what to do.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget, Wrap};

use super::draw::block;
use super::files::RunFiles;
use crate::health::{Advisory, Severity};

/// The figures outside their range, warnings first.
pub fn health_line(advisories: &[Advisory]) -> Line<'static> {
    let mut spans: Vec<Span> = vec![" health ".bold()];
    if advisories.is_empty() {
        spans.push("nothing is outside its healthy range".dark_gray());
    }
    for advisory in advisories {
        let key = advisory.figure.range().keys[0];
        spans.push(format!("{key} ").fg(color(advisory.severity)));
    }
    Line::from(spans)
}

/// What was found, what it means and what to do, one after the other; `scroll` is kept within the text.
pub fn draw_health(buffer: &mut Buffer, area: Rect, files: &RunFiles, scroll: &mut usize) {
    let hidden = advice_rows(files, area.width).saturating_sub(usize::from(area.height));
    *scroll = (*scroll).min(hidden);
    let above = u16::try_from(*scroll).unwrap_or(u16::MAX);
    advice(files).scroll((above, 0)).render(area, buffer);
}

/// Rows that the panel takes to show all of it, at most 100.
pub fn health_rows(files: &RunFiles, width: u16) -> u16 {
    advice_rows(files, width).min(100) as u16
}

fn advice_rows(files: &RunFiles, width: u16) -> usize {
    advice(files).line_count(width.saturating_sub(2))
}

fn advice(files: &RunFiles) -> Paragraph<'_> {
    let mut lines: Vec<Line> = files.advisories.iter().flat_map(lines).collect();
    if lines.is_empty() {
        let text = match files.steps().is_empty() {
            true => "nothing to judge yet",
            false => "nothing is outside its healthy range",
        };
        lines.push(Line::from(text.dark_gray()));
    }
    Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .block(block("health of the current stage"))
}

fn lines(advisory: &Advisory) -> [Line<'static>; 4] {
    let range = advisory.figure.range();
    let severity = match advisory.severity {
        Severity::Warning => "warning",
        Severity::Notice => "notice",
    };
    let head = format!("{severity}: {}", range.keys[0]);
    let found = format!("{} (healthy: {})", advisory.found, range.healthy);
    [
        Line::from(head.bold().fg(color(advisory.severity))),
        Line::from(found),
        Line::from(format!("{}. {}", range.meaning, advisory.advice)),
        Line::default(),
    ]
}

fn color(severity: Severity) -> Color {
    match severity {
        Severity::Warning => Color::Red,
        Severity::Notice => Color::Yellow,
    }
}
