//! The rows of a file of either kind, in order or one by one.

use std::path::Path;

use super::columns::ParquetRows;
use super::error::DatasetError;
use super::fields::Fields;
use super::index::Index;
use super::jsonl::{self, Line};
use super::placed_file::PlacedFile;

/// See the module.
pub(crate) enum Rows {
    /// A row is a line.
    Jsonl(PlacedFile),
    /// A row is a row.
    Parquet(PlacedFile, Box<ParquetRows>),
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file().fmt(f)
    }
}

/// A row on the way through a file; `None` is a blank line.
type Scanned<'a> = Option<Result<Fields<'a>, String>>;

impl Rows {
    pub(crate) fn open(path: &Path) -> Result<Rows, DatasetError> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl") => Ok(Rows::Jsonl(PlacedFile::open(path)?)),
            Some("parquet") => {
                let file = PlacedFile::open(path)?;
                let rows = Box::new(ParquetRows::open(&file)?);
                Ok(Rows::Parquet(file, rows))
            }
            _ => Err(DatasetError::Kind {
                path: path.to_path_buf(),
            }),
        }
    }

    pub(crate) fn file(&self) -> &PlacedFile {
        let (Rows::Jsonl(file) | Rows::Parquet(file, _)) = self;
        file
    }

    /// What a row of the file is called.
    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Rows::Jsonl(_) => "line",
            Rows::Parquet(..) => "row",
        }
    }

    /// Calls `each` with the offset and the fields of every row; returns the digest of the file.
    pub(crate) fn scan(
        &self,
        mut each: impl FnMut(u64, Scanned<'_>) -> Result<(), DatasetError>,
    ) -> Result<blake3::Hash, DatasetError> {
        match self {
            Rows::Jsonl(file) => jsonl::scan(file, |offset, line| each(offset, scanned(line))),
            Rows::Parquet(file, rows) => {
                let mut hasher = blake3::Hasher::new();
                let hashed = hasher.update_reader(file.reader_at(0));
                hashed.map_err(|error| file.io_error(error))?;
                rows.scan(|fields| each(0, Some(fields)))?;
                Ok(hasher.finalize())
            }
        }
    }

    /// Hands the fields of row number `row`, counted from 0, to `with`.
    pub(crate) fn read<T>(
        &self,
        row: u64,
        index: &Index,
        with: impl FnOnce(Result<Fields<'_>, String>) -> T,
    ) -> Result<T, DatasetError> {
        match self {
            Rows::Jsonl(file) => jsonl::read(file, index.position(row), |line| {
                with(scanned(line).unwrap_or_else(|| Err("the line is blank".to_string())))
            }),
            Rows::Parquet(_, rows) => rows.read(row, with),
        }
    }
}

fn scanned(line: Line<'_>) -> Scanned<'_> {
    match line {
        Line::Blank => None,
        Line::Row(fields) => Some(Ok(fields)),
        Line::Broken(problem) => Some(Err(problem)),
    }
}
