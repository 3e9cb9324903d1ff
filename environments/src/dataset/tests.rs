//! Datasets as a run meets them: tasks, splits, draws, and files that change.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

use super::*;

mod bad_rows;

/// A folder with files, and the config of a dataset in it.
struct Files {
    dir: tempfile::TempDir,
    config: DatasetConfig,
}

impl Files {
    /// `a.jsonl` with these lines.
    fn of(lines: &[impl AsRef<str>]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            config: DatasetConfig {
                path: dir.path().join("a.jsonl").display().to_string(),
                grader: AnswerGrader::Integer,
                name: None,
                held_out: None,
                on_bad_row: BadRow::Stop,
            },
            dir,
        };
        files.write("a.jsonl", lines);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, lines: &[impl AsRef<str>]) {
        let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
        fs::write(self.path(name), lines.join("\n") + "\n").unwrap();
    }

    fn skipping(mut self) -> Files {
        self.config.on_bad_row = BadRow::Skip;
        self
    }

    fn open(&self) -> Dataset {
        self.try_open().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_open(&self) -> Result<Dataset, DatasetError> {
        Dataset::open(&self.config, 1000)
    }

    fn refusal(&self) -> String {
        self.try_open().expect_err("must be refused").to_string()
    }
}

/// Sums of i and 1.
fn sums(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers
        .map(|i| {
            format!(
                r#"{{"prompt": "What is {i} + 1?", "answer": {}, "id": {i}}}"#,
                i + 1
            )
        })
        .collect()
}

fn split_row(prompt: &str, split: &str) -> String {
    format!(r#"{{"prompt": "{prompt}", "answer": 1, "split": "{split}"}}"#)
}

fn draws(dataset: &Dataset, split: Split, seed: u64, numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers
        .map(|number| dataset.draw(split, seed, number, 0).unwrap().row)
        .collect()
}

#[test]
fn a_row_becomes_a_task_that_its_solution_solves() {
    let files = Files::of(&[
        r#"{"prompt": "What is 6 x 7?", "answer": 42, "solution": "6 x 7 = 42", "split": "train"}"#,
        r#"{"prompt": "What is 1 + 1?", "answer": "2", "split": "held_out"}"#,
    ]);
    let dataset = files.open();
    assert_eq!(dataset.name(), "a");
    let key = dataset.draw(Split::Train, 0, 0, 0).unwrap();
    assert_eq!(key.to_string(), "dataset a row 1");
    let task = dataset.task(&key).unwrap();
    assert_eq!(task.key, TaskKey::Row(key));
    assert_eq!(
        (task.question.as_str(), task.solution.as_str()),
        ("What is 6 x 7?", "6 x 7 = 42")
    );
    let reward = |completion: &str| task.verify(completion).reward();
    assert_eq!(reward(&task.solution), Some(1.0));
    assert_eq!(reward("What is 6 x 7? I don't know."), Some(0.0));
    let held_out = dataset.draw(Split::HeldOut, 0, 0, 0).unwrap();
    let held_out = dataset.task(&held_out).unwrap();
    assert_eq!(
        (held_out.solution.as_str(), held_out.verify("2").reward()),
        ("2", Some(1.0))
    );
}

#[test]
fn jsonl_and_parquet_with_the_same_rows_give_the_same_tasks() {
    let files = Files::of(&sums(0..500));
    let texts = |text: fn(u64) -> String| {
        Arc::new(StringArray::from_iter_values((0..500).map(text))) as ArrayRef
    };
    let columns = [
        ("prompt", texts(|i| format!("What is {i} + 1?"))),
        ("answer", texts(|i| (i + 1).to_string())),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let path = files.path("a.parquet");
    let file = fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let lines = files.open();
    let config = DatasetConfig {
        path: path.display().to_string(),
        ..files.config.clone()
    };
    let rows = Dataset::open(&config, 1000).unwrap();
    for split in [Split::Train, Split::HeldOut] {
        assert_eq!(lines.num_rows(split), rows.num_rows(split));
        for number in 0..lines.num_rows(split) {
            let key = lines.draw(split, 7, number, 0).unwrap();
            assert_eq!(rows.draw(split, 7, number, 0).unwrap(), key);
            assert_eq!(rows.task(&key).unwrap(), lines.task(&key).unwrap());
        }
    }
}

#[test]
fn every_pass_asks_every_row_once_in_an_order_of_its_own() {
    let dataset = Files::of(&sums(0..300)).open();
    for split in [Split::Train, Split::HeldOut] {
        let num_rows = dataset.num_rows(split);
        let pass = |seed, n| draws(&dataset, split, seed, n * num_rows..(n + 1) * num_rows);
        let rows: BTreeSet<u64> = pass(1, 0).into_iter().collect();
        assert_eq!(rows.len() as u64, num_rows);
        let orders: HashSet<Vec<u64>> = [pass(1, 0), pass(1, 1), pass(1, 2), pass(2, 0)].into();
        assert_eq!(orders.len(), 4);
        for order in orders {
            assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), rows);
        }
        assert_eq!(pass(1, 1 << 40), pass(1, 1 << 40), "by number alone");
    }
    let other = |attempt| dataset.draw(Split::Train, 1, 5, attempt).unwrap();
    assert!((1..5).any(|attempt| other(attempt) != other(0)));
}

#[test]
fn one_row_in_four_is_held_out_by_what_it_asks() {
    let files = Files::of(&sums(0..1000));
    let prompts = |dataset: &Dataset, split| -> HashSet<String> {
        let rows = draws(dataset, split, 0, 0..dataset.num_rows(split));
        let prompt = |row| {
            let key = RowKey {
                dataset: "a".to_string(),
                split,
                row,
            };
            dataset.task(&key).unwrap().question
        };
        rows.into_iter().map(prompt).collect()
    };
    let dataset = files.open();
    let held_out = prompts(&dataset, Split::HeldOut);
    assert!((200..300).contains(&held_out.len()), "{}", held_out.len());
    assert!(held_out.is_disjoint(&prompts(&dataset, Split::Train)));
    // Wherever it stands, and however it is spaced.
    let mut lines = sums(0..1000);
    lines.reverse();
    lines
        .iter_mut()
        .for_each(|line| *line = line.replace("What is", "What  is"));
    files.write("a.jsonl", &lines);
    let respaced = prompts(&files.open(), Split::HeldOut);
    let respaced: HashSet<String> = respaced.iter().map(|p| p.replace("  ", " ")).collect();
    assert_eq!(respaced, held_out);
}

#[test]
fn a_column_or_a_file_says_what_is_held_out() {
    let files = Files::of(&[
        split_row("a", "train"),
        split_row("b", "held_out"),
        split_row("c", "train"),
        split_row("c", "train"),
    ]);
    let dataset = files.open();
    assert_eq!(draws(&dataset, Split::HeldOut, 0, 0..2), [2, 2]);
    assert_eq!(dataset.num_rows(Split::Train), 3);

    let mut files = Files::of(&sums(0..5));
    files.write("test.jsonl", &sums(5..8));
    files.config.held_out = Some(files.path("test.jsonl").display().to_string());
    let dataset = files.open();
    assert_eq!(
        (
            dataset.num_rows(Split::Train),
            dataset.num_rows(Split::HeldOut)
        ),
        (5, 3)
    );
    let key = dataset.draw(Split::HeldOut, 0, 0, 0).unwrap();
    assert!(["6", "7", "8"].contains(&dataset.task(&key).unwrap().solution.as_str()));
    assert_eq!(dataset.identities().len(), 2);
}

#[test]
fn a_file_written_to_is_noticed_and_one_replaced_is_not_missed() {
    let files = Files::of(&sums(0..100));
    let dataset = files.open();
    let key = dataset.draw(Split::Train, 0, 0, 0).unwrap();
    let task = dataset.task(&key).unwrap();
    // Another file takes the name; the open one is still there.
    files.write("b.jsonl", &sums(50..150));
    fs::rename(files.path("b.jsonl"), files.path("a.jsonl")).unwrap();
    assert_eq!(dataset.task(&key).unwrap(), task);

    let dataset = files.open();
    let path = files.path("a.jsonl");
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"\n").unwrap();
    let error = dataset.task(&key).unwrap_err().to_string();
    assert!(
        error.contains("a.jsonl was changed while it was in use"),
        "{error}"
    );
}

#[test]
fn a_key_of_another_split_or_beyond_the_file_names_no_task() {
    let dataset = Files::of(&[split_row("a", "train"), split_row("b", "held_out")]).open();
    for (split, row) in [
        (Split::Train, 0),
        (Split::Train, 2),
        (Split::HeldOut, 1),
        (Split::Train, u64::MAX),
    ] {
        let key = RowKey {
            dataset: "a".to_string(),
            split,
            row,
        };
        let error = dataset.task(&key).expect_err("no such row").to_string();
        assert_eq!(error, format!("there is no dataset a row {row} here"));
    }
}
