//! Models on disk: folders in Hugging Face layout, read and written, and GGUF files, read.
//!
//! A folder holds `config.json`, `model.safetensors` (or shards and their index), `tokenizer.json`
//! and `tokenizer_config.json`. Model types `llama` and `mixtral`; an indexer adds the config keys
//! `index_n_heads`, `index_head_dim`, `index_topk` and the tensors
//! `model.layers.N.self_attn.indexer.{wq,wk,weights_proj,k_norm}`, which other tools skip.
//! Optimizer state and everything else of a run lies in the trainer's checkpoints.

mod config_json;
mod hf_folder;
mod save;

use std::path::{Path, PathBuf};

pub use self::config_json::read_config;
pub use self::hf_folder::HfFolder;
pub use self::save::save;
use crate::config::ModelConfig;
use crate::gguf::GgufFile;
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{WeightError, WeightSource};

/// A model could not be opened or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is nothing at that path.
    #[error(
        "{path} does not exist; a model is a folder in Hugging Face layout (config.json, \
         model.safetensors, tokenizer.json) or a .gguf file. scripts/setup.sh fetches a small one \
         into models/, `baleen import` makes a folder of it"
    )]
    NotFound {
        /// Path given.
        path: PathBuf,
    },
    /// There is something else at that path.
    #[error(
        "{path} is not a model: it is neither a folder with a config.json nor a .gguf file. \
         `baleen import` makes a folder of a .gguf file"
    )]
    NotAModel {
        /// Path given.
        path: PathBuf,
    },
    /// Saving would destroy something that is no model.
    #[error(
        "{path} exists and is not a model folder (no config.json): choose another name or remove it"
    )]
    Occupied {
        /// Path given.
        path: PathBuf,
    },
    /// Weights or config.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Shape, weights and tokenizer of the model at `path`: a folder or a `.gguf` file. The tokenizer's
/// end-of-sequence token also ends completions.
///
/// # Errors
/// Nothing there, something else there, or a part that is missing or damaged.
pub fn open(
    path: &Path,
) -> Result<(ModelConfig, Box<dyn WeightSource>, Tokenizer), CheckpointError> {
    let (mut config, source, tokenizer): (_, Box<dyn WeightSource>, _) = if !path.exists() {
        let path = path.to_path_buf();
        return Err(CheckpointError::NotFound { path });
    } else if path.is_dir() && path.join("config.json").exists() {
        let source = HfFolder::open(path)?;
        (
            read_config(path)?,
            Box::new(source),
            Tokenizer::from_folder(path)?,
        )
    } else if path.is_file() && path.extension().is_some_and(|end| end == "gguf") {
        let source = GgufFile::open(path)?;
        let tokenizer = source.tokenizer()?;
        (source.config()?, Box::new(source), tokenizer)
    } else {
        let path = path.to_path_buf();
        return Err(CheckpointError::NotAModel { path });
    };
    if tokenizer.vocab_size() > config.vocab_size {
        return Err(WeightError::Malformed {
            path: path.to_path_buf(),
            problem: format!(
                "the tokenizer has {} tokens, the embedding {} rows: they belong to different models",
                tokenizer.vocab_size(),
                config.vocab_size
            ),
        }
        .into());
    }
    if let Some(eos) = tokenizer
        .eos_token()
        .and_then(|token| tokenizer.token_id(token))
        && !config.eos_token_ids.contains(&eos)
    {
        config.eos_token_ids.push(eos);
    }
    Ok((config, source, tokenizer))
}

#[cfg(test)]
#[path = "checkpoint/tests.rs"]
mod tests;
