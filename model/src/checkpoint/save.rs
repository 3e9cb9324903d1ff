//! Writing a model folder that transformers, SGLang and vLLM read.
//!
//! Everything is written into a hidden folder beside the target, synced to disk, and moved into
//! place at once: whoever looks sees the old model or the new one, never half of one. Tensors are
//! written one after the other, so no second copy of the model is held in memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use kernels::tch::{Device, Kind, Tensor};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Map, Value, json};

use super::config_json::{config_json, generation_config_json};
use super::expected_tensors::CORRECTION_BIAS;
use super::{CheckpointError, io};
use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightError;

/// Writes the model folder `dir`: config, tokenizer, and `tensors` (Hugging Face names) as `kind`,
/// one of Float, BFloat16 and Half, in files of at most `max_shard_bytes` (a larger tensor gets a
/// file of its own). Correction biases stay in f32: rounded, they would choose other experts. An
/// older model there is replaced.
///
/// # Errors
/// `dir` is something else than a model folder, or can't be written. The old model stays then.
///
/// # Panics
/// Another `kind`.
pub fn save(
    dir: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    tensors: &[(String, Tensor)],
    kind: Kind,
    max_shard_bytes: usize,
) -> Result<(), CheckpointError> {
    // A link to a model folder stays a link.
    let dir = &dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    if dir.exists() && !dir.join("config.json").is_file() && !is_empty_folder(dir) {
        return Err(CheckpointError::Occupied { path: dir.clone() });
    }
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(CheckpointError::Occupied { path: dir.clone() });
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let partial = parent.join(format!(".{}.partial", name.to_string_lossy()));
    remove_folder(&partial)?; // left over where an earlier save was killed
    fs::create_dir_all(&partial).map_err(io(&partial))?;
    let written = write_model(&partial, config, tokenizer, tensors, kind, max_shard_bytes)
        .and_then(|()| Ok(sync_folder(&partial)?))
        .and_then(|()| Ok(move_into_place(&partial, dir)?));
    // After an error the new files lie there, after success the old model.
    remove_folder(&partial)?;
    written?;
    sync(parent)?;
    Ok(())
}

fn write_model(
    dir: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    tensors: &[(String, Tensor)],
    kind: Kind,
    max_shard_bytes: usize,
) -> Result<(), CheckpointError> {
    let torch_dtype = match kind {
        Kind::Float => "float32",
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        other => panic!("weights are saved as Float, BFloat16 or Half, not {other:?}"),
    };
    write_json(&dir.join("config.json"), &config_json(config, torch_dtype))?;
    let generation = dir.join("generation_config.json");
    write_json(&generation, &generation_config_json(config))?;
    tokenizer.save(dir)?;

    let num_bytes = |(name, tensor): &(String, Tensor)| {
        tensor.numel() * stored_kind(name, kind).elt_size_in_bytes()
    };
    let mut shards: Vec<&[(String, Tensor)]> = Vec::new();
    let (mut first, mut filled) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > first && filled + num_bytes(tensor) > max_shard_bytes {
            shards.push(&tensors[first..i]);
            (first, filled) = (i, 0);
        }
        filled += num_bytes(tensor);
    }
    shards.push(&tensors[first..]);

    if let [only] = shards.as_slice() {
        write_shard(&dir.join("model.safetensors"), only, kind)?;
        return Ok(());
    }
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_shard(&dir.join(&file), shard, kind)?;
        for (name, _) in *shard {
            weight_map.insert(name.clone(), json!(file));
        }
    }
    let total: usize = tensors.iter().map(num_bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_json(&dir.join("model.safetensors.index.json"), &index)?;
    Ok(())
}

/// One safetensors file; `safetensors_file.rs` tells the format.
fn write_shard(path: &Path, tensors: &[(String, Tensor)], kind: Kind) -> Result<(), WeightError> {
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut start = 0;
    for (name, tensor) in tensors {
        let kind = stored_kind(name, kind);
        let dtype = match kind {
            Kind::Float => "F32",
            Kind::BFloat16 => "BF16",
            _ => "F16",
        };
        let end = start + tensor.numel() * kind.elt_size_in_bytes();
        let entry = json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces up to a multiple of 8, so that tensors lie aligned for those who map the file.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = BufWriter::new(File::create(path).map_err(io(path))?);
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(io(path));
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    for (name, tensor) in tensors {
        let kind = stored_kind(name, kind);
        let tensor = tensor
            .detach()
            .to_device(Device::Cpu)
            .to_kind(kind)
            .contiguous();
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        write(&bytes)?;
    }
    file.flush().map_err(io(path))
}

/// The type that the tensor `name` is written in when the others are written as `kind`.
fn stored_kind(name: &str, kind: Kind) -> Kind {
    match name.ends_with(CORRECTION_BIAS) {
        true => Kind::Float,
        false => kind,
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), WeightError> {
    fs::write(path, format!("{value:#}\n")).map_err(io(path))
}

/// Makes `partial` the folder `dir`, and what was at `dir` the folder `partial`.
fn move_into_place(partial: &Path, dir: &Path) -> Result<(), WeightError> {
    if !dir.exists() {
        return fs::rename(partial, dir).map_err(io(dir));
    }
    if renameat_with(CWD, partial, CWD, dir, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    // Some network file systems can't exchange two folders. Here a crash between the two moves
    // leaves the old model under the name .NAME.replaced.
    let file_name = dir.file_name().unwrap_or_default().to_string_lossy();
    let replaced = dir.with_file_name(format!(".{file_name}.replaced"));
    remove_folder(&replaced)?;
    fs::rename(dir, &replaced).map_err(io(dir))?;
    fs::rename(partial, dir).map_err(io(dir))?;
    remove_folder(&replaced)
}

fn sync_folder(dir: &Path) -> Result<(), WeightError> {
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        sync(&entry.map_err(io(dir))?.path())?;
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), WeightError> {
    let file = File::open(path).map_err(io(path))?;
    file.sync_all().map_err(io(path))
}

fn is_empty_folder(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn remove_folder(dir: &Path) -> Result<(), WeightError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(dir)(error)),
        _ => Ok(()),
    }
}
