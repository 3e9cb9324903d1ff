//! Tensors on disk in the safetensors layout: 8 bytes header length (little endian), a JSON header
//! `{name: {dtype, shape, data_offsets}}`, then the data back to back.
//!
//! Written in one pass that also computes the file's BLAKE3 hash, read in chunks straight into
//! existing tensors: neither needs memory for more than a chunk. F32 and I64 only: masters, moments
//! and counters.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use kernels::tch::{self, Device, Kind, Tensor};
use rollout::crash_point;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::manifest::FileRecord;
use super::{CheckpointError, io_error};

/// Bytes copied at once between a tensor and a file; a multiple of every element size.
const CHUNK_BYTES: usize = 8 << 20;

/// Bytes handed to the operating system at once, at least.
const WRITE_BYTES: usize = 1 << 20;

/// Passes bytes on, counting and hashing them.
struct HashingWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Creates the file `name` in `folder` by `write`, and makes it durable.
///
/// # Errors
/// The file exists already, or the disk refuses.
pub(super) fn create_file(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<FileRecord, CheckpointError> {
    let path = folder.join(name);
    let attempt = || {
        let file = crash_point::Writer::new(crash_point::create(&path, true)?);
        let mut out = HashingWriter {
            // Many tensors are small; each would be a write of its own.
            inner: BufWriter::with_capacity(WRITE_BYTES, file),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        };
        write(&mut out)?;
        out.flush()?;
        crash_point::sync(out.inner.get_ref().file(), &path)?;
        Ok(FileRecord {
            name: name.to_string(),
            bytes: out.bytes,
            blake3: out.hasher.finalize().to_hex().to_string(),
        })
    };
    attempt().map_err(io_error(&path))
}

/// Creates a tensor file.
///
/// # Errors
/// A type other than f32 and i64, a name twice, or the disk refuses.
pub(super) fn create_tensor_file(
    folder: &Path,
    name: &str,
    tensors: &[(String, Tensor)],
) -> Result<FileRecord, CheckpointError> {
    let path = folder.join(name);
    let mut names = BTreeSet::new();
    for (tensor_name, tensor) in tensors {
        if dtype(tensor.kind()).is_none() {
            let problem = format!("type {:?} can't be stored, only f32 and i64", tensor.kind());
            return Err(tensor_error(&path, tensor_name, problem));
        }
        if !names.insert(tensor_name) {
            return Err(tensor_error(&path, tensor_name, "given twice".to_string()));
        }
    }
    create_file(folder, name, |out| write_tensors(out, tensors))
}

fn dtype(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Float => Some("F32"),
        Kind::Int64 => Some("I64"),
        _ => None,
    }
}

fn write_tensors(out: &mut dyn Write, tensors: &[(String, Tensor)]) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut start = 0;
    for (name, tensor) in tensors {
        let end = start + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let entry = json!({
            "dtype": dtype(tensor.kind()),
            "shape": tensor.size(),
            "data_offsets": [start, end],
        });
        header.insert(name.clone(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // Spaces keep the data aligned to 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    for (_, tensor) in tensors {
        let flat = tensor.detach().contiguous().view([-1]);
        for chunk in chunks(&flat) {
            let bytes = &mut buffer[..chunk.numel() * chunk.kind().elt_size_in_bytes()];
            chunk.copy_data_u8(bytes, chunk.numel());
            out.write_all(bytes)?;
        }
    }
    Ok(())
}

/// Views of a flat tensor of at most [`CHUNK_BYTES`] each.
fn chunks(flat: &Tensor) -> impl Iterator<Item = Tensor> + '_ {
    let step = (CHUNK_BYTES / flat.kind().elt_size_in_bytes()) as i64;
    let numel = flat.size()[0];
    (0..numel)
        .step_by(step as usize)
        .map(move |start| flat.narrow(0, start, step.min(numel - start)))
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<i64>,
    data_offsets: [u64; 2],
}

/// One tensor of a file.
struct Entry {
    name: String,
    kind: Kind,
    shape: Vec<i64>,
    /// From the start of the file.
    offset: u64,
}

/// An open tensor file.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// The file is missing, not in this layout, or shorter than its header says.
    pub(super) fn open(path: &Path) -> Result<TensorFile, CheckpointError> {
        let mut file = File::open(path).map_err(io_error(path))?;
        let length = file.metadata().map_err(io_error(path))?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(io_error(path))?;
        let header_len = u64::from_le_bytes(size);
        if header_len > length - 8 {
            return Err(damaged(path, "its header is longer than the file"));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(io_error(path))?;
        let header: Map<String, Value> = serde_json::from_slice(&header)
            .map_err(|e| damaged(path, format!("its header is not JSON: {e}")))?;
        let data_start = 8 + header_len;
        let mut entries = Vec::new();
        for (name, value) in header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
        {
            let entry: HeaderEntry = serde_json::from_value(value)
                .map_err(|e| damaged(path, format!("header of '{name}': {e}")))?;
            let kind = match entry.dtype.as_str() {
                "F32" => Kind::Float,
                "I64" => Kind::Int64,
                other => return Err(damaged(path, format!("'{name}' has type {other}"))),
            };
            let numel = entry.shape.iter().try_fold(1_u64, |product, &n| {
                product.checked_mul(u64::try_from(n).ok()?)
            });
            let [start, end] = entry.data_offsets;
            let bytes = numel.and_then(|n| n.checked_mul(kind.elt_size_in_bytes() as u64));
            if bytes != end.checked_sub(start) || end > length - data_start {
                return Err(damaged(path, format!("'{name}' has no room for its shape")));
            }
            entries.push(Entry {
                name,
                kind,
                shape: entry.shape,
                offset: data_start + start,
            });
        }
        Ok(TensorFile {
            path: path.to_path_buf(),
            file,
            entries,
        })
    }

    /// Every tensor, in file order, on the CPU.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn read_all(mut self) -> Result<Vec<(String, Tensor)>, CheckpointError> {
        let mut tensors = Vec::new();
        for entry in std::mem::take(&mut self.entries) {
            let tensor = Tensor::zeros(&entry.shape[..], (entry.kind, Device::Cpu));
            self.copy_to(&entry, &tensor)?;
            tensors.push((entry.name, tensor));
        }
        Ok(tensors)
    }

    /// Copies every tensor into the target of its name, in place.
    ///
    /// # Errors
    /// File and targets differ in names, shapes or types (then no target was touched), or the disk
    /// refuses.
    pub(super) fn copy_into(mut self, targets: &[(&str, &Tensor)]) -> Result<(), CheckpointError> {
        let entries = std::mem::take(&mut self.entries);
        let target_of = |entry: &Entry| targets.iter().find(|(name, _)| *name == entry.name);
        let missing = |name: &str| !entries.iter().any(|entry| entry.name == name);
        if let Some((name, _)) = targets.iter().find(|(name, _)| missing(name)) {
            let problem = "the model has it, the checkpoint does not".to_string();
            return Err(tensor_error(&self.path, name, problem));
        }
        let mut pairs = Vec::new();
        for entry in &entries {
            let Some((_, target)) = target_of(entry) else {
                let problem = "the checkpoint has it, the model does not".to_string();
                return Err(tensor_error(&self.path, &entry.name, problem));
            };
            if target.size() != entry.shape || target.kind() != entry.kind {
                let problem = format!(
                    "{:?} {:?} in the checkpoint, {:?} {:?} in the model",
                    entry.kind,
                    entry.shape,
                    target.kind(),
                    target.size()
                );
                return Err(tensor_error(&self.path, &entry.name, problem));
            }
            pairs.push((entry, *target));
        }
        for (entry, target) in pairs {
            self.copy_to(entry, target)?;
        }
        Ok(())
    }

    fn copy_to(&mut self, entry: &Entry, target: &Tensor) -> Result<(), CheckpointError> {
        let start = SeekFrom::Start(entry.offset);
        self.file.seek(start).map_err(io_error(&self.path))?;
        let flat = target.detach().view([-1]);
        let mut buffer = vec![0; CHUNK_BYTES.min(flat.numel() * entry.kind.elt_size_in_bytes())];
        for mut chunk in chunks(&flat) {
            let numel = chunk.numel();
            let bytes = &mut buffer[..numel * entry.kind.elt_size_in_bytes()];
            self.file.read_exact(bytes).map_err(io_error(&self.path))?;
            let values = Tensor::from_data_size(bytes, &[numel as i64], entry.kind);
            tch::no_grad(|| chunk.copy_(&values));
        }
        Ok(())
    }
}

fn damaged(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged {
        path: path.to_path_buf(),
        problem: problem.into(),
    }
}

fn tensor_error(path: &Path, name: &str, problem: String) -> CheckpointError {
    CheckpointError::Tensor {
        path: path.to_path_buf(),
        name: name.to_string(),
        problem,
    }
}

#[cfg(test)]
mod tests;
