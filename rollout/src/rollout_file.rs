//! Rollouts on disk: one parquet file a step, one row a sample, everything training saw. A sample in which a user spoke
//! again has a row for each of its segments, numbered in the column `segment`; what is the sample's is repeated. `reward`
//! is the verdict's; where a run pays for more, `paid` is JSON of what it paid and of its parts.
//!
//! Columns carry the names of the fields of `Sample`, `Prompt` and [`TaskColumns`]; token ids, log-probs,
//! kept tokens (CSR: `kept_offsets`, `kept_ids`) and routing (`[token][layer][k]` flattened, with
//! `routing_layers` and `routing_top_k`) are lists, so [`read`] gives back what was written. Any
//! parquet reader opens it: `python -c "import pyarrow.parquet as p; print(p.read_table('F'))"`.
//! The task's gold answer is not in the file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Schema, SchemaRef, UInt16Type, UInt32Type,
    UInt64Type,
};
use environments::{FaultKind, Verdict};
use model::{KeptTokens, RoutingTrace, SelectionTrace};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::RolloutError;
use crate::generation::GeneratedSample;
use crate::sample::{Group, Prompt, Sample, Segment, SegmentView};
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
        if rows.segment(row)? > 0 {
            let sample = content
                .groups
                .last_mut()
                .and_then(|group| group.samples.last_mut());
            let Some(sample) = sample else {
                return Err(rows.malformed("it begins with a later segment".to_string()));
            };
            sample.later.push(Segment {
                prompt_tokens: rows.list::<UInt32Type>("prompt_tokens", row)?,
                completion: rows.completion(row)?,
            });
            return Ok(());
        }
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
        column("segment", DataType::UInt32),
        list("given", DataType::UInt32),
        nullable("episode", DataType::Utf8),
        nullable("verdict_details", DataType::Utf8),
        nullable("paid", DataType::Utf8),
    ]))
}

/// The rows of one group, columns in the order of [`schema`].
fn group_batch(schema: &SchemaRef, step: u64, group: &Group, advantages: &[f64]) -> RecordBatch {
    let prompt = &group.prompt;
    let task = TaskColumns::of(&prompt.task);
    let samples = group.samples.iter().zip(advantages);
    let rows: Vec<(&Sample, f64, SegmentView)> = samples
        .flat_map(|(sample, &advantage)| {
            let segments = sample.segments(prompt);
            segments.map(move |segment| (sample, advantage, segment))
        })
        .collect();
    let n = rows.len();
    let segments = || rows.iter().map(|(_, _, segment)| segment);
    let samples = || rows.iter().map(|(sample, _, _)| sample);
    let same_u64 = |value: u64| Arc::new(UInt64Array::from_value(value, n)) as ArrayRef;
    let same_text = |value: String| Arc::new(StringArray::from_iter_values(vec![value; n])) as _;
    let given: Vec<Vec<u32>> = segments()
        .map(|segment| {
            let given = segment.given.iter();
            given
                .flat_map(|given| [given.start as u32, given.end as u32])
                .collect()
        })
        .collect();
    let columns: Vec<ArrayRef> = vec![
        same_u64(step),
        same_u64(prompt.id),
        same_text(task.family),
        Arc::new(UInt32Array::from_value(task.level, n)),
        same_text(word(&task.split)),
        same_u64(task.task_seed),
        same_text(prompt.question.clone()),
        Arc::new(UInt64Array::from_iter_values(
            samples().map(|s| s.index as u64),
        )),
        Arc::new(StringArray::from_iter_values(samples().map(|s| &s.text))),
        Arc::new(Float64Array::from_iter(
            samples().map(|s| s.verdict.reward()),
        )),
        Arc::new(StringArray::from_iter(samples().map(
            |s| match &s.verdict {
                Verdict::Graded { extracted, .. } => extracted.as_deref(),
                Verdict::Invalid { .. } => None,
            },
        ))),
        Arc::new(StringArray::from_iter(samples().map(
            |s| match &s.verdict {
                Verdict::Graded { .. } => None,
                Verdict::Invalid { reason, .. } => Some(reason.as_str()),
            },
        ))),
        Arc::new(Float64Array::from_iter_values(
            rows.iter().map(|(_, advantage, _)| *advantage),
        )),
        Arc::new(StringArray::from_iter_values(
            samples().map(|s| word(&s.finish_reason)),
        )),
        lists::<UInt64Type>(segments().map(|s| s.policy_versions)),
        lists::<UInt32Type>(segments().map(|s| s.prompt_tokens)),
        lists::<UInt32Type>(segments().map(|s| s.tokens)),
        lists::<Float32Type>(segments().map(|s| s.sampler_logprobs)),
        lists::<UInt32Type>(segments().map(|s| s.kept.offsets.as_slice())),
        lists::<UInt32Type>(segments().map(|s| s.kept.ids.as_slice())),
        lists::<UInt16Type>(segments().map(|s| s.routing.ids.as_slice())),
        Arc::new(UInt32Array::from_iter_values(
            segments().map(|s| s.routing.num_layers as u32),
        )),
        Arc::new(UInt32Array::from_iter_values(
            segments().map(|s| s.routing.top_k as u32),
        )),
        Arc::new(UInt32Array::from_iter_values(
            segments().map(|s| s.number as u32),
        )),
        lists::<UInt32Type>(given.iter().map(Vec::as_slice)),
        Arc::new(StringArray::from_iter(
            samples().map(|s| s.episode.as_ref().map(json_text)),
        )),
        Arc::new(StringArray::from_iter(
            samples().map(|s| VerdictDetails::of(&s.verdict).as_ref().map(json_text)),
        )),
        Arc::new(StringArray::from_iter(
            samples().map(|s| s.paid.as_ref().map(json_text)),
        )),
    ];
    RecordBatch::try_new(schema.clone(), columns).expect("columns match the schema")
}

/// What a verdict says beyond its columns, as JSON; null where that is nothing.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct VerdictDetails {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    parts: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tamper: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<FaultKind>,
}

impl VerdictDetails {
    fn of(verdict: &Verdict) -> Option<VerdictDetails> {
        match verdict {
            Verdict::Graded { parts, tamper, .. } if parts.is_empty() && tamper.is_empty() => None,
            Verdict::Graded { parts, tamper, .. } => Some(VerdictDetails {
                parts: parts.clone(),
                tamper: tamper.clone(),
                fault: None,
            }),
            Verdict::Invalid { fault, .. } => Some(VerdictDetails {
                fault: Some(*fault),
                ..VerdictDetails::default()
            }),
        }
    }
}

fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data becomes JSON")
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

    /// 0 in files of older builds, whose samples have one segment.
    pub(super) fn segment(&self, row: usize) -> Result<u32, RolloutError> {
        match self.has("segment") {
            true => self.number::<UInt32Type>("segment", row),
            false => Ok(0),
        }
    }

    fn sample(&self, row: usize) -> Result<Sample, RolloutError> {
        let completion = self.completion(row)?;
        Ok(Sample {
            index: self.number::<UInt64Type>("sample_index", row)? as usize,
            policy_versions: completion.policy_versions,
            tokens: completion.tokens,
            sampler_logprobs: completion.sampler_logprobs,
            kept: completion.kept,
            routing: completion.routing,
            selection: completion.selection,
            finish_reason: completion.finish_reason,
            text: self.required_text("completion", row)?,
            verdict: self.verdict(row)?,
            given: completion.given,
            later: Vec::new(),
            episode: self.json("episode", row)?,
            paid: self.json("paid", row)?,
        })
    }

    fn completion(&self, row: usize) -> Result<GeneratedSample, RolloutError> {
        Ok(GeneratedSample {
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
            given: match self.has("given") {
                true => ranges(&self.list::<UInt32Type>("given", row)?),
                false => Vec::new(),
            },
        })
    }

    /// What the JSON of a column says; `None` where it is null or the file has no such column.
    fn json<T: DeserializeOwned>(&self, name: &str, row: usize) -> Result<Option<T>, RolloutError> {
        if !self.has(name) {
            return Ok(None);
        }
        let text = self.text(name, row)?;
        let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
        parsed.map_err(|error| self.malformed(format!("column '{name}': {error}")))
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
        let details: VerdictDetails = self.json("verdict_details", row)?.unwrap_or_default();
        if let Some(reason) = self.text("invalid_reason", row)? {
            return Ok(Verdict::invalid(details.fault.unwrap_or_default(), reason));
        }
        Ok(Verdict::Graded {
            reward: self.number::<Float64Type>("reward", row)?,
            extracted: self.text("extracted", row)?,
            parts: details.parts,
            tamper: details.tamper,
        })
    }
}

/// Ranges from their ends, one after the other.
fn ranges(ends: &[u32]) -> Vec<Range<usize>> {
    let pairs = ends.chunks_exact(2);
    pairs
        .map(|pair| pair[0] as usize..pair[1] as usize)
        .collect()
}

#[cfg(test)]
mod tests;
