//! What can be wrong with a dataset, in words a user can act on.

use std::path::PathBuf;

use crate::task::Split;
use crate::verdict::Fault;

/// A dataset can't be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The operating system refused.
    #[error("{path}: {source}; the configuration names it as a dataset", path = path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Damaged, or no parquet file at all.
    #[error("{path} can't be read as parquet: {source}", path = path.display())]
    Parquet {
        /// File.
        path: PathBuf,
        /// Cause.
        source: parquet::errors::ParquetError,
    },
    /// Neither JSONL nor parquet by its name.
    #[error("{path}: unknown kind of file; prompts are read from .jsonl and .parquet", path = path.display())]
    Kind {
        /// File.
        path: PathBuf,
    },
    /// A parquet file without the columns of a dataset.
    #[error("{path}: {problem}", path = path.display())]
    Columns {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A row can't be used.
    #[error(
        "{path}, {place}: {problem}; mend the row, or leave out every such row with on_bad_row: skip",
        path = path.display()
    )]
    Row {
        /// File.
        path: PathBuf,
        /// `line 7`, or `row 7 (id "a")`.
        place: String,
        /// Field and what is wrong with it.
        problem: String,
    },
    /// No row of a split.
    #[error(
        "{path} has no row {} ({num_rows} rows, {skipped} of them skipped); held out are the rows of the file \
         `held_out`, else those whose column split says held_out, else about one row in four",
        match split { Split::Train => "to train on", Split::HeldOut => "that is held out" },
        path = path.display()
    )]
    Empty {
        /// File.
        path: PathBuf,
        /// The split.
        split: Split,
        /// All rows.
        num_rows: u64,
        /// Rows left out.
        skipped: u64,
    },
    /// The file is no longer what was opened.
    #[error(
        "{path} was changed while it was in use; put its old content back, then resume",
        path = path.display()
    )]
    Changed {
        /// File.
        path: PathBuf,
    },
    /// An environment outside this program did not give a task.
    #[error("{name}: {fault}")]
    External {
        /// The task asked for.
        name: String,
        /// What failed.
        fault: Fault,
    },
    /// A dataset, or a row of a split, that is not there.
    #[error("there is no {name} here")]
    Unknown {
        /// What was asked for.
        name: String,
    },
}
