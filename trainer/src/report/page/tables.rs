//! The tables of the page: the runs side by side, their stages, their configurations.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::swatch;
use crate::config_file;
use crate::report::html::escaped;
use crate::report::run::Run;
use crate::resume_check;
use crate::summary;

/// What a row of the summary shows of a run.
type Cell = fn(&Run) -> Option<String>;

/// Rows of the summary, before what the runs cost.
const SUMMARY: [(&str, Cell); 5] = [
    ("folder", |run| Some(run.folder.clone())),
    ("state", |run| Some(run.state())),
    ("steps", |run| {
        let done = run.steps.iter().filter(|step| step.step > 0).count();
        let planned: usize = run.config.stages.iter().map(|stage| stage.steps()).sum();
        Some(format!("{done} of {planned}"))
    }),
    ("held-out pass rate", |run| {
        let rates: Vec<f64> = run
            .steps
            .iter()
            .filter_map(|s| s.held_out_pass_rate)
            .collect();
        match rates[..] {
            [] => None,
            [only] => Some(format!("{only:.3}")),
            [first, .., last] => Some(format!("{first:.3} → {last:.3}")),
        }
    }),
    ("reward", |run| {
        let rewards: Vec<f64> = run.steps.iter().filter_map(|s| s.reward_mean).collect();
        let (first, last, _) = summary::reward_ends(&rewards)?;
        Some(format!("{first:.3} → {last:.3}"))
    }),
];

/// The runs side by side, and what each of their stages moved.
pub(super) fn summary_section(runs: &[Run]) -> String {
    let mut html = "<div class=\"beside\"><div class=\"scroll\"><table class=\"runs\">".to_string();
    if runs.len() > 1 {
        html.push_str("<thead><tr><th></th>");
        for (index, run) in runs.iter().enumerate() {
            let _ = write!(
                html,
                "<th>{}{}</th>",
                swatch(runs, index),
                escaped(&run.label)
            );
        }
        html.push_str("</tr></thead>");
    }
    html.push_str("<tbody>");
    let mut row = |name: &str, cells: Vec<Option<String>>| {
        if cells.iter().all(Option::is_none) {
            return;
        }
        let _ = write!(html, "<tr><th>{name}</th>");
        for cell in cells {
            let _ = write!(html, "<td>{}</td>", escaped(cell.as_deref().unwrap_or("–")));
        }
        html.push_str("</tr>\n");
    };
    for (name, cell) in SUMMARY {
        row(name, runs.iter().map(cell).collect());
    }
    let costs: Vec<_> = runs.iter().map(|run| summary::costs(&run.steps)).collect();
    for name in summary::COSTS {
        let of_run = |costs: &Vec<(&str, String)>| {
            let own = costs.iter().find(|(own, _)| *own == name);
            own.map(|(_, text)| text.clone())
        };
        row(name, costs.iter().map(of_run).collect());
    }
    html.push_str("</tbody></table></div>\n");
    for run in runs {
        let _ = writeln!(
            html,
            "<details{}><summary>{}</summary>{}</details>",
            if runs.len() == 1 { " open" } else { "" },
            match runs.len() {
                1 => "What each stage moved".to_string(),
                _ => format!("What each stage of {} moved", escaped(&run.label)),
            },
            stage_table(run)
        );
    }
    html.push_str("</div>");
    html
}

/// What each stage moved, from where to where, and its cost.
fn stage_table(run: &Run) -> String {
    let mut html = "<div class=\"scroll\"><table class=\"stages\"><thead><tr><th>stage</th><th>figure</th>\
                    <th class=\"number\">before</th><th class=\"number\">after</th><th class=\"number\">steps</th>\
                    <th class=\"number\">time</th></tr></thead><tbody>"
        .to_string();
    for stage in summary::stages(&run.config, &run.steps) {
        let (steps, time) = (stage.num_steps.to_string(), stage.time.clone());
        let mut own = [stage.name.as_str(), steps.as_str(), time.as_str()];
        for figure in &stage.figures {
            let [name, steps, time] = std::mem::take(&mut own);
            let class = if name.is_empty() {
                ""
            } else {
                " class=\"first\""
            };
            let _ = write!(
                html,
                "<tr{class}><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{steps}</td>\
                 <td class=\"number\">{time}</td></tr>",
                escaped(name),
                escaped(&figure.name),
                escaped(figure.before.as_deref().unwrap_or("")),
                escaped(&figure.after)
            );
        }
    }
    html.push_str("</tbody></table></div>");
    html
}

/// What differs between the runs, and every key of each.
pub(super) fn configuration_section(runs: &[Run]) -> String {
    let mut html = String::new();
    if runs.len() > 1 {
        html.push_str(&differences(runs));
    }
    for run in runs {
        let _ = writeln!(
            html,
            "<details><summary>config.ron{}</summary><pre>{}</pre></details>",
            match runs.len() {
                1 => String::new(),
                _ => format!(" of {}", escaped(&run.label)),
            },
            escaped(&config_file::to_ron(&run.config))
        );
    }
    html
}

/// The keys that are not the same in every run.
fn differences(runs: &[Run]) -> String {
    let leaves: Vec<_> = runs
        .iter()
        .map(|run| resume_check::leaves(&run.config))
        .collect();
    let keys: BTreeSet<&String> = leaves.iter().flat_map(|leaves| leaves.keys()).collect();
    let mut rows = String::new();
    for key in keys {
        let values: Vec<Option<&String>> = leaves.iter().map(|leaves| leaves.get(key)).collect();
        if values.iter().all(|value| *value == values[0]) {
            continue;
        }
        let _ = write!(rows, "<tr><td class=\"path\">{}</td>", escaped(key));
        for value in values {
            let text = value.map_or("–".to_string(), |value| escaped(value));
            let _ = write!(rows, "<td class=\"value\">{text}</td>");
        }
        rows.push_str("</tr>\n");
    }
    if rows.is_empty() {
        return "<p>The configurations are the same.</p>".to_string();
    }
    let mut html = "<p>Keys that differ:</p><div class=\"scroll\"><table class=\"differences\"><thead><tr><th>key</th>".to_string();
    for (index, run) in runs.iter().enumerate() {
        let _ = write!(
            html,
            "<th>{}{}</th>",
            swatch(runs, index),
            escaped(&run.label)
        );
    }
    let _ = write!(html, "</tr></thead><tbody>\n{rows}</tbody></table></div>");
    html
}
