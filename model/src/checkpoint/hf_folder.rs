//! Tensors of a Hugging Face folder: `model.safetensors`, or shards and their index.
//!
//! A safetensors file is the header's length (u64, little-endian), the header (JSON: name -> dtype,
//! shape, offsets) and the tensors' bytes. Headers are read and checked once; a tensor is read when
//! asked for. F32, F16 and BF16 are read, all as f32.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kernels::tch::{Kind, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::weights::{WeightError, WeightSource};

/// The format's own limit; a longer header is garbage that must not be read into memory.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open model folder.
#[derive(Debug)]
pub struct HfFolder {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to index of its shard.
    places: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl HfFolder {
    /// Reads the headers of every safetensors file of the model folder `dir`.
    ///
    /// # Errors
    /// No safetensors files, a shard that is missing, damaged or cut short, or an index that does
    /// not fit its shards.
    pub fn open(dir: &Path) -> Result<HfFolder, WeightError> {
        let mut folder = HfFolder {
            dir: dir.to_path_buf(),
            shards: Vec::new(),
            places: BTreeMap::new(),
        };
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.exists() {
            let shard = Shard::open(single)?;
            let names = shard.metadata.offset_keys();
            folder.places = names.into_iter().map(|name| (name, 0)).collect();
            folder.shards.push(shard);
        } else if index.exists() {
            folder.open_shards(&index)?;
        } else {
            return Err(malformed(
                dir,
                "holds neither model.safetensors nor model.safetensors.index.json; weights of \
                 another kind must be saved as safetensors first",
            ));
        }
        Ok(folder)
    }

    fn open_shards(&mut self, index_path: &Path) -> Result<(), WeightError> {
        let text = std::fs::read(index_path).map_err(io(index_path))?;
        let index: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| malformed(index_path, format!("not JSON: {error}")))?;
        let map = index["weight_map"]
            .as_object()
            .ok_or_else(|| malformed(index_path, "the object 'weight_map' is missing"))?;
        let mut shard_of_file: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, file) in map {
            // A plain file name: an index must not reach outside its folder.
            let file = file
                .as_str()
                .filter(|file| !file.contains('/') && *file != "..")
                .ok_or_else(|| malformed(index_path, format!("{file} is no file name")))?;
            let shard = match shard_of_file.get(file) {
                Some(shard) => *shard,
                None => {
                    let path = self.dir.join(file);
                    if !path.exists() {
                        return Err(malformed(
                            &path,
                            format!("is missing; the index says that '{name}' is in it"),
                        ));
                    }
                    self.shards.push(Shard::open(path)?);
                    shard_of_file.insert(file, self.shards.len() - 1);
                    self.shards.len() - 1
                }
            };
            if self.shards[shard].metadata.info(name).is_none() {
                let path = &self.shards[shard].path;
                return Err(malformed(
                    path,
                    format!("lacks tensor '{name}', which the index says is in it"),
                ));
            }
            self.places.insert(name.clone(), shard);
        }
        Ok(())
    }

    /// Names of tensors that are not among `expected`, sorted.
    pub fn unknown_tensors(&self, expected: &[String]) -> Vec<String> {
        let expected: HashSet<&String> = expected.iter().collect();
        let unknown = self.places.keys().filter(|name| !expected.contains(name));
        unknown.cloned().collect()
    }
}

impl WeightSource for HfFolder {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let Some(&shard) = self.places.get(name) else {
            return Err(WeightError::Missing {
                path: self.dir.clone(),
                name: name.to_string(),
            });
        };
        self.shards[shard].tensor(name, shape)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Shard, WeightError> {
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
        Ok(Shard {
            path,
            file,
            metadata,
            data_start,
        })
    }

    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let info = self
            .metadata
            .info(name)
            .expect("open() checked that the shard holds it");
        let found: Vec<i64> = info.shape.iter().map(|&dim| dim as i64).collect();
        if found != shape {
            return Err(WeightError::Shape {
                path: self.path.clone(),
                name: name.to_string(),
                found,
                expected: shape.to_vec(),
            });
        }
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(malformed(
                    &self.path,
                    format!("tensor '{name}' is of type {other:?}; F32, F16 and BF16 are read"),
                ));
            }
        };
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .read_exact_at(&mut bytes, self.data_start + start as u64)
            .map_err(io(&self.path))?;
        Ok(Tensor::from_data_size(&bytes, shape, kind).to_kind(Kind::Float))
    }
}

fn malformed(path: &Path, problem: impl Into<String>) -> WeightError {
    WeightError::Malformed {
        path: path.to_path_buf(),
        problem: problem.into(),
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> WeightError {
    let path = path.to_path_buf();
    move |source| WeightError::Io {
        path: path.clone(),
        source,
    }
}
