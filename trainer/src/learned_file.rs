//! What the learner saw of each sample, on disk: one parquet file a grpo step, one row a trained sample.
//!
//! The other half of a rollout file: the log-probs that the policy and the reference gave to the sampled
//! tokens when the sample was trained, how far it had drifted, and whether the off-policy mask removed it.
//! With both files every number of the objective can be worked out again (`baleen replay` does). Samples
//! without advantage (invalid ones, groups without a learning signal and without a KL term) were not trained
//! and have no row.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema, SchemaRef, UInt64Type};
use rollout::RolloutError;
use rollout::table::{self, Rows, list_field, lists};

/// One sample as the learner met it.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedSample {
    /// Its prompt.
    pub prompt_id: u64,
    /// Its index within the group.
    pub sample_index: usize,
    /// Which of its segments, from 0.
    pub segment: usize,
    /// Which of the step's optimizer steps trained it, from 0.
    pub mini_batch: usize,
    /// Versions between the policy that drew its first token and the one that was trained.
    pub policy_age: u64,
    /// Reward minus the group's mean.
    pub advantage: f64,
    /// Strength of its KL term relative to the stage's `kl_beta`.
    pub kl_scale: f64,
    /// Share of each of its tokens in the objective, `1 / (G |o_i|) / num_groups`.
    pub token_weight: f64,
    /// mean_t(sampler_logprobs - logprobs), nats a token.
    pub drift: f64,
    /// Removed from the surrogate by the off-policy mask.
    pub is_masked: bool,
    /// Log-prob of each token under the policy being trained.
    pub logprobs: Vec<f32>,
    /// The same under the frozen reference, where there is one.
    pub ref_logprobs: Option<Vec<f32>>,
}

/// Writes the samples of `step` to `path`, replacing it in one move.
///
/// # Errors
/// The disk refuses.
pub fn write(path: &Path, step: u64, samples: &[LearnedSample]) -> Result<(), RolloutError> {
    let schema = schema();
    let batch = batch(&schema, step, samples);
    table::write(path, &schema, std::iter::once(batch))
}

/// Reads a file that [`write()`] made: its step, and the samples in the order in which they were trained.
///
/// # Errors
/// No such file, not parquet, or without these columns.
pub fn read(path: &Path) -> Result<(u64, Vec<LearnedSample>), RolloutError> {
    let (mut step, mut samples) = (0, Vec::new());
    table::read(path, |rows, row| {
        step = rows.number::<UInt64Type>("step", row)?;
        samples.push(sample(rows, row)?);
        Ok(())
    })?;
    Ok((step, samples))
}

fn schema() -> SchemaRef {
    let column = |name: &str, kind: DataType| Field::new(name, kind, false);
    Arc::new(Schema::new(vec![
        column("step", DataType::UInt64),
        column("prompt_id", DataType::UInt64),
        column("sample_index", DataType::UInt64),
        column("segment", DataType::UInt64),
        column("mini_batch", DataType::UInt64),
        column("policy_age", DataType::UInt64),
        column("advantage", DataType::Float64),
        column("kl_scale", DataType::Float64),
        column("token_weight", DataType::Float64),
        column("drift", DataType::Float64),
        column("is_masked", DataType::Boolean),
        list_field("logprobs", DataType::Float32),
        column("has_reference", DataType::Boolean),
        list_field("ref_logprobs", DataType::Float32),
    ]))
}

fn batch(schema: &SchemaRef, step: u64, samples: &[LearnedSample]) -> RecordBatch {
    let whole = |number: fn(&LearnedSample) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(samples.iter().map(number)))
    };
    let real = |number: fn(&LearnedSample) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(samples.iter().map(number)))
    };
    let flag = |flag: fn(&LearnedSample) -> bool| -> ArrayRef {
        Arc::new(BooleanArray::from_iter(
            samples.iter().map(|s| Some(flag(s))),
        ))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_value(step, samples.len())),
        whole(|s| s.prompt_id),
        whole(|s| s.sample_index as u64),
        whole(|s| s.segment as u64),
        whole(|s| s.mini_batch as u64),
        whole(|s| s.policy_age),
        real(|s| s.advantage),
        real(|s| s.kl_scale),
        real(|s| s.token_weight),
        real(|s| s.drift),
        flag(|s| s.is_masked),
        lists::<Float32Type>(samples.iter().map(|s| s.logprobs.as_slice())),
        flag(|s| s.ref_logprobs.is_some()),
        lists::<Float32Type>(
            samples
                .iter()
                .map(|s| s.ref_logprobs.as_deref().unwrap_or(&[])),
        ),
    ];
    RecordBatch::try_new(schema.clone(), columns).expect("columns match the schema")
}

fn sample(rows: &Rows, row: usize) -> Result<LearnedSample, RolloutError> {
    let whole = |name| rows.number::<UInt64Type>(name, row);
    let real = |name| rows.number::<Float64Type>(name, row);
    Ok(LearnedSample {
        prompt_id: whole("prompt_id")?,
        sample_index: whole("sample_index")? as usize,
        // Files of older builds know samples of one segment.
        segment: match rows.has("segment") {
            true => whole("segment")? as usize,
            false => 0,
        },
        mini_batch: whole("mini_batch")? as usize,
        policy_age: whole("policy_age")?,
        advantage: real("advantage")?,
        kl_scale: real("kl_scale")?,
        token_weight: real("token_weight")?,
        drift: real("drift")?,
        is_masked: rows.flag("is_masked", row)?,
        logprobs: rows.list::<Float32Type>("logprobs", row)?,
        ref_logprobs: match rows.flag("has_reference", row)? {
            true => Some(rows.list::<Float32Type>("ref_logprobs", row)?),
            false => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(prompt_id: u64, ref_logprobs: Option<Vec<f32>>) -> LearnedSample {
        LearnedSample {
            prompt_id,
            sample_index: 3,
            segment: 1,
            mini_batch: 1,
            policy_age: 2,
            advantage: -0.25,
            kl_scale: 0.5,
            token_weight: 1.0 / 24.0,
            drift: 0.125,
            is_masked: true,
            logprobs: vec![-0.1, -2.5],
            ref_logprobs,
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("learned/step-000004.parquet");
        let samples = [sample(7, Some(vec![-0.2, -2.0])), sample(u64::MAX, None)];
        write(&path, 4, &samples).expect("written");
        assert_eq!(read(&path).expect("readable"), (4, samples.to_vec()));
        // A step in which nothing was trained.
        write(&path, 5, &[]).expect("written");
        assert_eq!(read(&path).expect("readable").1, []);
    }

    #[test]
    fn another_file_is_an_error_that_names_it_and_the_column() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("step-000001.parquet");
        rollout::rollout_file::write(&path, 1, &[], &[]).expect("written");
        // Without rows there is nothing to miss a column.
        assert_eq!(read(&path).expect("readable"), (0, Vec::new()));
        std::fs::write(&path, "no parquet").expect("written");
        let error = read(&path).expect_err("not parquet").to_string();
        assert!(error.contains("step-000001.parquet"), "{error}");
    }
}
