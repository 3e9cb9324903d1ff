//! Parquet files with nulls, several row groups and pages, broken text, wrong types, and damage.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, StringViewArray, StructArray,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field as ArrowField};
use parquet::arrow::ArrowWriter;
use parquet::data_type::ByteArrayType;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

/// Writes columns in row groups of 150 rows and pages of 20.
fn write(path: &Path, columns: &[(&str, ArrayRef)]) {
    let batch = RecordBatch::try_from_iter(columns.iter().cloned()).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(150))
        .set_data_page_row_count_limit(20)
        .set_write_batch_size(10)
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn open(path: &Path) -> Result<ParquetRows, DatasetError> {
    ParquetRows::open(&PlacedFile::open(path)?)
}

/// What a row says, for comparison.
fn said(fields: Result<Fields<'_>, String>) -> String {
    match fields {
        Ok(fields) => format!("{fields:?}"),
        Err(problem) => problem,
    }
}

fn scanned(rows: &ParquetRows) -> Vec<String> {
    let mut found = Vec::new();
    rows.scan(|fields| {
        found.push(said(fields));
        Ok(())
    })
    .unwrap();
    found
}

#[test]
fn rows_are_read_in_order_and_one_by_one_alike() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let numbers = || 0..400i64;
    let prompts = numbers().map(|i| format!("prompt {}", i % 90));
    let answers = numbers().map(|i| (i % 3 > 0).then_some(-i));
    let ids = numbers().map(|i| u64::MAX - i as u64);
    let solutions = numbers().map(|i| (i % 50 == 7).then(|| "s".repeat(i as usize)));
    write(
        &path,
        &[
            ("answer", Arc::new(Int64Array::from_iter(answers))),
            (
                "other",
                Arc::new(Float64Array::from_iter_values(numbers().map(|i| i as f64))),
            ),
            ("prompt", Arc::new(StringArray::from_iter_values(prompts))),
            ("id", Arc::new(UInt64Array::from_iter_values(ids))),
            ("solution", Arc::new(StringViewArray::from_iter(solutions))),
        ],
    );
    let rows = open(&path).unwrap();
    assert_eq!(rows.group_starts, [0, 150, 300]);
    let found = scanned(&rows);
    assert_eq!(found.len(), 400);
    for (row, found) in found.iter().enumerate() {
        let solution = "s".repeat(row);
        let expected = Fields {
            prompt: Field::Text(format!("prompt {}", row % 90).into()),
            answer: match row % 3 {
                0 => Field::Absent,
                _ => Field::Integer(-(row as i128)),
            },
            solution: match row % 50 {
                7 => Field::Text(solution.into()),
                _ => Field::Absent,
            },
            id: Field::Integer(i128::from(u64::MAX) - row as i128),
            split: Field::Absent,
        };
        assert_eq!(*found, format!("{expected:?}"), "row {row}");
        assert_eq!(rows.read(row as u64, said).unwrap(), *found, "row {row}");
    }
}

/// A file whose texts are these bytes, though it says that they are UTF-8.
fn write_bytes(path: &Path, texts: &[&[u8]]) {
    let schema = parse_message_type("message m { required binary prompt (UTF8); }").unwrap();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts: Vec<ByteArray> = texts.iter().map(|text| text.to_vec().into()).collect();
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn broken_utf8_is_named_and_spoils_no_other_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    write_bytes(&path, &[b"one", b"tw\xff", "dr\u{e9}i".as_bytes()]);
    let rows = open(&path).unwrap();
    let found = scanned(&rows);
    assert!(found[0].contains("Text(\"one\")"), "{}", found[0]);
    assert_eq!(found[1], "`prompt` is not UTF-8: its byte 3 is 0xff");
    assert!(found[2].contains("Text(\"dr\u{e9}i\")"), "{}", found[2]);
    assert_eq!(rows.read(1, said).unwrap(), found[1]);
    assert_eq!(rows.read(2, said).unwrap(), found[2]);
}

#[test]
fn columns_that_a_dataset_cannot_have_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let texts = || Arc::new(StringArray::from(vec!["a"])) as ArrayRef;
    let numbers = Arc::new(Float64Array::from(vec![1.0]));
    let content = Arc::new(ArrowField::new("content", DataType::Utf8, false));
    let nested = Arc::new(StructArray::from(vec![(content, texts())]));
    let refused = |columns: &[(&str, ArrayRef)]| {
        write(&path, columns);
        match open(&path) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{columns:?} was opened"),
        }
    };
    let problem = refused(&[("question", texts()), ("answer", texts())]);
    assert!(
        problem.contains("no column `prompt`; the columns of a dataset are prompt, answer"),
        "{problem}"
    );
    let problem = refused(&[("prompt", texts()), ("answer", numbers)]);
    assert!(
        problem.contains("column `answer` holds DOUBLE; text or integers"),
        "{problem}"
    );
    let problem = refused(&[("prompt", nested)]);
    assert!(problem.contains("column `prompt` is nested"), "{problem}");
}

#[test]
fn a_damaged_file_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let prompts = (0..200).map(|i| format!("prompt {i} {}", "x".repeat(i % 7)));
    let answers = (0..200).map(|i| (i % 5 > 0).then_some(i));
    write(
        &path,
        &[
            ("prompt", Arc::new(StringArray::from_iter_values(prompts))),
            ("answer", Arc::new(Int64Array::from_iter(answers))),
        ],
    );
    let whole = fs::read(&path).unwrap();
    // The reader's own panics are caught, and need no report.
    std::panic::set_hook(Box::new(|_| ()));
    let mut num_refused = 0;
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        fs::write(&path, damaged).unwrap();
        let outcome = open(&path).and_then(|rows| rows.scan(|_| Ok(())));
        num_refused += usize::from(outcome.is_err());
    }
    drop(std::panic::take_hook());
    assert!(num_refused > 50, "{num_refused} of {}", whole.len());
    for len in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(open(&path).is_err(), "cut at {len}");
    }
}
