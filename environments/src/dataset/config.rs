//! What a configuration says about a dataset.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::answer::AnswerGrader;

/// Prompts from the user's own files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// A `.jsonl` or `.parquet` file; docs/environments.md tells its columns.
    pub path: String,
    /// How answers are graded.
    pub grader: AnswerGrader,
    /// Names the dataset in rollout files and logs; `None` takes the file's name without its ending.
    #[serde(default)]
    pub name: Option<String>,
    /// A file of the same kind whose rows are held out, all of them; the rows of `path` are then all trained on.
    #[serde(default)]
    pub held_out: Option<String>,
    /// What a row that can't be used comes to.
    #[serde(default)]
    pub on_bad_row: BadRow,
}

/// What a row that can't be used comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRow {
    /// The run does not start; the error names the row and the field.
    #[default]
    Stop,
    /// It is left out; the log tells how many are.
    Skip,
}

impl DatasetConfig {
    /// Its name: as given, else the file's without its ending.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let stem = Path::new(&self.path).file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        })
    }

    /// Its files: that of `path`, and the held-out one where there is one.
    pub fn paths(&self) -> Vec<PathBuf> {
        let held_out = self.held_out.as_ref();
        [&self.path]
            .into_iter()
            .chain(held_out)
            .map(PathBuf::from)
            .collect()
    }

    /// Every senseless value, in words that name the key; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.path.is_empty() {
            found.push("path is empty; name a .jsonl or .parquet file".to_string());
        } else if self.name().is_empty() {
            found.push("name is empty".to_string());
        }
        if self.held_out.as_ref() == Some(&self.path) {
            found.push(format!(
                "held_out is {:?}, the same file as path; rows to train on and rows held out must differ",
                self.path
            ));
        }
        found
    }
}
