//! A check of everything that a run folder holds: is each part whole, and do the parts fit each other?
//!
//! The bytes of checkpoints, rollout and learner's files and of the exported model are compared with the sums that were
//! written with them; the lines of metrics are read, and have none. Nothing is changed. What a killed process leaves by design (a last line of
//! metrics cut short, folders half written or half deleted under their temporary names) is no damage:
//! a resume clears it away.

use std::collections::{BTreeMap, BTreeSet};

use rollout::{Group, rollout_file, table};

use crate::checkpoint::{Checkpoints, manifest};
use crate::config::RunConfig;
use crate::dataset_record;
use crate::learned_file::{self, LearnedSample};
use crate::metrics::{self, StepMetrics};
use crate::resume_check;
use crate::run_folder::RunLayout;

/// One part of a run folder.
#[derive(Debug)]
pub struct Part {
    /// Its path within the run folder.
    pub name: String,
    /// What is there, or what is wrong with it.
    pub state: Result<String, String>,
}

/// Checks all parts of the run at `layout`, in the order of the folder's description.
pub fn check(layout: &RunLayout) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut add = |name: &str, state: Result<String, String>| {
        parts.push(Part {
            name: name.to_string(),
            state,
        });
    };
    let config = layout.read_config();
    let described = |config: &RunConfig| format!("run {}", config.name);
    add(
        "config.ron",
        config.as_ref().map(described).map_err(ToString::to_string),
    );
    match dataset_record::read(layout) {
        Ok(None) => {}
        Ok(Some(record)) => {
            let names: Vec<String> = record.into_keys().collect();
            add("datasets.json", Ok(names.join(", ")));
        }
        Err(error) => add("datasets.json", Err(error.to_string())),
    }
    let lines = match layout.metrics_path().exists() {
        true => metrics::read(&layout.metrics_path()).map_err(|error| error.to_string()),
        false => Ok(Vec::new()),
    };
    add("metrics.jsonl", metrics_state(&lines));
    let lines = lines.unwrap_or_default();
    for (name, state) in rollouts(layout, &lines) {
        add(&name, state);
    }
    for (name, state) in checkpoints(layout, config.as_ref().ok(), &lines) {
        add(&name, state);
    }
    if layout.model_path().exists() {
        add("model", model_state(layout));
    }
    parts
}

fn metrics_state(lines: &Result<Vec<StepMetrics>, String>) -> Result<String, String> {
    let lines = lines.as_ref().map_err(String::clone)?;
    let steps = lines.iter().map(|line| line.global_step);
    let gap = steps.clone().zip(steps.skip(1)).find(|(a, b)| a + 1 != *b);
    match (gap, lines.last()) {
        (Some((before, after)), _) => Err(format!(
            "the line of step {before} is followed by that of step {after}"
        )),
        (None, Some(last)) => Ok(format!("up to step {}", last.global_step)),
        (None, None) => Ok("no step yet".to_string()),
    }
}

/// The rollout files that the steps left, and that of a step that was begun.
fn rollouts(layout: &RunLayout, lines: &[StepMetrics]) -> Vec<(String, Result<String, String>)> {
    let of_grpo = lines
        .iter()
        .filter(|line| line.stage == "grpo" && line.step > 0);
    let mut steps: BTreeSet<u64> = of_grpo.map(|line| line.global_step).collect();
    let last = lines.last().map_or(0, |line| line.global_step);
    // A step leaves its file before its line.
    if layout.rollout_path(last + 1).exists() {
        steps.insert(last + 1);
    }
    let mut damaged = Vec::new();
    let mut samples = 0;
    for &step in &steps {
        let path = layout.rollout_path(step);
        let sealed = table::verify(&path);
        match sealed.and_then(|sealed| Ok((sealed, rollout_file::read(&path)?))) {
            Ok((sealed, file)) if file.step == step => {
                samples += file.groups.iter().map(|g| g.samples.len()).sum::<usize>();
                // The program that wrote files without a seal wrote some without the learner's beside them.
                if (sealed || layout.learned_path(step).exists())
                    && step <= last
                    && let Err(problem) = learned_fits(layout, step, &file.groups)
                {
                    damaged.push((format!("learned/step-{step:06}.parquet"), problem));
                }
            }
            Ok((_, file)) => {
                let problem = format!("holds the samples of step {}", file.step);
                damaged.push((format!("rollouts/step-{step:06}.parquet"), problem));
            }
            Err(error) => {
                let name = format!("rollouts/step-{step:06}.parquet");
                damaged.push((name, error.to_string()));
            }
        }
    }
    let mut found = Vec::new();
    let num_sound = steps.len() - damaged.len();
    if num_sound > 0 {
        let state = Ok(format!("{num_sound} files, {samples} samples"));
        found.push(("rollouts".to_string(), state));
    }
    found.extend(
        damaged
            .into_iter()
            .map(|(name, problem)| (name, Err(problem))),
    );
    found
}

/// Whether the learner's file of `step` is about these samples.
fn learned_fits(layout: &RunLayout, step: u64, groups: &[Group]) -> Result<(), String> {
    let path = layout.learned_path(step);
    let read = table::verify(&path).and_then(|_| learned_file::read(&path));
    let (of_step, learned) = read.map_err(|error| error.to_string())?;
    // A step in which nothing was trained has no rows.
    if of_step != step && !learned.is_empty() {
        return Err(format!("holds the samples of step {of_step}"));
    }
    let mut lengths = BTreeMap::new();
    for group in groups {
        let samples = group.samples.iter();
        for segment in samples.flat_map(|sample| sample.segments(&group.prompt)) {
            let key = (group.prompt.id, segment.sample, segment.number);
            lengths.insert(key, segment.num_sampled());
        }
    }
    let fits = |sample: &&LearnedSample| {
        let length = lengths.get(&(sample.prompt_id, sample.sample_index, sample.segment));
        length == Some(&sample.logprobs.len())
    };
    match learned.iter().find(|sample| !fits(sample)) {
        None => Ok(()),
        Some(other) => Err(format!(
            "prompt {}, sample {} is not what the rollout file holds",
            other.prompt_id, other.sample_index
        )),
    }
}

fn checkpoints(
    layout: &RunLayout,
    config: Option<&RunConfig>,
    lines: &[StepMetrics],
) -> Vec<(String, Result<String, String>)> {
    let all = Checkpoints::new(&layout.checkpoints_path(), 1).verify_all();
    let all = match all {
        Ok(all) => all,
        Err(error) => return vec![("checkpoints".to_string(), Err(error.to_string()))],
    };
    let fingerprint = config.map(resume_check::fingerprint);
    let last = lines.last().map_or(0, |line| line.global_step);
    let checked = all.into_iter().map(|(name, checkpoint)| {
        let state = match checkpoint {
            Err(error) => Err(error.to_string()),
            Ok(checkpoint)
                if fingerprint
                    .as_ref()
                    .is_some_and(|f| *f != checkpoint.config_hash) =>
            {
                Err("was made with another configuration than config.ron".to_string())
            }
            Ok(checkpoint) if checkpoint.state.global_step > last => Err(format!(
                "is of step {}, but metrics.jsonl ends at step {last}",
                checkpoint.state.global_step
            )),
            Ok(checkpoint) => Ok(format!(
                "stage {}, step {} of it",
                checkpoint.state.stage, checkpoint.state.step_in_stage
            )),
        };
        (format!("checkpoints/{name}"), state)
    });
    checked.collect()
}

fn model_state(layout: &RunLayout) -> Result<String, String> {
    let path = layout.model_path();
    manifest::verify_folder(&path).map_err(|error| error.to_string())?;
    model::checkpoint::check_finite(&path).map_err(|error| error.to_string())?;
    let (config, ..) = model::checkpoint::open(&path).map_err(|error| error.to_string())?;
    let millions = config.num_parameters() as f64 / 1e6;
    Ok(format!("{millions:.1} M parameters, all finite"))
}
