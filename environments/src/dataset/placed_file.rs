//! A file that any number of threads read at any place, without a shared cursor, and that must stay as it is.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::error::DatasetError;

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 16;

/// See the module. The file stays open: one that takes its name later changes nothing here.
#[derive(Clone, Debug)]
pub(crate) struct PlacedFile {
    file: Arc<File>,
    path: Arc<PathBuf>,
    stamp: Stamp,
}

/// What tells that a file was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    num_bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            num_bytes: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}

impl PlacedFile {
    pub(crate) fn open(path: &Path) -> Result<PlacedFile, DatasetError> {
        let io = |source| DatasetError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        }
        Ok(PlacedFile {
            file: Arc::new(file),
            path: Arc::new(path.to_path_buf()),
            stamp: Stamp::of(&metadata),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        self.stamp.num_bytes
    }

    pub(crate) fn io_error(&self, source: io::Error) -> DatasetError {
        let path = self.path.to_path_buf();
        DatasetError::Io { path, source }
    }

    /// Reads on from byte `offset`.
    pub(crate) fn reader_at(&self, offset: u64) -> PlacedReader {
        PlacedReader {
            file: self.file.clone(),
            offset,
        }
    }

    /// # Errors
    /// The file was written to since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<(), DatasetError> {
        let metadata = self.file.metadata().map_err(|error| self.io_error(error))?;
        match Stamp::of(&metadata) == self.stamp {
            true => Ok(()),
            false => Err(DatasetError::Changed {
                path: self.path.to_path_buf(),
            }),
        }
    }
}

/// A reader with a cursor of its own.
#[derive(Debug)]
pub(crate) struct PlacedReader {
    file: Arc<File>,
    offset: u64,
}

impl Read for PlacedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.file.read_at(buffer, self.offset)?;
        self.offset += num_bytes as u64;
        Ok(num_bytes)
    }
}

impl Length for PlacedFile {
    fn len(&self) -> u64 {
        self.stamp.num_bytes
    }
}

impl ChunkReader for PlacedFile {
    type T = BufReader<PlacedReader>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::with_capacity(
            BUFFER_BYTES,
            self.reader_at(start),
        ))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        // A damaged file may ask for more than there is, by far.
        let end = start.checked_add(length as u64);
        if end.is_none_or(|end| end > self.stamp.num_bytes) {
            let text = format!("{length} bytes at {start} lie beyond the end of the file");
            return Err(ParquetError::EOF(text));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}
