//! Rollouts on disk: one parquet file a step, one row a sample, everything training saw.
//!
//! Columns carry the names of the fields of `Sample`, `Prompt` and `TaskKey`; token ids, log-probs,
//! kept tokens (CSR: `kept_offsets`, `kept_ids`) and routing (`[token][layer][k]` flattened, with
//! `routing_layers` and `routing_top_k`) are lists, so [`read`] gives back what was written. Any
//! parquet reader opens it: `python -c "import pyarrow.parquet as p; print(p.read_table('F'))"`.
//! The task's gold answer is not in the file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, Float64Array, ListArray, PrimitiveArray, RecordBatch,
    StringArray, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Schema, SchemaRef, UInt16Type, UInt32Type,
    UInt64Type,
};
use environments::{TaskKey, Verdict};
use model::{KeptTokens, RoutingTrace};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::RolloutError;
use crate::sample::{Group, Prompt, Sample};

/// Rows decoded at once when reading; long samples carry megabytes of routing each.
const READ_BATCH_ROWS: usize = 16;

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
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let io = |source| RolloutError::Io {
        path: partial.clone(),
        source,
    };
    let parquet = |source| RolloutError::Parquet {
        path: partial.clone(),
        source,
    };

    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let schema = schema();
    let file = File::create(&partial).map_err(io)?;
    let mut writer =
        ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(parquet)?;
    let mut rest = advantages;
    // A batch a group: list offsets are 32-bit, which a whole step of long samples could exceed.
    for group in groups {
        let (own, others) = rest.split_at(group.samples.len());
        let batch = group_batch(&schema, step, group, own);
        writer.write(&batch).map_err(parquet)?;
        rest = others;
    }
    let file = writer.into_inner().map_err(parquet)?;
    file.sync_all().map_err(io)?;
    fs::rename(&partial, path).map_err(io)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The rename itself is durable only once the folder is.
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)
}

/// Reads a file that [`write`] made. Groups without samples leave no trace in it.
///
/// # Errors
/// No such file, not parquet, or without the columns of a rollout.
pub fn read(path: &Path) -> Result<RolloutFile, RolloutError> {
    let parquet = |source| RolloutError::Parquet {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(|source| RolloutError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(parquet)?
        .with_batch_size(READ_BATCH_ROWS)
        .build()
        .map_err(parquet)?;
    let mut content = RolloutFile {
        step: 0,
        groups: Vec::new(),
        advantages: Vec::new(),
    };
    for batch in reader {
        let batch = batch.map_err(|error| parquet(ParquetError::from(error)))?;
        let rows = Rows { path, batch };
        for row in 0..rows.batch.num_rows() {
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
        }
    }
    Ok(content)
}

/// The columns, in file order.
fn schema() -> SchemaRef {
    let column = |name: &str, kind: DataType| Field::new(name, kind, false);
    let nullable = |name: &str, kind: DataType| Field::new(name, kind, true);
    let list = |name: &str, item: DataType| Field::new_list(name, list_item(item), false);
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
        column("policy_version", DataType::UInt64),
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

fn list_item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind, false))
}

/// The rows of one group, columns in the order of [`schema`].
fn group_batch(schema: &SchemaRef, step: u64, group: &Group, advantages: &[f64]) -> RecordBatch {
    let (prompt, samples) = (&group.prompt, &group.samples);
    let n = samples.len();
    let same_u64 = |value: u64| Arc::new(UInt64Array::from_value(value, n)) as ArrayRef;
    let same_text = |value: String| Arc::new(StringArray::from_iter_values(vec![value; n])) as _;
    let columns: Vec<ArrayRef> = vec![
        same_u64(step),
        same_u64(prompt.id),
        same_text(word(&prompt.task.family)),
        Arc::new(UInt32Array::from_value(prompt.task.level, n)),
        same_text(word(&prompt.task.split)),
        same_u64(prompt.task.seed),
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
                Verdict::Invalid { reason } => Some(reason.as_str()),
            },
        ))),
        Arc::new(Float64Array::from_iter_values(advantages.iter().copied())),
        Arc::new(StringArray::from_iter_values(
            samples.iter().map(|s| word(&s.finish_reason)),
        )),
        Arc::new(UInt64Array::from_iter_values(
            samples.iter().map(|s| s.policy_version),
        )),
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

/// A list column from one slice a row.
fn lists<'a, T: ArrowPrimitiveType>(
    rows: impl Iterator<Item = &'a [T::Native]> + Clone,
) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(rows.clone().map(<[T::Native]>::len));
    let values = PrimitiveArray::<T>::from_iter_values(rows.flatten().copied());
    Arc::new(ListArray::new(
        list_item(T::DATA_TYPE),
        offsets,
        Arc::new(values),
        None,
    ))
}

/// The name serde gives a unit variant.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => panic!("a unit variant serialises to a string, not {other:?}"),
    }
}

/// Typed access to the rows of a batch.
struct Rows<'a> {
    path: &'a Path,
    batch: RecordBatch,
}

impl Rows<'_> {
    fn malformed(&self, problem: String) -> RolloutError {
        RolloutError::Malformed {
            path: self.path.to_path_buf(),
            problem,
        }
    }

    fn column<A: 'static>(&self, name: &str) -> Result<&A, RolloutError> {
        self.batch
            .column_by_name(name)
            .and_then(|column| column.as_any().downcast_ref::<A>())
            .ok_or_else(|| {
                self.malformed(format!(
                    "column '{name}' is missing or of another type; is this a rollout file?"
                ))
            })
    }

    fn number<T: ArrowPrimitiveType>(
        &self,
        name: &str,
        row: usize,
    ) -> Result<T::Native, RolloutError> {
        Ok(self.column::<PrimitiveArray<T>>(name)?.value(row))
    }

    fn text(&self, name: &str, row: usize) -> Result<Option<String>, RolloutError> {
        let column = self.column::<StringArray>(name)?;
        Ok(column.is_valid(row).then(|| column.value(row).to_string()))
    }

    fn required_text(&self, name: &str, row: usize) -> Result<String, RolloutError> {
        self.text(name, row)?
            .ok_or_else(|| self.malformed(format!("column '{name}' is null in a row")))
    }

    fn variant<V: DeserializeOwned>(&self, name: &str, row: usize) -> Result<V, RolloutError> {
        let word = self.required_text(name, row)?;
        serde_json::from_value(serde_json::Value::String(word))
            .map_err(|error| self.malformed(format!("column '{name}': {error}")))
    }

    fn list<T: ArrowPrimitiveType>(
        &self,
        name: &str,
        row: usize,
    ) -> Result<Vec<T::Native>, RolloutError> {
        let items = self.column::<ListArray>(name)?.value(row);
        let items = items.as_any().downcast_ref::<PrimitiveArray<T>>();
        let items = items.ok_or_else(|| {
            self.malformed(format!("column '{name}' does not hold {}", T::DATA_TYPE))
        })?;
        Ok(items.values().to_vec())
    }

    fn prompt(&self, row: usize) -> Result<Prompt, RolloutError> {
        Ok(Prompt {
            id: self.number::<UInt64Type>("prompt_id", row)?,
            task: TaskKey {
                family: self.variant("family", row)?,
                split: self.variant("split", row)?,
                level: self.number::<UInt32Type>("level", row)?,
                seed: self.number::<UInt64Type>("task_seed", row)?,
            },
            question: self.required_text("question", row)?,
            tokens: self.list::<UInt32Type>("prompt_tokens", row)?,
        })
    }

    fn sample(&self, row: usize) -> Result<Sample, RolloutError> {
        Ok(Sample {
            index: self.number::<UInt64Type>("sample_index", row)? as usize,
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
            policy_version: self.number::<UInt64Type>("policy_version", row)?,
            finish_reason: self.variant("finish_reason", row)?,
            text: self.required_text("completion", row)?,
            verdict: self.verdict(row)?,
        })
    }

    fn verdict(&self, row: usize) -> Result<Verdict, RolloutError> {
        if let Some(reason) = self.text("invalid_reason", row)? {
            return Ok(Verdict::Invalid { reason });
        }
        Ok(Verdict::Graded {
            reward: self.number::<Float64Type>("reward", row)?,
            extracted: self.text("extracted", row)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use environments::{Family, Split};

    use super::*;
    use crate::sample::FinishReason;

    fn sample(index: usize, tokens: &[u32], verdict: Verdict) -> Sample {
        let mut kept = KeptTokens::default();
        for (i, &token) in tokens.iter().enumerate() {
            let row = if i % 2 == 0 {
                vec![token, token + 9]
            } else {
                vec![]
            };
            kept.push(&row);
        }
        Sample {
            index,
            tokens: tokens.to_vec(),
            sampler_logprobs: tokens.iter().map(|&t| -1.0 / t as f32).collect(),
            kept,
            routing: RoutingTrace {
                num_layers: 2,
                top_k: 3,
                ids: (0..6 * (tokens.len() as u16 + 1))
                    .map(|i| i.wrapping_mul(7919))
                    .collect(),
            },
            policy_version: 12,
            finish_reason: if index == 0 {
                FinishReason::Stop
            } else {
                FinishReason::Length
            },
            text: format!("answer {index}: \"7\"\n"),
            verdict,
        }
    }

    fn groups() -> Vec<Group> {
        let prompt = |id: u64, family, split| Prompt {
            id,
            task: TaskKey {
                family,
                split,
                level: 2,
                seed: u64::MAX - id,
            },
            question: "What is 3 + 4?".to_string(),
            tokens: vec![5, 6, 7],
        };
        let graded = |reward, extracted: Option<&str>| Verdict::Graded {
            reward,
            extracted: extracted.map(str::to_string),
        };
        let invalid = Verdict::Invalid {
            reason: "grader stopped".to_string(),
        };
        let mut dense = sample(1, &[9], graded(0.25, Some("7")));
        dense.routing = RoutingTrace::default();
        vec![
            Group {
                prompt: prompt(1, Family::Sums, Split::Train),
                samples: vec![
                    sample(0, &[3, 4, 2], graded(1.0, Some("7"))),
                    sample(1, &[8; 40], graded(0.0, None)),
                    sample(2, &[1], invalid),
                ],
            },
            Group {
                prompt: prompt(2, Family::Countdown, Split::HeldOut),
                samples: vec![sample(0, &[1, 2], graded(0.0, Some(""))), dense],
            },
        ]
    }

    #[test]
    fn read_gives_back_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.parquet");
        // Enough groups for several read batches, which cut groups in two.
        let mut written = Vec::new();
        for id in 0..8 {
            let mut groups = groups();
            groups[0].prompt.id = 2 * id;
            groups[1].prompt.id = 2 * id + 1;
            written.extend(groups);
        }
        let advantages: Vec<f64> = (0..40).map(|i| f64::from(i) / 3.0 - 5.0).collect();
        write(&path, 17, &written, &advantages).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.step, found.groups.len()), (17, 16));
        assert_eq!(found.groups, written);
        assert_eq!(found.advantages, advantages);
    }

    #[test]
    fn writing_again_replaces_the_file_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.parquet");
        write(&path, 1, &groups(), &[0.0; 5]).unwrap();
        write(&path, 2, &groups()[1..], &[0.5; 2]).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.step, found.groups), (2, groups()[1..].to_vec()));
        let files: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(files, ["step.parquet"]);
    }

    #[test]
    fn errors_name_the_file_and_the_column() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.parquet");
        let error = read(&missing).unwrap_err();
        assert!(matches!(&error, RolloutError::Io { path, .. } if *path == missing));

        let text = folder.path().join("text.parquet");
        fs::write(&text, "not parquet at all").unwrap();
        let error = read(&text).unwrap_err();
        assert!(matches!(&error, RolloutError::Parquet { path, .. } if *path == text));

        let other = folder.path().join("other.parquet");
        let column: ArrayRef = Arc::new(UInt64Array::from_iter_values([1]));
        let batch = RecordBatch::try_from_iter([("step", column)]).unwrap();
        let file = File::create(&other).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let message = read(&other).unwrap_err().to_string();
        assert!(message.contains("other.parquet"), "{message}");
        assert!(message.contains("column 'advantage'"), "{message}");

        let nowhere = folder.path().join("no/such/folder.parquet");
        let error = write(&nowhere, 1, &groups(), &[0.0; 5]).unwrap_err();
        assert!(
            error.to_string().contains("no/such/folder.parquet"),
            "{error}"
        );
    }
}
