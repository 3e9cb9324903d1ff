//! The page: summary, advice, charts, samples and configuration, in one HTML file that needs nothing else.

mod judged;
mod tables;

use std::fmt::Write;

use self::judged::{advice_section, figures_section};
use self::tables::{configuration_section, summary_section};
use super::html::escaped;
use super::run::Run;
use super::sample_html;
use super::samples::ShownSample;

/// First line of every page: what may be overwritten by the next.
pub(super) const FIRST_LINE: &str = "<!doctype html><!-- baleen report -->\n";

/// The page of `runs`, in their order.
pub(super) fn page(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let title = escaped(&names.join(", "));
    let mut html = FIRST_LINE.to_string();
    let _ = write!(
        html,
        "<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src \
         'unsafe-inline'; img-src data:\">\
         <link rel=\"icon\" href=\"data:,\"><title>{title} · baleen report</title>\n<style>\n{}</style></head>\n<body>\n\
         <h1>{title}</h1>\n<p class=\"soft\">baleen report{}</p>\n",
        include_str!("page.css"),
        match runs {
            [run] => format!(" of {}", escaped(&run.folder)),
            _ => format!(" of {} runs", runs.len()),
        },
    );
    let sections = [
        ("summary", "Summary", summary_section(runs)),
        ("advice", "Advice", advice_section(runs)),
        ("figures", "Figures", figures_section(runs)),
        ("samples", "Samples", samples_section(runs)),
        (
            "configuration",
            "Configuration",
            configuration_section(runs),
        ),
    ];
    html.push_str("<nav>");
    for (id, name, _) in &sections {
        let _ = write!(html, "<a href=\"#{id}\">{name}</a>");
    }
    if runs.len() > 1 {
        let entries = names
            .iter()
            .enumerate()
            .map(|(color, name)| (color, 0, *name));
        html.push_str(&legend(entries));
    }
    html.push_str("</nav>\n");
    for (id, name, body) in sections {
        let _ = writeln!(
            html,
            "<section id=\"{id}\"><h2>{name}</h2>\n{body}</section>"
        );
    }
    let _ = writeln!(
        html,
        "<script>\n{}</script>\n</body></html>",
        include_str!("page.js")
    );
    html
}

/// A list of line samples; each entry is colour, dash pattern and name.
fn legend<'a>(entries: impl Iterator<Item = (usize, usize, &'a str)>) -> String {
    let mut html = "<ul class=\"legend\">".to_string();
    for (color, dash, name) in entries {
        let _ = write!(
            html,
            "<li><svg class=\"c{color}\" viewBox=\"0 0 22 8\" aria-hidden=\"true\"><path class=\"line d{dash}\" d=\"M0 4H22\"/></svg>{}</li>",
            escaped(name)
        );
    }
    html.push_str("</ul>");
    html
}

/// A coloured square before the name of a run, where there are several.
fn swatch(runs: &[Run], index: usize) -> String {
    match runs.len() {
        1 => String::new(),
        _ => format!("<span class=\"swatch c{index}\"></span>"),
    }
}

fn samples_section(runs: &[Run]) -> String {
    let all: Vec<&ShownSample> = runs.iter().flat_map(|run| &run.shown.samples).collect();
    let max_tokens = sample_html::tokens_a_sample(all.len());
    let mut html = "<p class=\"soft\">From the newest rollouts. Point at a token, or tap it, for its id and log-probs. The gap of a sample that \
                    trained after updates contains what they moved.</p>"
        .to_string();
    if all.iter().any(|sample| sample.learned.is_some()) {
        html.push_str(&sample_html::legend());
    }
    for (index, run) in runs.iter().enumerate() {
        if runs.len() > 1 {
            let _ = write!(
                html,
                "<h3>{}{}</h3>",
                swatch(runs, index),
                escaped(&run.label)
            );
        }
        for note in &run.shown.notes {
            let _ = write!(html, "<p class=\"advisory notice\">{}</p>", escaped(note));
        }
        html.push_str("<div class=\"samples\">\n");
        for sample in &run.shown.samples {
            html.push_str(&sample_html::article(
                sample,
                run.tokenizer.as_ref(),
                max_tokens,
            ));
            html.push('\n');
        }
        html.push_str("</div>");
        if run.shown.samples.is_empty() {
            html.push_str("<p>No rollout yet.</p>");
        }
    }
    html
}
