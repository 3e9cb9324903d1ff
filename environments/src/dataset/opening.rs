//! The pass over a dataset's files that checks every row, says which split it belongs to and finds the
//! rows that repeat others.
//!
//! Rows of the file `held_out` are held out and all of `path` are trained on; else the column `split` says
//! so; else the prompt's hash does, as for task families. No prompt is in both splits. Only where an `id`
//! comes twice, or a prompt on both sides, is a file read again to name the rows.

use std::borrow::Cow;
use std::path::PathBuf;

use super::config::BadRow;
use super::error::DatasetError;
use super::fields::{Demands, Fields, Row};
use super::index::Index;
use super::repeats::Hashes;
use super::rows::Rows;
use super::{FileIdentity, OpenedFile};
use crate::instance::split_of;
use crate::task::Split;

/// Keys the hash of prompts, whatever the dataset is called: a prompt is on the same side in all.
const SPLIT_NAME: &str = "dataset";

/// Opens and checks `paths`: one file, or one to train on and one held out.
pub(super) fn open(
    paths: &[PathBuf],
    demands: &Demands,
    on_bad_row: BadRow,
) -> Result<Vec<OpenedFile>, DatasetError> {
    let mut files = Vec::new();
    let mut prompts: [Hashes; 2] = Default::default();
    let splits = match paths.len() {
        1 => vec![None],
        _ => vec![
            Some(SplitRule::All(Split::Train)),
            Some(SplitRule::All(Split::HeldOut)),
        ],
    };
    for (path, split_rule) in paths.iter().zip(splits) {
        let mut pass = Pass {
            rows: Rows::open(path)?,
            demands,
            on_bad_row,
            split_rule,
            index: Index::default(),
            num_rows: 0,
            skipped: 0,
            first_skipped: None,
        };
        let mut ids = Hashes::default();
        let digest = pass.check_rows(&mut ids, &mut prompts)?;
        pass.leave_out_repeated_ids(ids)?;
        files.push(pass.finished(digest));
    }
    leave_out_shared_prompts(&mut files, prompts, demands, on_bad_row)?;
    for file in &files {
        file.rows.file().check_unchanged()?;
    }
    Ok(files)
}

/// How the split of a file's rows is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SplitRule {
    ByColumn,
    ByHash,
    All(Split),
}

impl SplitRule {
    /// The rule of a file whose first sound row is `row`.
    fn of(row: &Row) -> SplitRule {
        match row.split {
            Some(_) => SplitRule::ByColumn,
            None => SplitRule::ByHash,
        }
    }

    fn split(self, row: &Row) -> Result<Split, String> {
        match (self, row.split) {
            (SplitRule::ByColumn, Some(split)) | (SplitRule::All(split), None) => Ok(split),
            (SplitRule::ByHash, None) => Ok(split_of(SPLIT_NAME, &spaced_once(&row.prompt))),
            (SplitRule::ByColumn, None) => {
                Err("`split` is missing, though rows before this one have it".to_string())
            }
            (SplitRule::ByHash, Some(_)) => {
                Err("`split` is given, though rows before this one lack it".to_string())
            }
            (SplitRule::All(_), Some(_)) => Err(
                "`split` is given, but `held_out` of the configuration names a file: use one of both"
                    .to_string(),
            ),
        }
    }
}

/// `text` with one space between words and none around them.
fn spaced_once(text: &str) -> Cow<'_, str> {
    let text = text.trim_ascii();
    let mut previous = b'x';
    let is_odd = |byte: &u8| {
        let is_odd = byte.is_ascii_whitespace() && (*byte != b' ' || previous == b' ');
        previous = *byte;
        is_odd
    };
    match text.as_bytes().iter().any(is_odd) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

/// A file on its way to being opened.
struct Pass<'a> {
    rows: Rows,
    demands: &'a Demands,
    on_bad_row: BadRow,
    /// Decided by the first sound row where it is open.
    split_rule: Option<SplitRule>,
    index: Index,
    num_rows: u64,
    skipped: u64,
    first_skipped: Option<String>,
}

impl Pass<'_> {
    /// Reads every row once; what may repeat goes into `ids` and, by split, `prompts`.
    fn check_rows(
        &mut self,
        ids: &mut Hashes,
        prompts: &mut [Hashes; 2],
    ) -> Result<blake3::Hash, DatasetError> {
        let mut bad = BadRows::new(self.on_bad_row);
        let (index, rule, demands) = (&mut self.index, &mut self.split_rule, self.demands);
        let mut number = 0;
        let num_rows = &mut self.num_rows;
        let rows = &self.rows;
        let digest = rows.scan(|offset, fields| {
            let row_number = number;
            number += 1;
            let Some(fields) = fields else {
                index.push(offset, None);
                return Ok(());
            };
            *num_rows += 1;
            let row = fields.as_ref().map_err(String::clone);
            let row = row.and_then(|fields| fields.row(demands));
            let mut split = |row: &Row| rule.get_or_insert(SplitRule::of(row)).split(row);
            match row.and_then(|row| Ok((split(&row)?, row))) {
                Ok((split, row)) => {
                    if let Some(id) = &row.id {
                        ids.add(id);
                    }
                    // The hash puts equal prompts on one side.
                    if *rule != Some(SplitRule::ByHash) {
                        prompts[split as usize].add(&row.prompt);
                    }
                    index.push(offset, Some(split));
                }
                Err(problem) => {
                    let id = fields.ok().and_then(|fields| fields.id_text());
                    bad.note(rows, row_number, id.as_deref(), problem)?;
                    index.push(offset, None);
                }
            }
            Ok(())
        })?;
        self.skipped += bad.rows.len() as u64;
        self.first_skipped = bad.first;
        Ok(digest)
    }

    fn leave_out_repeated_ids(&mut self, ids: Hashes) -> Result<(), DatasetError> {
        let mut suspects = ids.repeated();
        if suspects.is_empty() {
            return Ok(());
        }
        let noun = self.rows.noun();
        let mut bad = BadRows::new(self.on_bad_row);
        for_members(&self.rows, &self.index, self.demands, |number, _, row| {
            let Some(id) = &row.id else { return Ok(()) };
            match suspects.note(id, number) {
                None => Ok(()),
                Some(first) => {
                    let problem = format!("`id` is also that of {noun} {}", first + 1);
                    bad.note(&self.rows, number, Some(id), problem)
                }
            }
        })?;
        self.skipped += bad.rows.len() as u64;
        self.first_skipped = self.first_skipped.take().or(bad.first);
        self.index.remove(bad.rows);
        Ok(())
    }

    fn finished(self, digest: blake3::Hash) -> OpenedFile {
        let file = self.rows.file();
        OpenedFile {
            identity: FileIdentity {
                path: file.path().display().to_string(),
                bytes: file.num_bytes(),
                blake3: digest.to_hex().to_string(),
            },
            rows: self.rows,
            index: self.index,
            num_rows: self.num_rows,
            skipped: self.skipped,
            first_skipped: self.first_skipped,
        }
    }
}

/// Refuses or leaves out rows to train on whose prompt is held out as well.
fn leave_out_shared_prompts(
    files: &mut [OpenedFile],
    [train, held_out]: [Hashes; 2],
    demands: &Demands,
    on_bad_row: BadRow,
) -> Result<(), DatasetError> {
    let mut suspects = train.shared(held_out);
    let (Some(last), false) = (files.last(), suspects.is_empty()) else {
        return Ok(());
    };
    let (noun, path) = (last.rows.noun(), last.rows.file().path().to_path_buf());
    for_members(&last.rows, &last.index, demands, |number, split, row| {
        if split == Split::HeldOut {
            suspects.note(&row.prompt, number);
        }
        Ok(())
    })?;
    let first = &mut files[0];
    let mut bad = BadRows::new(on_bad_row);
    for_members(&first.rows, &first.index, demands, |number, split, row| {
        let noted = match split {
            Split::Train => suspects.noted(&row.prompt),
            Split::HeldOut => None,
        };
        match noted {
            None => Ok(()),
            Some(held_out) => {
                let problem = format!(
                    "`prompt` is held out as well, in {noun} {} of {}",
                    held_out + 1,
                    path.display()
                );
                bad.note(&first.rows, number, row.id.as_deref(), problem)
            }
        }
    })?;
    first.skipped += bad.rows.len() as u64;
    first.first_skipped = first.first_skipped.take().or(bad.first);
    first.index.remove(bad.rows);
    Ok(())
}

/// Calls `each` with number, split and content of every row that is in a split.
fn for_members(
    rows: &Rows,
    index: &Index,
    demands: &Demands,
    mut each: impl FnMut(u64, Split, Row) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    let mut number = 0;
    let read = |_, fields: Option<Result<Fields<'_>, String>>| {
        let row_number = number;
        number += 1;
        let splits = [Split::Train, Split::HeldOut];
        let split = splits
            .into_iter()
            .find(|split| index.holds(*split, row_number));
        let row = fields.and_then(|fields| fields.ok()?.row(demands).ok());
        match (split, row) {
            (Some(split), Some(row)) => each(row_number, split, row),
            _ => Ok(()),
        }
    };
    rows.scan(read).map(|_| ())
}

/// Rows that can't be used.
struct BadRows {
    on_bad_row: BadRow,
    rows: Vec<u64>,
    first: Option<String>,
}

impl BadRows {
    fn new(on_bad_row: BadRow) -> BadRows {
        BadRows {
            on_bad_row,
            rows: Vec::new(),
            first: None,
        }
    }

    /// Takes note of a bad row, counted from 0.
    ///
    /// # Errors
    /// Bad rows are not to be skipped.
    fn note(
        &mut self,
        rows: &Rows,
        number: u64,
        id: Option<&str>,
        problem: String,
    ) -> Result<(), DatasetError> {
        let mut place = format!("{} {}", rows.noun(), number + 1);
        if let Some(id) = id {
            let id: String = id.chars().take(60).collect();
            place += &format!(" (id {id:?})");
        }
        match self.on_bad_row {
            BadRow::Stop => Err(DatasetError::Row {
                path: rows.file().path().to_path_buf(),
                place,
                problem,
            }),
            BadRow::Skip => {
                self.first
                    .get_or_insert_with(|| format!("{place}: {problem}"));
                self.rows.push(number);
                Ok(())
            }
        }
    }
}
