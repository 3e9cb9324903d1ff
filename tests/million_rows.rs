//! A million prompts, as lines and as parquet: rows stay on disk, so that a run on them needs hardly more memory
//! than one on a hundred.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use parquet::arrow::ArrowWriter;

use crate::datasets::{ONE_STEP, dataset, train};
use crate::program;
use crate::run_files::metrics;

/// Bytes that a run on the file `path` needs at most.
fn peak_memory(path: &Path) -> u64 {
    let run = path.with_extension("run");
    program::succeed(&train(
        &run,
        &[&dataset(path, ""), ONE_STEP, "evaluation.prompts=4"],
    ));
    let steps = metrics(&run);
    let peak = steps.last().and_then(|step| step.peak_memory_bytes);
    peak.expect("it is measured")
}

/// Prompt and answer of row number i.
fn row(i: u64) -> (String, u64) {
    let prompt = format!(
        "Take {i}, add {}, and leave out whatever else is said here about apples and pears. What is it?",
        i % 1000
    );
    (prompt, i + i % 1000)
}

fn write_lines(path: &Path, num_rows: u64) {
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    for i in 0..num_rows {
        let (prompt, answer) = row(i);
        writeln!(
            file,
            r#"{{"id": {i}, "prompt": "{prompt}", "answer": {answer}}}"#
        )
        .unwrap();
    }
    file.flush().unwrap();
}

fn write_parquet(path: &Path, num_rows: u64) {
    let batch = |first: u64| {
        let rows: Vec<(String, u64)> = (first..first + 100).map(row).collect();
        let prompts = StringArray::from_iter_values(rows.iter().map(|row| &row.0));
        let answers = UInt64Array::from_iter_values(rows.iter().map(|row| row.1));
        let ids = UInt64Array::from_iter_values(first..first + 100);
        let columns: [(&str, ArrayRef); 3] = [
            ("id", Arc::new(ids)),
            ("prompt", Arc::new(prompts)),
            ("answer", Arc::new(answers)),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch(0).schema(), None).unwrap();
    for first in (0..num_rows).step_by(100) {
        writer.write(&batch(first)).unwrap();
    }
    writer.close().unwrap();
}

/// Holds a run on a million rows to the memory of one on a hundred.
fn assert_flat(ending: &str, write: fn(&Path, u64)) {
    let dir = tempfile::tempdir().unwrap();
    let [few, many] = ["few", "many"].map(|name| dir.path().join(name).with_extension(ending));
    write(&few, 100);
    write(&many, 1_000_000);
    let file_bytes = fs::metadata(&many).unwrap().len();
    let more_bytes = peak_memory(&many).saturating_sub(peak_memory(&few));
    println!("{more_bytes} more bytes of memory for a file of {file_bytes}");
    assert!(more_bytes < 32 << 20, "{more_bytes}");
    assert!(file_bytes > more_bytes, "{file_bytes}");
}

#[test]
fn a_million_lines_take_hardly_more_memory_than_a_hundred() {
    assert_flat("jsonl", write_lines);
}

#[test]
fn a_million_rows_of_parquet_take_hardly_more_memory_than_a_hundred() {
    assert_flat("parquet", write_parquet);
}
