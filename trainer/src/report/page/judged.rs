//! Advice, and the charts with the healthy ranges of their figures.

use std::fmt::Write;

use super::{legend, swatch};
use crate::health::{Advisory, Severity};
use crate::report::chart::{Body, Chart};
use crate::report::figures::{self, JudgedChart, RunSteps};
use crate::report::html::{escaped, prose};
use crate::report::run::Run;

/// Number of the colour that belongs to no run.
const NEUTRAL: usize = 8;

/// Whose advice it is: run and stage, as far as there are several.
fn origin(runs: &[Run], index: usize, advisory: &Advisory) -> String {
    let run = &runs[index];
    let stage = run
        .config
        .stages
        .get(advisory.stage_index)
        .map_or("", |stage| stage.name());
    match runs.len() {
        1 => escaped(stage),
        _ => format!(
            "{}{}, {}",
            swatch(runs, index),
            escaped(&run.label),
            escaped(stage)
        ),
    }
}

fn severity_class(advisory: &Advisory) -> &'static str {
    match advisory.severity {
        Severity::Warning => "warning",
        Severity::Notice => "notice",
    }
}

/// Every figure outside its healthy range, run after run.
pub(super) fn advice_section(runs: &[Run]) -> String {
    let mut html = "<ul class=\"advice\">".to_string();
    let mut count = 0;
    for (index, run) in runs.iter().enumerate() {
        for advisory in &run.advisories {
            count += 1;
            let range = advisory.figure.range();
            let _ = writeln!(
                html,
                "<li class=\"{}\">{}: <b>{}</b> {} <span class=\"soft\">(healthy: {})</span>. {}. {}</li>",
                severity_class(advisory),
                origin(runs, index, advisory),
                range.keys[0],
                prose(&advisory.found),
                prose(&range.healthy),
                prose(&capitalized(range.meaning)),
                prose(&advisory.advice)
            );
        }
    }
    html.push_str("</ul>");
    match count {
        0 => "<p>No figure is outside its healthy range.</p>".to_string(),
        _ => html,
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// The charts, each with the healthy range and the advice of its figures.
pub(super) fn figures_section(runs: &[Run]) -> String {
    let run_steps: Vec<RunSteps> = runs
        .iter()
        .map(|run| RunSteps {
            label: &run.label,
            config: &run.config,
            steps: &run.steps,
        })
        .collect();
    let charts = figures::charts(&run_steps);
    if charts.is_empty() {
        return "<p>No step is done yet.</p>".to_string();
    }
    let mut html = "<p class=\"soft\">Against the step of the run. Dotted: where a stage begins. Long dashes: the end of a healthy range, where it \
                    is a number.</p><div class=\"charts\">\n"
        .to_string();
    for judged in &charts {
        html.push_str(&figure(runs, judged));
    }
    html.push_str("</div>");
    html
}

fn figure(runs: &[Run], judged: &JudgedChart) -> String {
    let chart = &judged.chart;
    let mut html = format!(
        "<figure><figcaption><h3>{}</h3><small>{}</small></figcaption>{}{}<div class=\"notes\">",
        escaped(&chart.title),
        escaped(chart.unit),
        chart_legend(chart),
        chart.svg()
    );
    for figure in judged.figures {
        let range = figure.range();
        let _ = write!(
            html,
            "<p><b>{}</b> healthy: {}</p>",
            range.keys[0],
            prose(&range.healthy)
        );
    }
    for (index, run) in runs.iter().enumerate() {
        let own = run
            .advisories
            .iter()
            .filter(|advisory| judged.figures.contains(&advisory.figure));
        for advisory in own {
            let _ = write!(
                html,
                "<div class=\"advisory {}\">{}: {}. {}</div>",
                severity_class(advisory),
                origin(runs, index, advisory),
                prose(&advisory.found),
                prose(&advisory.advice)
            );
        }
    }
    html.push_str("</div></figure>\n");
    html
}

/// What colours and dashes mean. The only curve of a run needs no name, and the colours of several runs are the same everywhere.
fn chart_legend(chart: &Chart) -> String {
    let mut entries: Vec<(usize, usize, &str)> = Vec::new();
    for curve in chart.curves() {
        match (&curve.run, &chart.body) {
            (Some(_), Body::Curves(_)) => entries.push((NEUTRAL, curve.dash, &curve.label)),
            _ => entries.push((curve.color, curve.dash, &curve.label)),
        }
    }
    entries.sort_by_key(|(_, dash, _)| *dash);
    entries.dedup();
    let is_plain = entries.len() == 1 && matches!(chart.body, Body::Curves(_));
    legend(entries.into_iter().filter(|_| !is_plain))
}
