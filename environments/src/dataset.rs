//! Prompts from the user's own files: JSONL or parquet, any number of rows, in little memory.
//!
//! [`Dataset::open`] reads each file once, checks every row and keeps an [`index`] of where rows are;
//! a row itself is read when it is asked for. Which one that is depends on a seed and a number alone
//! ([`Dataset::draw`]): every pass over the rows of a split has an order of its own. The files must stay as
//! they are while a dataset is open.

mod answer;
mod columns;
mod config;
mod error;
mod fields;
mod index;
mod jsonl;
mod opening;
mod order;
mod placed_file;
mod repeats;
mod rows;

use std::path::Path;

pub use self::answer::AnswerGrader;
pub use self::config::{BadRow, DatasetConfig};
pub use self::error::DatasetError;
use self::fields::Demands;
use self::index::Index;
use self::rows::Rows;
use crate::episode::EpisodeLimits;
use crate::task::{RowKey, Split, Task, TaskKey, Verifier};

/// An opened dataset.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    demands: Demands,
    on_bad_row: BadRow,
    /// That of `path`, and the held-out one where there is one.
    files: Vec<OpenedFile>,
}

/// One file of a dataset.
#[derive(Debug)]
struct OpenedFile {
    rows: Rows,
    index: Index,
    identity: FileIdentity,
    /// Rows, blank lines left out.
    num_rows: u64,
    skipped: u64,
    first_skipped: Option<String>,
}

/// What tells one content of a file from another.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileIdentity {
    /// Where it was.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its content, in hexadecimal.
    pub blake3: String,
}

impl Dataset {
    /// Opens the files of `config`, which must be sound, and checks every row. A prompt of more than
    /// `max_prompt_bytes` is a bad row.
    ///
    /// # Errors
    /// A file that can't be read, the first bad row (unless such rows are to be skipped), or no row to train
    /// on.
    pub fn open(config: &DatasetConfig, max_prompt_bytes: usize) -> Result<Dataset, DatasetError> {
        let demands = Demands {
            grader: config.grader,
            max_prompt_bytes,
        };
        let dataset = Dataset {
            name: config.name(),
            demands,
            on_bad_row: config.on_bad_row,
            files: opening::open(&config.paths(), &demands, config.on_bad_row)?,
        };
        match dataset.num_rows(Split::Train) {
            0 => Err(dataset.empty(Split::Train)),
            _ => Ok(dataset),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows of a split.
    pub fn num_rows(&self, split: Split) -> u64 {
        self.file(split).index.num_members(split)
    }

    /// What happens to bad rows.
    pub fn on_bad_row(&self) -> BadRow {
        self.on_bad_row
    }

    /// The content of each file, when it was opened.
    pub fn identities(&self) -> Vec<FileIdentity> {
        let identities = self.files.iter().map(|file| file.identity.clone());
        identities.collect()
    }

    /// How many rows there are and how many were skipped, in words.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} rows to train on, {} held out",
            self.num_rows(Split::Train),
            self.num_rows(Split::HeldOut)
        );
        for file in &self.files {
            if let Some(first) = &file.first_skipped {
                text += &format!(
                    "; {} of {} rows of {} are skipped, the first: {first}",
                    file.skipped, file.num_rows, file.identity.path
                );
            }
        }
        text
    }

    /// The row of draw number `number`. Draws `n * rows .. (n + 1) * rows` are one pass over the split, in
    /// an order that `seed` and n decide; `attempt` tells draws of the same number apart.
    ///
    /// # Errors
    /// The split has no rows.
    pub fn draw(
        &self,
        split: Split,
        seed: u64,
        number: u64,
        attempt: u32,
    ) -> Result<RowKey, DatasetError> {
        let num_rows = self.num_rows(split);
        if num_rows == 0 {
            return Err(self.empty(split));
        }
        let mut hasher =
            blake3::Hasher::new_derive_key("baleen environments 1: order of a dataset");
        for word in [split as u64, seed, number / num_rows, u64::from(attempt)] {
            hasher.update(&word.to_le_bytes());
        }
        let key = *hasher.finalize().as_bytes();
        let place = order::place(key, number % num_rows, num_rows);
        Ok(RowKey {
            dataset: self.name.clone(),
            split,
            row: self.file(split).index.member(split, place) + 1,
        })
    }

    /// The task that `key` names, read from its file.
    ///
    /// # Errors
    /// A file that was changed or can't be read, or a row that is not one of the split's.
    pub fn task(&self, key: &RowKey) -> Result<Task, DatasetError> {
        let file = self.file(key.split);
        let row = key.row.checked_sub(1);
        let row = row.filter(|row| file.index.holds(key.split, *row));
        let row = row.ok_or_else(|| DatasetError::Unknown {
            name: key.to_string(),
        })?;
        file.rows.file().check_unchanged()?;
        let checked = |fields: Result<fields::Fields<'_>, String>| {
            fields.and_then(|fields| fields.row(&self.demands))
        };
        let found = file.rows.read(row, &file.index, checked)?;
        // It was sound when the file was opened.
        let found = found.map_err(|_| DatasetError::Changed {
            path: file.rows.file().path().to_path_buf(),
        })?;
        Ok(Task {
            key: TaskKey::Row(key.clone()),
            system: None,
            question: found.prompt,
            tools: Vec::new(),
            limits: EpisodeLimits::default(),
            witness: Vec::new(),
            solution: found.solution,
            gold: found.gold,
            verifier: Verifier::Answer(self.demands.grader),
        })
    }

    /// The error that names a row, for a task that turns out not to fit.
    pub fn bad_row(&self, key: &RowKey, problem: String) -> DatasetError {
        let file = &self.file(key.split).rows;
        DatasetError::Row {
            path: file.file().path().to_path_buf(),
            place: format!("{} {}", file.noun(), key.row),
            problem,
        }
    }

    fn file(&self, split: Split) -> &OpenedFile {
        match (split, &self.files[..]) {
            (Split::HeldOut, [_, held_out]) => held_out,
            _ => &self.files[0],
        }
    }

    fn empty(&self, split: Split) -> DatasetError {
        let file = self.file(split);
        DatasetError::Empty {
            path: Path::new(&file.identity.path).to_path_buf(),
            split,
            num_rows: file.num_rows,
            skipped: file.skipped,
        }
    }
}

#[cfg(test)]
mod tests;
