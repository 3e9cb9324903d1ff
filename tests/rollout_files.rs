//! The rollout files of a run, read with the parquet crate alone: every sample is there and its
//! columns fit together.

use std::fs::File;
use std::path::Path;

use arrow::array::{Array, ListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, Float32Type, Float64Type, UInt16Type, UInt32Type, UInt64Type,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::run_files::{TINY_STEPS, names, train_tiny};

const GROUPS: usize = 8;
const GROUP_SIZE: usize = 8;
const LAYERS: usize = 2;
const EXPERTS: u16 = 4;
const TOP_K: usize = 2;
const STOP_TOKEN: u32 = 257;
const MAX_NEW_TOKENS: usize = 24;

fn batches(path: &Path) -> Vec<RecordBatch> {
    let file = File::open(path).expect("the file is there");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("it is parquet");
    let reader = reader.build().expect("it can be read");
    reader.map(|batch| batch.expect("a whole batch")).collect()
}

fn column<'a, A: 'static>(batch: &'a RecordBatch, name: &str) -> &'a A {
    let column = batch.column_by_name(name).expect("the column is there");
    column.as_any().downcast_ref().expect("of that type")
}

fn number<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str, row: usize) -> T::Native {
    column::<PrimitiveArray<T>>(batch, name).value(row)
}

fn list<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str, row: usize) -> Vec<T::Native> {
    let items = column::<ListArray>(batch, name).value(row);
    let items = items.as_any().downcast_ref::<PrimitiveArray<T>>();
    items.expect("of that type").values().to_vec()
}

/// Checks one sample; returns its prompt's id and its advantage.
fn check_sample(batch: &RecordBatch, row: usize) -> (u64, f64) {
    let tokens = list::<UInt32Type>(batch, "tokens", row);
    assert!((1..=MAX_NEW_TOKENS).contains(&tokens.len()));
    let ends = column::<StringArray>(batch, "finish_reason").value(row);
    match ends {
        "stop" => assert_eq!(tokens.last(), Some(&STOP_TOKEN)),
        "length" => assert_eq!(tokens.len(), MAX_NEW_TOKENS),
        other => panic!("finish_reason {other}"),
    }

    let logprobs = list::<Float32Type>(batch, "sampler_logprobs", row);
    assert_eq!(logprobs.len(), tokens.len());
    assert!(
        logprobs
            .iter()
            .all(|logprob| logprob.is_finite() && *logprob <= 0.0)
    );

    // One row of kept tokens a sampled token, which is among them.
    let offsets = list::<UInt32Type>(batch, "kept_offsets", row);
    let kept = list::<UInt32Type>(batch, "kept_ids", row);
    assert_eq!(offsets.len(), tokens.len() + 1);
    assert_eq!((offsets[0], offsets[tokens.len()]), (0, kept.len() as u32));
    for (token, bounds) in tokens.iter().zip(offsets.windows(2)) {
        let row = &kept[bounds[0] as usize..bounds[1] as usize];
        assert!(row.contains(token), "{token} is not among {row:?}");
    }

    // Experts of each forwarded token and layer, all different.
    let prompt = list::<UInt32Type>(batch, "prompt_tokens", row);
    let routing = list::<UInt16Type>(batch, "routing", row);
    assert_eq!(
        number::<UInt32Type>(batch, "routing_layers", row),
        LAYERS as u32
    );
    assert_eq!(
        number::<UInt32Type>(batch, "routing_top_k", row),
        TOP_K as u32
    );
    assert_eq!(
        routing.len(),
        (prompt.len() + tokens.len() - 1) * LAYERS * TOP_K
    );
    for experts in routing.chunks(TOP_K) {
        assert!(experts[0] != experts[1] && experts.iter().all(|&expert| expert < EXPERTS));
    }

    let reward = number::<Float64Type>(batch, "reward", row);
    assert!(reward == 0.0 || reward == 1.0);
    assert_eq!(column::<StringArray>(batch, "family").value(row), "sums");
    assert_eq!(column::<StringArray>(batch, "split").value(row), "train");
    let index = number::<UInt64Type>(batch, "sample_index", row);
    assert_eq!(index as usize, row % GROUP_SIZE);
    (
        number::<UInt64Type>(batch, "prompt_id", row),
        number::<Float64Type>(batch, "advantage", row),
    )
}

#[test]
fn every_sample_of_a_run_is_in_its_rollout_files_with_columns_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let first_step = TINY_STEPS[..3].iter().sum::<usize>() + 1;
    let expected: Vec<String> = (first_step..first_step + TINY_STEPS[3])
        .map(|step| format!("step-{step:06}.parquet"))
        .collect();
    assert_eq!(names(&run.join("rollouts")), expected);

    let mut next_prompt = 0;
    for (name, step) in expected.iter().zip(first_step as u64..) {
        let samples: Vec<(u64, f64)> = batches(&run.join("rollouts").join(name))
            .iter()
            .flat_map(|batch| {
                (0..batch.num_rows()).map(move |row| {
                    assert_eq!(number::<UInt64Type>(batch, "step", row), step);
                    check_sample(batch, row)
                })
            })
            .collect();
        assert_eq!(samples.len(), GROUPS * GROUP_SIZE, "{name}");
        for group in samples.chunks(GROUP_SIZE) {
            assert!(group.iter().all(|(prompt, _)| *prompt == next_prompt));
            let sum: f64 = group.iter().map(|(_, advantage)| advantage).sum();
            assert!(
                sum.abs() < 1e-9,
                "advantages of prompt {next_prompt} sum to {sum}"
            );
            next_prompt += 1;
        }
    }
}
