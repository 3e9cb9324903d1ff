//! Tensors of a Hugging Face folder: `model.safetensors`, or shards and their index.
//!
//! Headers are read and checked when the folder is opened, a tensor when it is asked for, always as
//! f32. Where a shard holds a tensor that the index doesn't list, it counts as listed, as it does
//! for transformers. Left alone are the multi-token prediction layers behind the last decoder layer,
//! an output head that repeats the tied embedding, and RoPE tables.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use kernels::tch::{Kind, Tensor};

use super::block_fp8;
use super::config_json::{WeightFormat, read_weight_format};
use super::expected_tensors::{EMBEDDING, HEAD, expected_tensors};
use super::safetensors_file::SafetensorsFile;
use super::{io, listed, malformed};
use crate::config::ModelConfig;
use crate::weights::{WeightError, WeightSource};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An open model folder.
#[derive(Debug)]
pub struct HfFolder {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Tensor name to index of its file.
    places: BTreeMap<String, usize>,
    format: WeightFormat,
}

impl HfFolder {
    /// Reads the headers of every safetensors file of the model folder `dir`, and what its
    /// `config.json` says of the files.
    ///
    /// # Errors
    /// No safetensors files, a shard that is missing, damaged or cut short, an index that does not
    /// fit its shards, or an unknown kind of quantisation.
    pub fn open(dir: &Path) -> Result<HfFolder, WeightError> {
        let mut folder = HfFolder {
            dir: dir.to_path_buf(),
            files: Vec::new(),
            places: BTreeMap::new(),
            format: read_weight_format(dir)?,
        };
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            folder.files.push(SafetensorsFile::open(single)?);
        } else if index.exists() {
            folder.open_shards(&index)?;
        } else {
            return Err(malformed(
                dir,
                format!(
                    "holds neither {SINGLE} nor {INDEX}; weights of another kind must be saved as \
                     safetensors first"
                ),
            ));
        }
        for (i, file) in folder.files.iter().enumerate() {
            for name in file.names() {
                folder.places.entry(name).or_insert(i);
            }
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
        let mut file_of_shard: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, shard) in map {
            // A plain file name: an index must not reach outside its folder.
            let shard = shard
                .as_str()
                .filter(|shard| !shard.contains('/') && *shard != "..")
                .ok_or_else(|| {
                    let problem = format!("'weight_map': '{name}': {shard} is no file name");
                    malformed(index_path, problem)
                })?;
            let file = match file_of_shard.get(shard) {
                Some(file) => *file,
                None => {
                    let path = self.dir.join(shard);
                    if !path.exists() {
                        return Err(malformed(
                            &path,
                            format!(
                                "is missing; the index says that '{name}' is in it: copy or \
                                 download it"
                            ),
                        ));
                    }
                    self.files.push(SafetensorsFile::open(path)?);
                    file_of_shard.insert(shard, self.files.len() - 1);
                    self.files.len() - 1
                }
            };
            if !self.files[file].contains(name) {
                return Err(malformed(
                    self.files[file].path(),
                    format!("lacks tensor '{name}', which the index says is in it"),
                ));
            }
            self.places.insert(name.clone(), file);
        }
        Ok(())
    }

    /// Checks that the folder holds exactly the tensors that `config` implies, in their shapes.
    ///
    /// # Errors
    /// Missing tensors, tensors that nothing asks for, other shapes, FP8 weights without their
    /// scales: all are named, up to a sensible length. Or scales that don't fit their weight, or an
    /// output head that differs from the embedding it is tied to.
    pub fn check(&self, config: &ModelConfig) -> Result<(), WeightError> {
        let mut known = HashSet::new();
        let (mut missing, mut misshapen, mut unscaled) = (Vec::new(), Vec::new(), Vec::new());
        let mut badly_scaled = None;
        for (name, shape) in expected_tensors(config) {
            let Some(file) = self.file(&name) else {
                missing.push(format!("'{name}'"));
                continue;
            };
            let found = file.shape(&name);
            if found != shape {
                let place = file
                    .path()
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy();
                misshapen.push(format!(
                    "'{name}' in {place} has shape {found:?}, the config asks for {shape:?}"
                ));
            }
            if file.is_fp8(&name) {
                let scale = block_fp8::scale_name(&name);
                match self.file(&scale) {
                    None => unscaled.push(format!("'{name}' without '{scale}'")),
                    // The first is enough: they are wrong for one reason.
                    Some(scales) if badly_scaled.is_none() => {
                        let block = self.block_size(&name);
                        let checked = block.and_then(|b| block_fp8::check(file, &name, scales, b));
                        badly_scaled = checked.err();
                    }
                    Some(_) => {}
                }
                known.insert(scale);
            }
            known.insert(name);
        }
        let unknown = self.places.keys();
        let unknown = unknown.filter(|name| !known.contains(*name) && !self.is_idle(name, config));
        let unknown: Vec<String> = unknown.map(|name| format!("'{name}'")).collect();
        let unlisted = match missing.is_empty() {
            true => Vec::new(),
            false => self.unlisted_files()?,
        };
        let problems: Vec<String> = [
            ("missing tensors: ", missing),
            ("files that the index does not name: ", unlisted),
            ("tensors of another shape: ", misshapen),
            ("FP8 weights without their scales: ", unscaled),
            ("tensors unknown to this model type and config: ", unknown),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| what.to_string() + &listed(&names))
        .collect();
        if !problems.is_empty() {
            let advice = "download or convert the model again, or mend its config.json where that \
                          describes another model";
            return Err(malformed(
                &self.dir,
                format!("{}; {advice}", problems.join("; ")),
            ));
        }
        if let Some(error) = badly_scaled {
            return Err(error);
        }
        if config.tie_word_embeddings && self.places.contains_key(HEAD) {
            self.check_tied_head()?;
        }
        Ok(())
    }

    /// Whether the network has no use for the tensor and yet it may be there.
    fn is_idle(&self, name: &str, config: &ModelConfig) -> bool {
        let first = config.num_hidden_layers;
        let is_prediction_layer = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok())
            .is_some_and(|layer| {
                (first..first.saturating_add(self.format.num_nextn_predict_layers)).contains(&layer)
            });
        is_prediction_layer
            || (name == HEAD && config.tie_word_embeddings)
            || name.ends_with(".rotary_emb.inv_freq")
    }

    /// Safetensors files of the folder that were not opened.
    fn unlisted_files(&self) -> Result<Vec<String>, WeightError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io(&self.dir))? {
            let path = entry.map_err(io(&self.dir))?.path();
            if path.extension().is_some_and(|end| end == "safetensors")
                && !self.files.iter().any(|file| file.path() == path)
            {
                names.push(
                    path.file_name()
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned(),
                );
            }
        }
        names.sort();
        Ok(names)
    }

    /// transformers ties a head to the embedding only where both are equal, older versions always.
    fn check_tied_head(&self) -> Result<(), WeightError> {
        let (embedding, head) = (self.read(EMBEDDING)?, self.read(HEAD)?);
        if embedding == head {
            return Ok(());
        }
        Err(malformed(
            &self.dir,
            format!(
                "'tie_word_embeddings' is true, but '{HEAD}' differs from '{EMBEDDING}': remove the \
                 one that is wrong, or set 'tie_word_embeddings' to false"
            ),
        ))
    }

    fn file(&self, name: &str) -> Option<&SafetensorsFile> {
        self.places.get(name).map(|&file| &self.files[file])
    }

    fn check_shape(&self, name: &str, expected: &[i64]) -> Result<(), WeightError> {
        match self.file(name) {
            Some(file) if file.shape(name) != expected => Err(WeightError::Shape {
                path: file.path().to_path_buf(),
                name: name.to_string(),
                found: file.shape(name),
                expected: expected.to_vec(),
            }),
            _ => Ok(()),
        }
    }

    /// The tensor `name` in its own shape.
    fn read(&self, name: &str) -> Result<Tensor, WeightError> {
        let Some(file) = self.file(name) else {
            return Err(WeightError::Missing {
                path: self.dir.clone(),
                name: name.to_string(),
            });
        };
        if !file.is_fp8(name) {
            return file.read(name);
        }
        let scale = block_fp8::scale_name(name);
        let Some(scale_file) = self.file(&scale) else {
            return Err(malformed(
                file.path(),
                format!(
                    "tensor '{name}' is in FP8 (F8_E4M3), but its scales '{scale}' are missing"
                ),
            ));
        };
        block_fp8::read(file, name, scale_file, self.block_size(name)?)
    }

    /// Rows and columns that share a scale of the FP8 tensor `name`.
    fn block_size(&self, name: &str) -> Result<block_fp8::BlockSize, WeightError> {
        self.format.weight_block_size.ok_or_else(|| {
            malformed(
                &self.dir.join("config.json"),
                format!(
                    "the key 'quantization_config.weight_block_size' is missing; tensor '{name}' \
                     is in FP8: add the key as the model's release has it, [128, 128] in DeepSeek's"
                ),
            )
        })
    }
}

impl WeightSource for HfFolder {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        self.check_shape(name, shape)?;
        let tensor = self.read(name)?;
        debug_assert_eq!(tensor.kind(), Kind::Float);
        Ok(tensor)
    }

    fn read_into(&mut self, name: &str, place: &Tensor) -> Result<(), WeightError> {
        self.check_shape(name, &place.size())?;
        match self.file(name) {
            Some(file) if !file.is_fp8(name) => file.read_into(name, place),
            _ => {
                place.shallow_clone().copy_(&self.read(name)?);
                Ok(())
            }
        }
    }
}
