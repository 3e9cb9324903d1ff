//! `datasets.json` of a run folder: what the files of its datasets held when it began.
//!
//! A resumed run draws the rows that the uninterrupted one would have drawn only while the files are the
//! same, byte for byte; where one differs, the run is refused.

use std::collections::BTreeMap;
use std::fs;

use environments::{FileIdentity, Tasks};

use crate::error::TrainerError;
use crate::run_folder::{RunLayout, replace_file};

/// By name of the dataset: its files.
type Record = BTreeMap<String, Vec<FileIdentity>>;

fn record_of(tasks: &Tasks) -> Record {
    let datasets = tasks.datasets();
    datasets
        .map(|dataset| (dataset.name().to_string(), dataset.identities()))
        .collect()
}

/// Writes the record of a run that begins, and holds one that goes on to it. Without datasets there is none.
///
/// # Errors
/// A file that is not what it was, or a record that can't be written or read.
pub fn check_or_write(layout: &RunLayout, tasks: &Tasks) -> Result<(), TrainerError> {
    let now = record_of(tasks);
    if now.is_empty() {
        return Ok(());
    }
    if let Some(began) = read(layout)? {
        return match difference(&began, &now) {
            None => Ok(()),
            Some((path, problem)) => Err(TrainerError::DatasetChanged { path, problem }),
        };
    }
    let path = layout.datasets_path();
    let text = serde_json::to_string_pretty(&now).expect("a record is plain data") + "\n";
    replace_file(&path, text.as_bytes()).map_err(|source| TrainerError::Io { path, source })
}

/// The first file that `layout`'s run did not begin with, and what differs; `None` too where nothing is recorded.
///
/// # Errors
/// A record that can't be read.
pub fn changed_since(
    layout: &RunLayout,
    tasks: &Tasks,
) -> Result<Option<(String, String)>, TrainerError> {
    let began = read(layout)?;
    Ok(began.and_then(|began| difference(&began, &record_of(tasks))))
}

/// The record of a run; `None` where there is none.
///
/// # Errors
/// It can't be read, or is damaged.
pub fn read(layout: &RunLayout) -> Result<Option<Record>, TrainerError> {
    let path = layout.datasets_path();
    if !path.exists() {
        return Ok(None);
    }
    let io = |source| TrainerError::Io {
        path: path.clone(),
        source,
    };
    let bytes = fs::read(&path).map_err(io)?;
    let record = serde_json::from_slice(&bytes).map_err(|error| io(error.into()))?;
    Ok(Some(record))
}

/// The first file whose content is another, and how.
fn difference(began: &Record, now: &Record) -> Option<(String, String)> {
    for (name, files) in now {
        let before = began.get(name).map_or(&[][..], Vec::as_slice);
        for (place, file) in files.iter().enumerate() {
            let problem = match before.get(place) {
                None => "the run had no such dataset".to_string(),
                Some(was) if was.bytes != file.bytes => {
                    format!("{} bytes then, {} now", was.bytes, file.bytes)
                }
                Some(was) if was.blake3 != file.blake3 => {
                    "as long, but of other content".to_string()
                }
                Some(_) => continue,
            };
            return Some((file.path.clone(), problem));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(files: &[(u64, &str)]) -> Record {
        let files = files.iter().map(|(bytes, blake3)| FileIdentity {
            path: "a.jsonl".to_string(),
            bytes: *bytes,
            blake3: blake3.to_string(),
        });
        BTreeMap::from([("a".to_string(), files.collect())])
    }

    #[test]
    fn another_length_or_content_is_told_and_another_place_is_not() {
        let began = record(&[(5, "00")]);
        let told = |now: &Record| difference(&began, now).map(|(_, problem)| problem);
        assert_eq!(told(&record(&[(5, "00")])), None);
        assert_eq!(told(&record(&[(6, "00")])).unwrap(), "5 bytes then, 6 now");
        assert_eq!(
            told(&record(&[(5, "01")])).unwrap(),
            "as long, but of other content"
        );
        assert!(told(&record(&[(5, "00"), (1, "02")])).is_some());
        let mut moved = record(&[(5, "00")]);
        moved.get_mut("a").expect("it is there")[0].path = "b.jsonl".to_string();
        assert_eq!(told(&moved), None);
    }
}
