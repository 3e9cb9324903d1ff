//! A run as the page needs it: read once, nothing written; the run may be working.

use std::io;
use std::path::{Path, PathBuf};

use model::Tokenizer;

use super::samples::{self, ShownSamples};
use crate::config::{PolicySource, RunConfig};
use crate::health::{self, Advisory};
use crate::metrics::{self, StepMetrics};
use crate::run_folder::{RunFolderError, RunLayout};
use crate::summary;

/// A run can't be reported on.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No run there, or its configuration is not sound.
    #[error(transparent)]
    RunFolder(#[from] RunFolderError),
    /// Its metrics are damaged.
    #[error("{path}: {source}")]
    Metrics {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A run and what is shown of it.
#[derive(Debug)]
pub struct Run {
    /// Its name on the page.
    pub(super) label: String,
    /// Its folder, as named.
    pub(super) folder: String,
    pub(super) config: RunConfig,
    pub(super) steps: Vec<StepMetrics>,
    /// The process that works on it.
    pub(super) holder: Option<String>,
    /// Of every stage, oldest first.
    pub(super) advisories: Vec<Advisory>,
    pub(super) shown: ShownSamples,
    /// `None` where it can't be opened; a note of `shown` says why.
    pub(super) tokenizer: Option<Tokenizer>,
}

impl Run {
    /// Reads the run in `folder`. Rollouts and tokenizer may be missing: the page says so.
    ///
    /// # Errors
    /// No run there, or configuration or metrics are damaged.
    pub fn read(folder: &Path) -> Result<Run, ReportError> {
        let layout = RunLayout::new(folder);
        let config = layout.read_config()?;
        let path = layout.metrics_path();
        let steps = match path.exists() {
            true => metrics::read(&path).map_err(|source| ReportError::Metrics {
                path: path.clone(),
                source,
            })?,
            false => Vec::new(),
        };
        let holder = layout.holder();
        let silent_secs = holder.as_ref().and_then(|_| {
            let written = path.metadata().ok()?.modified().ok()?;
            // A clock set back only hides a stall.
            Some(written.elapsed().unwrap_or_default().as_secs_f64())
        });
        let mut shown = samples::read(&layout, &steps);
        let tokenizer = match tokenizer(&layout, &config) {
            Ok(tokenizer) => Some(tokenizer),
            Err(problem) => {
                shown.notes.push(format!(
                    "Token ids stand in place of texts, since the tokenizer can't be opened: {problem}"
                ));
                None
            }
        };
        Ok(Run {
            label: config.name.clone(),
            folder: folder.display().to_string(),
            advisories: advisories(&config, &steps, silent_secs),
            config,
            steps,
            holder,
            shown,
            tokenizer,
        })
    }

    /// `complete`, `running: process 123, for 5 min`, `stopped`.
    pub(super) fn state(&self) -> String {
        match &self.holder {
            Some(holder) => format!("running: {holder}"),
            None if summary::is_complete(&self.config, &self.steps) => "complete".to_string(),
            None => "stopped".to_string(),
        }
    }
}

/// Those of every stage, as it was at its end.
fn advisories(
    config: &RunConfig,
    steps: &[StepMetrics],
    silent_secs: Option<f64>,
) -> Vec<Advisory> {
    let mut found = Vec::new();
    for index in 0..config.stages.len() {
        let end = steps
            .iter()
            .rposition(|step| step.stage_index == index && step.step > 0);
        if let Some(end) = end {
            let silent_secs = silent_secs.filter(|_| end + 1 == steps.len());
            found.extend(health::advisories(config, &steps[..=end], silent_secs));
        }
    }
    found
}

/// That of the exported model, else that of the starting policy.
fn tokenizer(layout: &RunLayout, config: &RunConfig) -> Result<Tokenizer, String> {
    if let PolicySource::Random(_) = config.model.source {
        return Ok(Tokenizer::byte_level());
    }
    let exported = layout.model_path();
    if exported.join("tokenizer.json").is_file()
        && let Ok(tokenizer) = Tokenizer::from_folder(&exported)
    {
        return Ok(tokenizer);
    }
    let PolicySource::Path(path) = &config.model.source else {
        return Err("the starting policy has no files".to_string());
    };
    let opened = model::checkpoint::open(Path::new(path));
    opened
        .map(|(_, _, tokenizer)| tokenizer)
        .map_err(|error| error.to_string())
}
