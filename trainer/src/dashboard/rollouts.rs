//! The samples of a run: which steps left some, and those of the step that is looked at.

use std::fs;
use std::io;
use std::time::SystemTime;

use rollout::rollout_file::{Answer, read_answers};

use crate::run_folder::RunLayout;

/// Rollouts of a run as they were last seen.
#[derive(Debug, Default)]
pub struct Rollouts {
    /// Steps that left a rollout, ascending.
    pub steps: Vec<u64>,
    /// The step whose samples are shown.
    pub step: Option<u64>,
    /// Its samples, by prompt.
    pub groups: Vec<Vec<Answer>>,
    /// Why there are none, where the files can't be read.
    pub problem: Option<String>,
    /// When the shown file was written.
    modified: Option<SystemTime>,
}

impl Rollouts {
    /// Looks again, at the samples of `wanted` or, without it, at the newest. What can't be read leaves
    /// what is shown as it is: a file may be on its way to be replaced.
    pub fn refresh(&mut self, layout: &RunLayout, wanted: Option<u64>) {
        match self.try_refresh(layout, wanted) {
            Ok(()) => self.problem = None,
            Err(problem) => self.problem = Some(problem),
        }
    }

    fn try_refresh(&mut self, layout: &RunLayout, wanted: Option<u64>) -> Result<(), String> {
        self.steps = steps(layout).map_err(|error| format!("rollouts: {error}"))?;
        let exists = |step: &u64| self.steps.binary_search(step).is_ok();
        let Some(step) = wanted.filter(exists).or(self.steps.last().copied()) else {
            *self = Rollouts::default();
            return Ok(());
        };
        let path = layout.rollout_path(step);
        let modified = fs::metadata(&path).and_then(|file| file.modified()).ok();
        if self.step == Some(step) && self.modified == modified {
            return Ok(());
        }
        let answers = read_answers(&path).map_err(|error| error.to_string())?;
        self.groups = answers
            .chunk_by(|a, b| a.prompt_id == b.prompt_id && a.index < b.index)
            .map(<[Answer]>::to_vec)
            .collect();
        (self.step, self.modified) = (Some(step), modified);
        Ok(())
    }
}

/// Steps that left a rollout, ascending.
fn steps(layout: &RunLayout) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(layout.rollouts_path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found: Vec<u64> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| {
            let step = name.strip_prefix("step-")?.strip_suffix(".parquet")?;
            step.parse().ok()
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}
