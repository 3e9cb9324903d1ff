//! Parquet files of rows that hold lists: written whole or not at all, read row by row with typed access.
//!
//! What rollout files and the learner's files share. A column that is missing or of another type is an
//! error that names the file and the column. The file's metadata hold a seal: the BLAKE3 hash of the data before
//! them, which [`verify`] compares (reading alone finds only damage that parquet trips over).

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, ListArray, PrimitiveArray, RecordBatch,
    StringArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::SchemaDescriptor;
use serde::de::DeserializeOwned;

use crate::crash_point;
use crate::error::RolloutError;

/// Rows decoded at once when reading; long samples carry megabytes of routing each.
const READ_BATCH_ROWS: usize = 16;

/// Keys of the seal in a file's metadata: how many of its first bytes, and their hash.
const SEALED_BYTES: &str = "baleen.sealed_bytes";
const SEAL: &str = "baleen.blake3";

/// Hashes what is written to a file.
struct Sealing {
    out: crash_point::Writer,
    hasher: blake3::Hasher,
}

impl Write for Sealing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes `batches` to `path`, replacing it in one move: a reader sees the old file or the whole new one,
/// also after a power cut.
///
/// # Errors
/// The disk refuses.
pub fn write(
    path: &Path,
    schema: &SchemaRef,
    batches: impl Iterator<Item = RecordBatch>,
) -> Result<(), RolloutError> {
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
        // Nobody asks for them, and the seal would not cover them.
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .build();
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(io)?;
    let out = Sealing {
        out: crash_point::Writer::new(crash_point::create(&partial, false).map_err(io)?),
        hasher: blake3::Hasher::new(),
    };
    let mut writer =
        ArrowWriter::try_new(out, schema.clone(), Some(properties)).map_err(parquet)?;
    for batch in batches {
        writer.write(&batch).map_err(parquet)?;
    }
    writer.flush().map_err(parquet)?;
    writer.sync().map_err(|error| parquet(error.into()))?;
    let hasher = &writer.inner().hasher;
    let seal = [
        (SEALED_BYTES, hasher.count().to_string()),
        (SEAL, hasher.finalize().to_hex().to_string()),
    ];
    for (key, value) in seal {
        writer.append_key_value_metadata(KeyValue::new(key.to_string(), value));
    }
    let out = writer.into_inner().map_err(parquet)?.out;
    crash_point::sync(out.file(), &partial).map_err(io)?;
    crash_point::rename(&partial, path).map_err(io)?;
    // The rename itself is durable only once the folder is.
    crash_point::sync_folder(folder).map_err(io)
}

/// Whether the data of the file are those that its seal tells of; false where an older program wrote it, without one.
///
/// # Errors
/// No such file, not parquet, or other data.
pub fn verify(path: &Path) -> Result<bool, RolloutError> {
    let io = |source| RolloutError::Io {
        path: path.to_path_buf(),
        source,
    };
    let parquet = |source| RolloutError::Parquet {
        path: path.to_path_buf(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().map_err(io)?);
    let reader = reader.map_err(parquet)?;
    let pairs = reader.metadata().file_metadata().key_value_metadata();
    let value = |key: &str| {
        let pair = pairs?.iter().find(|pair| pair.key == key)?;
        pair.value.clone()
    };
    let (Some(bytes), Some(seal)) = (value(SEALED_BYTES), value(SEAL)) else {
        return Ok(false);
    };
    let mut hasher = blake3::Hasher::new();
    file.rewind().map_err(io)?;
    let sealed = bytes.parse().unwrap_or(u64::MAX);
    io::copy(&mut file.take(sealed), &mut hasher).map_err(io)?;
    if hasher.count() != sealed || hasher.finalize().to_hex().as_str() != seal {
        let problem = "its data are not those that were written".to_string();
        return Err(parquet(ParquetError::General(problem)));
    }
    Ok(true)
}

/// Calls `each` with every row of the file, in order.
///
/// # Errors
/// No such file, not parquet, or what `each` returns.
pub fn read(
    path: &Path,
    each: impl FnMut(&Rows, usize) -> Result<(), RolloutError>,
) -> Result<(), RolloutError> {
    read_projected(path, |_| ProjectionMask::all(), each)
}

/// As [`read`], but only `columns` are read from the disk and are there.
///
/// # Errors
/// As [`read`].
pub fn read_columns(
    path: &Path,
    columns: &[&str],
    each: impl FnMut(&Rows, usize) -> Result<(), RolloutError>,
) -> Result<(), RolloutError> {
    let project =
        |schema: &SchemaDescriptor| ProjectionMask::columns(schema, columns.iter().copied());
    read_projected(path, project, each)
}

fn read_projected(
    path: &Path,
    project: impl FnOnce(&SchemaDescriptor) -> ProjectionMask,
    mut each: impl FnMut(&Rows, usize) -> Result<(), RolloutError>,
) -> Result<(), RolloutError> {
    let parquet = |source| RolloutError::Parquet {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(|source| RolloutError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?;
    let columns = project(builder.parquet_schema());
    let reader = builder
        .with_projection(columns)
        .with_batch_size(READ_BATCH_ROWS)
        .build()
        .map_err(parquet)?;
    for batch in reader {
        let batch = batch.map_err(|error| parquet(ParquetError::from(error)))?;
        let rows = Rows { path, batch };
        for row in 0..rows.batch.num_rows() {
            each(&rows, row)?;
        }
    }
    Ok(())
}

/// A list column's field.
pub fn list_field(name: &str, item: DataType) -> Field {
    Field::new_list(name, list_item(item), false)
}

/// A list column from one slice a row.
pub fn lists<'a, T: ArrowPrimitiveType>(
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

fn list_item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", kind, false))
}

/// Typed access to the rows of a batch.
#[derive(Debug)]
pub struct Rows<'a> {
    path: &'a Path,
    batch: RecordBatch,
}

impl Rows<'_> {
    /// An error about this file.
    pub fn malformed(&self, problem: String) -> RolloutError {
        RolloutError::Malformed {
            path: self.path.to_path_buf(),
            problem,
        }
    }

    /// Whether the file has a column `name`; files of older builds may lack later ones.
    pub fn has(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    fn column<A: 'static>(&self, name: &str) -> Result<&A, RolloutError> {
        self.batch
            .column_by_name(name)
            .and_then(|column| column.as_any().downcast_ref::<A>())
            .ok_or_else(|| {
                self.malformed(format!(
                    "column '{name}' is missing or of another type; was this file made by baleen?"
                ))
            })
    }

    /// A number.
    ///
    /// # Errors
    /// No such column.
    pub fn number<T: ArrowPrimitiveType>(
        &self,
        name: &str,
        row: usize,
    ) -> Result<T::Native, RolloutError> {
        Ok(self.column::<PrimitiveArray<T>>(name)?.value(row))
    }

    /// A truth value.
    ///
    /// # Errors
    /// No such column.
    pub fn flag(&self, name: &str, row: usize) -> Result<bool, RolloutError> {
        Ok(self.column::<BooleanArray>(name)?.value(row))
    }

    /// A text, or null.
    ///
    /// # Errors
    /// No such column.
    pub fn text(&self, name: &str, row: usize) -> Result<Option<String>, RolloutError> {
        let column = self.column::<StringArray>(name)?;
        Ok(column.is_valid(row).then(|| column.value(row).to_string()))
    }

    /// A text.
    ///
    /// # Errors
    /// No such column, or null.
    pub fn required_text(&self, name: &str, row: usize) -> Result<String, RolloutError> {
        self.text(name, row)?
            .ok_or_else(|| self.malformed(format!("column '{name}' is null in a row")))
    }

    /// The unit variant that a text names.
    ///
    /// # Errors
    /// No such column, null, or a name that no variant has.
    pub fn variant<V: DeserializeOwned>(&self, name: &str, row: usize) -> Result<V, RolloutError> {
        let word = self.required_text(name, row)?;
        serde_json::from_value(serde_json::Value::String(word))
            .map_err(|error| self.malformed(format!("column '{name}': {error}")))
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// No such column.
    pub fn list<T: ArrowPrimitiveType>(
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
}
