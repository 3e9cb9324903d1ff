//! Rows of a parquet file, read column by column and page by page below Arrow: the bytes of a text come as
//! they are, so that a row with broken UTF-8 can be named.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::error::DatasetError;
use super::fields::{COLUMNS, Field, Fields};
use super::placed_file::PlacedFile;

/// Rows decoded at once.
const BATCH_ROWS: usize = 64;

/// A parquet file whose columns are those of a dataset.
pub(crate) struct ParquetRows {
    file: PlacedFile,
    reader: SerializedFileReader<PlacedFile>,
    columns: [Option<Column>; COLUMNS.len()],
    /// Number of the first row of each row group.
    group_starts: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    index: usize,
    is_unsigned: bool,
    /// Level of a value that is not null.
    max_level: i16,
}

impl ParquetRows {
    /// # Errors
    /// No parquet file, or one without text under `prompt`, or with a column of a type that it can't have.
    pub(crate) fn open(file: &PlacedFile) -> Result<ParquetRows, DatasetError> {
        let reader = caught(file, || SerializedFileReader::new(file.clone()))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let mut columns = [None; COLUMNS.len()];
        for (index, description) in schema.columns().iter().enumerate() {
            // A nested column has more parts than its name.
            let root = &description.path().parts()[0];
            let Some(place) = COLUMNS.iter().position(|name| name == root) else {
                continue;
            };
            let column = column(index, description).map_err(|problem| DatasetError::Columns {
                path: file.path().to_path_buf(),
                problem: format!("column `{root}` {problem}"),
            })?;
            columns[place] = Some(column);
        }
        if columns[0].is_none() {
            return Err(DatasetError::Columns {
                path: file.path().to_path_buf(),
                problem: format!(
                    "there is no column `prompt`; the columns of a dataset are {}",
                    COLUMNS.join(", ")
                ),
            });
        }
        let mut next = 0;
        let group_starts = reader.metadata().row_groups().iter().map(|group| {
            let start = next;
            next += group.num_rows().max(0) as u64;
            start
        });
        Ok(ParquetRows {
            file: file.clone(),
            group_starts: group_starts.collect(),
            reader,
            columns,
        })
    }

    /// Calls `each` with every row, in order: its fields, or why it has none.
    pub(crate) fn scan(
        &self,
        mut each: impl FnMut(Result<Fields<'_>, String>) -> Result<(), DatasetError>,
    ) -> Result<(), DatasetError> {
        for group in 0..self.group_starts.len() {
            let mut left = self.num_rows(group);
            let mut columns = self.parquet(|| self.open_columns(group))?;
            while left > 0 {
                let num_rows = left.min(BATCH_ROWS as u64);
                let batch = self.parquet(|| batch(&mut columns, num_rows as usize))?;
                for row in 0..num_rows as usize {
                    each(fields(&batch, row))?;
                }
                left -= num_rows;
            }
        }
        Ok(())
    }

    /// Hands the fields of row number `row`, counted from 0, to `with`.
    pub(crate) fn read<T>(
        &self,
        row: u64,
        with: impl FnOnce(Result<Fields<'_>, String>) -> T,
    ) -> Result<T, DatasetError> {
        let group = self.group_starts.partition_point(|start| *start <= row) - 1;
        let num_before = (row - self.group_starts[group]) as usize;
        let batch = self.parquet(|| {
            let mut columns = self.open_columns(group)?;
            for (reader, _) in columns.iter_mut().flatten() {
                reader.skip(num_before)?;
            }
            batch(&mut columns, 1)
        })?;
        Ok(with(fields(&batch, 0)))
    }

    fn num_rows(&self, group: usize) -> u64 {
        self.reader.metadata().row_group(group).num_rows().max(0) as u64
    }

    fn open_columns(&self, group: usize) -> ParquetResult<OpenColumns> {
        let group: Box<dyn RowGroupReader + '_> = self.reader.get_row_group(group)?;
        let mut open: OpenColumns = Default::default();
        for (open, column) in open.iter_mut().zip(self.columns) {
            if let Some(column) = column {
                *open = Some((
                    TypedReader::of(group.get_column_reader(column.index)?)?,
                    column,
                ));
            }
        }
        Ok(open)
    }

    fn parquet<T>(&self, read: impl FnOnce() -> ParquetResult<T>) -> Result<T, DatasetError> {
        caught(&self.file, read)
    }
}

type OpenColumns = [Option<(TypedReader, Column)>; COLUMNS.len()];

/// What `read` gives. The library panics at some damages of a file; that is an error of the file too.
fn caught<T>(
    file: &PlacedFile,
    read: impl FnOnce() -> ParquetResult<T>,
) -> Result<T, DatasetError> {
    let outcome = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let text = "the file is damaged, its reader stumbled over it";
        Err(ParquetError::General(text.to_string()))
    });
    outcome.map_err(|source| DatasetError::Parquet {
        path: file.path().to_path_buf(),
        source,
    })
}

/// What is needed to read a column.
///
/// # Errors
/// A column of another type than text or integers, in words that follow its name.
fn column(index: usize, description: &ColumnDescriptor) -> Result<Column, String> {
    if description.path().parts().len() > 1 || description.max_rep_level() > 0 {
        return Err("is nested; it must hold one value a row".to_string());
    }
    let meaning = description.converted_type();
    let is_integer = matches!(
        meaning,
        ConvertedType::NONE
            | ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64
            | ConvertedType::UINT_8
            | ConvertedType::UINT_16
            | ConvertedType::UINT_32
            | ConvertedType::UINT_64
    );
    let fits = match description.physical_type() {
        Type::BYTE_ARRAY => meaning != ConvertedType::DECIMAL,
        Type::INT32 | Type::INT64 => is_integer,
        _ => false,
    };
    match fits {
        true => Ok(Column {
            index,
            is_unsigned: matches!(meaning, ConvertedType::UINT_32 | ConvertedType::UINT_64),
            max_level: description.max_def_level(),
        }),
        false => Err(format!(
            "holds {}; text or integers are wanted",
            match meaning {
                ConvertedType::NONE => description.physical_type().to_string(),
                meaning => meaning.to_string(),
            }
        )),
    }
}

/// Readers of the types that a column may have.
enum TypedReader {
    Text(ColumnReaderImpl<parquet::data_type::ByteArrayType>),
    Int32(ColumnReaderImpl<parquet::data_type::Int32Type>),
    Int64(ColumnReaderImpl<parquet::data_type::Int64Type>),
}

/// The values of a column for a few rows; `None` is null.
enum Values {
    Text(Vec<Option<ByteArray>>),
    Integers(Vec<Option<i128>>),
}

impl TypedReader {
    fn of(reader: ColumnReader) -> ParquetResult<TypedReader> {
        match reader {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(TypedReader::Text(reader)),
            ColumnReader::Int32ColumnReader(reader) => Ok(TypedReader::Int32(reader)),
            ColumnReader::Int64ColumnReader(reader) => Ok(TypedReader::Int64(reader)),
            // The schema said otherwise.
            _ => Err(ParquetError::General("a column of two types".to_string())),
        }
    }

    fn skip(&mut self, num_rows: usize) -> ParquetResult<()> {
        let skipped = match self {
            TypedReader::Text(reader) => reader.skip_records(num_rows),
            TypedReader::Int32(reader) => reader.skip_records(num_rows),
            TypedReader::Int64(reader) => reader.skip_records(num_rows),
        }?;
        check_count(skipped, num_rows)
    }

    fn read(&mut self, column: Column, num_rows: usize) -> ParquetResult<Values> {
        let level = column.max_level;
        Ok(match self {
            TypedReader::Text(reader) => Values::Text(values(reader, level, num_rows, |v| v)?),
            TypedReader::Int32(reader) => Values::Integers(values(reader, level, num_rows, |v| {
                match column.is_unsigned {
                    true => i128::from(v as u32),
                    false => i128::from(v),
                }
            })?),
            TypedReader::Int64(reader) => Values::Integers(values(reader, level, num_rows, |v| {
                match column.is_unsigned {
                    true => i128::from(v as u64),
                    false => i128::from(v),
                }
            })?),
        })
    }
}

fn check_count(found: usize, wanted: usize) -> ParquetResult<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(ParquetError::General(format!(
            "a column ends {} rows before its row group",
            wanted - found
        ))),
    }
}

/// The next values of a column, nulls put back between them.
fn values<T: DataType, V>(
    reader: &mut ColumnReaderImpl<T>,
    max_level: i16,
    num_rows: usize,
    value: impl Fn(T::T) -> V,
) -> ParquetResult<Vec<Option<V>>> {
    let (mut levels, mut found) = (Vec::new(), Vec::new());
    let mut num_read = 0;
    while num_read < num_rows {
        let (more, ..) =
            reader.read_records(num_rows - num_read, Some(&mut levels), None, &mut found)?;
        if more == 0 {
            break;
        }
        num_read += more;
    }
    check_count(num_read, num_rows)?;
    let mut found = found.into_iter().map(value);
    Ok(match max_level {
        0 => found.map(Some).collect(),
        _ => levels
            .iter()
            .map(|level| (*level == max_level).then(|| found.next()).flatten())
            .collect(),
    })
}

fn batch(
    columns: &mut OpenColumns,
    num_rows: usize,
) -> ParquetResult<[Option<Values>; COLUMNS.len()]> {
    let mut batch: [Option<Values>; COLUMNS.len()] = Default::default();
    for (values, open) in batch.iter_mut().zip(columns) {
        if let Some((reader, column)) = open {
            *values = Some(reader.read(*column, num_rows)?);
        }
    }
    Ok(batch)
}

/// Row number `row` of a batch.
///
/// # Errors
/// Text that is not UTF-8.
fn fields(batch: &[Option<Values>; COLUMNS.len()], row: usize) -> Result<Fields<'_>, String> {
    let field = |place: usize| match &batch[place] {
        None => Ok(Field::Absent),
        Some(Values::Integers(values)) => Ok(values[row].map_or(Field::Absent, Field::Integer)),
        Some(Values::Text(values)) => match &values[row] {
            None => Ok(Field::Absent),
            Some(bytes) => match std::str::from_utf8(bytes.data()) {
                Ok(text) => Ok(Field::Text(Cow::Borrowed(text))),
                Err(error) => {
                    let byte = error.valid_up_to();
                    Err(format!(
                        "`{}` is not UTF-8: its byte {} is 0x{:02x}",
                        COLUMNS[place],
                        byte + 1,
                        bytes.data()[byte]
                    ))
                }
            },
        },
    };
    Ok(Fields {
        prompt: field(0)?,
        answer: field(1)?,
        solution: field(2)?,
        id: field(3)?,
        split: field(4)?,
    })
}

#[cfg(test)]
mod tests;
