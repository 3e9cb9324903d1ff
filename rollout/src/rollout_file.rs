//! Rollouts on disk: one parquet file a step, one row a sample, everything training saw.
//!
//! Columns carry the names of the fields of `Sample`, `Prompt` and [`TaskColumns`]; token ids, log-probs,
//! kept tokens (CSR: `kept_offsets`, `kept_ids`) and routing (`[token][layer][k]` flattened, with
//! `routing_layers` and `routing_top_k`) are lists, so [`read`] gives back what was written. Any
//! parquet reader opens it: `python -c "import pyarrow.parquet as p; print(p.read_table('F'))"`.
//! The task's gold answer is not in the file.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Schema, SchemaRef, UInt16Type, UInt32Type,
    UInt64Type,
};
use environments::{FaultKind, Verdict};
use model::{KeptTokens, RoutingTrace, SelectionTrace};
use serde::Serialize;

use crate::error::RolloutError;
use crate::sample::{Group, Prompt, Sample};
use crate::table::{self, Rows, list_field, lists};
use crate::task_columns::TaskColumns;

mod answers;

pub use answers::{Answer, read_answers};

/// The content of a rollout file.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutFile {
    /// Training step that used the samples.
    pub step: u64,
    /// Groups, in the order written.
    pub groups: Vec<Group>,
    /// Advantage of each sample, in row order.
    pub advantages: Vec<f64>,
}

/// Writes the groups of `step` to `path`, replacing it in one move: a reader sees the old file or
/// the whole new one. `advantages` has one entry a sample, group after group.
///
/// # Errors
/// The disk refuses.
pub fn write(
    path: &Path,
    step: u64,
    groups: &[Group],
    advantages: &[f64],
) -> Result<(), RolloutError> {
    let num_samples: usize = groups.iter().map(|group| group.samples.len()).sum();
    assert_eq!(
        num_samples,
        advantages.len(),
        "one advantage a sample of the rollout"
    );
    let schema = schema();
    let mut rest = advantages;
    // A batch a group: list offsets are 32-bit, which a whole step of long samples could exceed.
    let batches = groups.iter().map(|group| {
        let (own, others) = rest.split_at(group.samples.len());
        rest = others;
        group_batch(&schema, step, group, own)
    });
    table::write(path, &schema, batches)
}

/// Reads a file that [`write()`] made. Groups without samples leave no trace in it.
///
/// # Errors
/// No such file, not parquet, or without the columns of a rollout.
pub fn read(path: &Path) -> Result<RolloutFile, RolloutError> {
    let mut content = RolloutFile {
        step: 0,
        groups: Vec::new(),
        advantages: Vec::new(),
    };
    table::read(path, |rows, row| {
        content.step = rows.number::<UInt64Type>("step", row)?;
        content
            .advantages
            .push(rows.number::<Float64Type>("advantage", row)?);
        let sample = rows.sample(row)?;
        let prompt_id = rows.number::<UInt64Type>("prompt_id", row)?;
        match content.groups.last_mut() {
            // Sample indices ascend within a group.
            Some(group)
                if group.prompt.id == prompt_id
                    && group.samples.last().is_some_and(|s| s.index < sample.index) =>
            {
                group.samples.push(sample);
            }
            _ => content.groups.push(Group {
                prompt: rows.prompt(row)?,
                samples: vec![sample],
            }),
        }
        Ok(())
    })?;
    Ok(content)
}

/// The columns, in file order.
fn schema() -> SchemaRef {
    let column = |name: &str, kind: DataType| Field::new(name, kind, false);
    let nullable = |name: &str, kind: DataType| Field::new(name, kind, true);
    let list = list_field;
    Arc::new(Schema::new(vec![
        column("step", DataType::UInt64),
        column("prompt_id", DataType::UInt64),
        column("family", DataType::Utf8),
        column("level", DataType::UInt32),
        column("split", DataType::Utf8),
        column("task_seed", DataType::UInt64),
        column("question", DataType::Utf8),
        column("sample_index", DataType::UInt64),
        column("completion", DataType::Utf8),
        nullable("reward", DataType::Float64),
        nullable("extracted", DataType::Utf8),
        nullable("invalid_reason", DataType::Utf8),
        column("advantage", DataType::Float64),
        column("finish_reason", DataType::Utf8),
        list("policy_versions", DataType::UInt64),
        list("prompt_tokens", DataType::UInt32),
        list("tokens", DataType::UInt32),
        list("sampler_logprobs", DataType::Float32),
        list("kept_offsets", DataType::UInt32),
        list("kept_ids", DataType::UInt32),
        list("routing", DataType::UInt16),
        column("routing_layers", DataType::UInt32),
        column("routing_top_k", DataType::UInt32),
    ]))
}

/// The rows of one group, columns in the order of [`schema`].
fn group_batch(schema: &SchemaRef, step: u64, group: &Group, advantages: &[f64]) -> RecordBatch {
    let (prompt, samples) = (&group.prompt, &group.samples);
    let task = TaskColumns::of(&prompt.task);
    let n = samples.len();
    let same_u64 = |value: u64| Arc::new(UInt64Array::from_value(value, n)) as ArrayRef;
    let same_text = |value: String| Arc::new(StringArray::from_iter_values(vec![value; n])) as _;
    let columns: Vec<ArrayRef> = vec![
        same_u64(step),
        same_u64(prompt.id),
        same_text(task.family),
        Arc::new(UInt32Array::from_value(task.level, n)),
        same_text(word(&task.split)),
        same_u64(task.task_seed),
        same_text(prompt.question.clone()),
        Arc::new(UInt64Array::from_iter_values(
            samples.iter().map(|s| s.index as u64),
        )),
        Arc::new(StringArray::from_iter_values(
            samples.iter().map(|s| &s.text),
        )),
        Arc::new(Float64Array::from_iter(
            samples.iter().map(|s| s.verdict.reward()),
        )),
        Arc::new(StringArray::from_iter(samples.iter().map(
            |s| match &s.verdict {
                Verdict::Graded { extracted, .. } => extracted.as_deref(),
                Verdict::Invalid { .. } => None,
            },
        ))),
        Arc::new(StringArray::from_iter(samples.iter().map(
            |s| match &s.verdict {
                Verdict::Graded { .. } => None,
                Verdict::Invalid { reason, .. } => Some(reason.as_str()),
            },
        ))),
        Arc::new(Float64Array::from_iter_values(advantages.iter().copied())),
        Arc::new(StringArray::from_iter_values(
            samples.iter().map(|s| word(&s.finish_reason)),
        )),
        lists::<UInt64Type>(samples.iter().map(|s| s.policy_versions.as_slice())),
        lists::<UInt32Type>(samples.iter().map(|_| prompt.tokens.as_slice())),
        lists::<UInt32Type>(samples.iter().map(|s| s.tokens.as_slice())),
        lists::<Float32Type>(samples.iter().map(|s| s.sampler_logprobs.as_slice())),
        lists::<UInt32Type>(samples.iter().map(|s| s.kept.offsets.as_slice())),
        lists::<UInt32Type>(samples.iter().map(|s| s.kept.ids.as_slice())),
        lists::<UInt16Type>(samples.iter().map(|s| s.routing.ids.as_slice())),
        Arc::new(UInt32Array::from_iter_values(
            samples.iter().map(|s| s.routing.num_layers as u32),
        )),
        Arc::new(UInt32Array::from_iter_values(
            samples.iter().map(|s| s.routing.top_k as u32),
        )),
    ];
    RecordBatch::try_new(schema.clone(), columns).expect("columns match the schema")
}

/// The name serde gives a unit variant.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => panic!("a unit variant serialises to a string, not {other:?}"),
    }
}

/// The types of a rollout in the rows of a batch.
impl Rows<'_> {
    fn prompt(&self, row: usize) -> Result<Prompt, RolloutError> {
        let task = TaskColumns {
            family: self.required_text("family", row)?,
            split: self.variant("split", row)?,
            level: self.number::<UInt32Type>("level", row)?,
            task_seed: self.number::<UInt64Type>("task_seed", row)?,
        };
        let task = task.key();
        Ok(Prompt {
            id: self.number::<UInt64Type>("prompt_id", row)?,
            task: task.map_err(|problem| self.malformed(format!("column 'family': {problem}")))?,
            question: self.required_text("question", row)?,
            tokens: self.list::<UInt32Type>("prompt_tokens", row)?,
        })
    }

    fn sample(&self, row: usize) -> Result<Sample, RolloutError> {
        Ok(Sample {
            index: self.number::<UInt64Type>("sample_index", row)? as usize,
            policy_versions: self.policy_versions(row)?,
            tokens: self.list::<UInt32Type>("tokens", row)?,
            sampler_logprobs: self.list::<Float32Type>("sampler_logprobs", row)?,
            kept: KeptTokens {
                offsets: self.list::<UInt32Type>("kept_offsets", row)?,
                ids: self.list::<UInt32Type>("kept_ids", row)?,
            },
            routing: RoutingTrace {
                num_layers: self.number::<UInt32Type>("routing_layers", row)? as usize,
                top_k: self.number::<UInt32Type>("routing_top_k", row)? as usize,
                ids: self.list::<UInt16Type>("routing", row)?,
            },
            selection: SelectionTrace::default(),
            finish_reason: self.variant("finish_reason", row)?,
            text: self.required_text("completion", row)?,
            verdict: self.verdict(row)?,
        })
    }

    fn policy_versions(&self, row: usize) -> Result<Vec<u64>, RolloutError> {
        if self.has("policy_versions") {
            return self.list::<UInt64Type>("policy_versions", row);
        }
        // Files of older builds name one version a sample.
        let version = self.number::<UInt64Type>("policy_version", row)?;
        Ok(vec![version; self.list::<UInt32Type>("tokens", row)?.len()])
    }

    fn verdict(&self, row: usize) -> Result<Verdict, RolloutError> {
        if let Some(reason) = self.text("invalid_reason", row)? {
            return Ok(Verdict::invalid(FaultKind::Grader, reason));
        }
        Ok(Verdict::graded(
            self.number::<Float64Type>("reward", row)?,
            self.text("extracted", row)?,
        ))
    }
}

#[cfg(test)]
mod tests;
