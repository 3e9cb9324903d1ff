//! One safetensors file: its header, checked once, and its tensors, read when asked for.
//!
//! Header's length (u64, little-endian), header (JSON: name -> dtype, shape, offsets), the tensors'
//! bytes. Values arrive in the f32 tensor that is returned in pieces of [`PIECE_BYTES`], so reading
//! needs no second copy of a tensor. FP8 tensors are read with their block scales, see
//! [`super::block_fp8`].

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kernels::tch::{Device, Kind, Tensor};
use kernels::tensor_bytes::write_bytes;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{io, malformed};
use crate::weights::WeightError;

/// The format's own limit; a longer header is garbage that must not be read into memory.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of a tensor in memory at once besides the tensor that they become.
const PIECE_BYTES: usize = 4 << 20;

thread_local! {
    /// What the last piece was read to. A new one for each of thousands of tensors would leave as many
    /// holes in the heap, since what a tensor leaves behind is allocated there.
    static SCRATCH: Cell<Option<Tensor>> = const { Cell::new(None) };
}

/// An open file.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl SafetensorsFile {
    /// Reads the header.
    ///
    /// # Errors
    /// Unreadable, damaged, or cut short.
    pub(super) fn open(path: PathBuf) -> Result<SafetensorsFile, WeightError> {
        let file = File::open(&path).map_err(io(&path))?;
        let file_bytes = file.metadata().map_err(io(&path))?.len();
        let too_short = |what: &str, needed: u64| {
            malformed(
                &path,
                format!(
                    "the file ends at byte {file_bytes}, {what} needs {needed}: copy or download it again"
                ),
            )
        };
        if file_bytes < 8 {
            return Err(too_short("the header's length", 8));
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(io(&path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES && length < file_bytes {
            return Err(malformed(
                &path,
                format!("a header of {length} bytes: damaged, or not a safetensors file"),
            ));
        }
        let data_start = match length.checked_add(8) {
            Some(end) if end <= file_bytes => end,
            end => return Err(too_short("the header", end.unwrap_or(u64::MAX))),
        };
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(io(&path))?;
        // Deserialising checks that the tensors' offsets fit their shapes, without gaps or overlaps.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed(&path, format!("damaged safetensors header: {error}")))?;
        let needed = data_start.saturating_add(metadata.data_len() as u64);
        if needed > file_bytes {
            return Err(too_short("its last tensor", needed));
        }
        Ok(SafetensorsFile {
            path,
            file,
            metadata,
            data_start,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// Shape of the tensor `name`.
    ///
    /// # Panics
    /// No tensor of that name.
    pub(super) fn shape(&self, name: &str) -> Vec<i64> {
        self.info(name).shape.iter().map(|&n| n as i64).collect()
    }

    /// Whether the tensor `name` holds 8-bit floats (e4m3), which mean nothing without their scales.
    ///
    /// # Panics
    /// No tensor of that name.
    pub(super) fn is_fp8(&self, name: &str) -> bool {
        self.info(name).dtype == Dtype::F8_E4M3
    }

    /// The tensor `name` as f32: of types F32, F16, BF16, or F8_E4M3 without any scale.
    ///
    /// # Errors
    /// Another type, or a file that can't be read.
    ///
    /// # Panics
    /// No tensor of that name.
    pub(super) fn read(&self, name: &str) -> Result<Tensor, WeightError> {
        let values = Tensor::empty(self.shape(name), (Kind::Float, Device::Cpu));
        self.read_into(name, &values)?;
        Ok(values)
    }

    /// Writes the tensor `name`, of a type that [`SafetensorsFile::read`] takes, to `place`: contiguous
    /// f32 of as many values.
    ///
    /// # Errors
    /// Another type, or a file that can't be read.
    ///
    /// # Panics
    /// No tensor of that name.
    pub(super) fn read_into(&self, name: &str, place: &Tensor) -> Result<(), WeightError> {
        let values = place.view([-1]);
        let size = self.kind(name)?.elt_size_in_bytes();
        self.read_pieces(name, PIECE_BYTES / size, |first, piece| {
            values.narrow(0, first, piece.numel() as i64).copy_(&piece);
        })
    }

    /// Hands out the values of `name` in order, flat, `piece_len` at a time (the last may be
    /// shorter), in the type of the file: `use_piece(index of the first value, values)`. The next piece
    /// overwrites the values: what is kept must be a copy.
    pub(super) fn read_pieces(
        &self,
        name: &str,
        piece_len: usize,
        mut use_piece: impl FnMut(i64, Tensor),
    ) -> Result<(), WeightError> {
        let kind = self.kind(name)?;
        let size = kind.elt_size_in_bytes();
        let (start, end) = self.info(name).data_offsets;
        let room = (piece_len * size).min(end - start) as i64;
        let kept = SCRATCH.take().filter(|kept| kept.numel() as i64 >= room);
        let scratch = kept.unwrap_or_else(|| Tensor::empty([room], (Kind::Uint8, Device::Cpu)));
        let mut at = start;
        while at < end {
            let len = (piece_len * size).min(end - at);
            let mut piece = scratch.narrow(0, 0, len as i64);
            write_bytes(&mut piece, |bytes| {
                self.file.read_exact_at(bytes, self.data_start + at as u64)
            })
            .map_err(io(&self.path))?;
            use_piece(
                ((at - start) / size) as i64,
                piece.view_dtype(kind).view([(len / size) as i64]),
            );
            at += len;
        }
        SCRATCH.set(Some(scratch));
        Ok(())
    }

    /// libtorch's type for that of the tensor `name`.
    fn kind(&self, name: &str) -> Result<Kind, WeightError> {
        match self.info(name).dtype {
            Dtype::F32 => Ok(Kind::Float),
            Dtype::F16 => Ok(Kind::Half),
            Dtype::BF16 => Ok(Kind::BFloat16),
            Dtype::F8_E4M3 => Ok(Kind::Float8e4m3fn),
            other => Err(malformed(
                &self.path,
                format!(
                    "tensor '{name}' is of type {other:?}; F32, F16, BF16 and F8_E4M3 are read"
                ),
            )),
        }
    }

    fn info(&self, name: &str) -> &TensorInfo {
        self.metadata
            .info(name)
            .unwrap_or_else(|| panic!("{}: no tensor '{name}'", self.path.display()))
    }
}
