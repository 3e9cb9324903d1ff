//! Models on disk: folders in Hugging Face layout, read and written, and GGUF files, read.
//!
//! A folder holds `config.json`, `model.safetensors` (or shards and their index), `tokenizer.json`
//! and `tokenizer_config.json`. Families are those of [`crate::config::ModelType`]; FP8 weights in
//! blocks are read as what they stand for. An indexer attached to grouped-query attention adds the
//! config keys `index_n_heads`, `index_head_dim`, `index_topk` and the tensors
//! `model.layers.N.self_attn.indexer.{wq,wk,weights_proj,k_norm}`, which other tools skip.
//! Optimizer state and everything else of a run lies in the trainer's checkpoints.

mod block_fp8;
mod config_json;
mod expected_tensors;
mod finite;
mod hf_folder;
mod safetensors_file;
mod save;

use std::path::{Path, PathBuf};

pub use self::config_json::read_config;
pub use self::expected_tensors::expected_tensors;
pub use self::finite::{check_finite, check_finite_weights};
pub use self::hf_folder::HfFolder;
pub use self::save::save;
use crate::config::ModelConfig;
use crate::gguf::GgufFile;
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{WeightError, WeightSource};

/// Names of a kind that an error lists before it only counts them.
const MAX_LISTED: usize = 8;

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
    /// Weights that are NaN or infinite.
    #[error(
        "{path}: weights that are NaN or infinite: {tensors}; make or download the model again"
    )]
    NotFinite {
        /// Path given.
        path: PathBuf,
        /// The tensors, and where in them.
        tensors: String,
    },
    /// Weights or config.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Shape, weights and tokenizer of the model at `path`: a folder or a `.gguf` file. The tokenizer's
/// end-of-sequence token also ends completions. The tensors of a folder are those that its config
/// implies; none has been read yet.
///
/// # Errors
/// Nothing there, something else there, or a part that is missing, damaged or contradicts another.
pub fn open(
    path: &Path,
) -> Result<(ModelConfig, Box<dyn WeightSource>, Tokenizer), CheckpointError> {
    let (mut config, source, tokenizer): (_, Box<dyn WeightSource>, _) = if !path.exists() {
        let path = path.to_path_buf();
        return Err(CheckpointError::NotFound { path });
    } else if path.is_dir() && path.join("config.json").exists() {
        let config = read_config(path)?;
        let source = HfFolder::open(path)?;
        let tokenizer = Tokenizer::from_folder(path)?;
        refuse_larger_vocabulary(path, &config, &tokenizer)?;
        source.check(&config)?;
        (config, Box::new(source), tokenizer)
    } else if path.is_file() && path.extension().is_some_and(|end| end == "gguf") {
        let source = GgufFile::open(path)?;
        let (config, tokenizer) = (source.config()?, source.tokenizer()?);
        refuse_larger_vocabulary(path, &config, &tokenizer)?;
        (config, Box::new(source), tokenizer)
    } else {
        let path = path.to_path_buf();
        return Err(CheckpointError::NotAModel { path });
    };
    if let Some(eos) = tokenizer
        .eos_token()
        .and_then(|token| tokenizer.token_id(token))
        && !config.eos_token_ids.contains(&eos)
    {
        config.eos_token_ids.push(eos);
    }
    Ok((config, source, tokenizer))
}

fn refuse_larger_vocabulary(
    path: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), WeightError> {
    let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens <= rows {
        return Ok(());
    }
    let problem = format!(
        "the tokenizer has {tokens} tokens, the embedding {rows} rows: they belong to different \
         models"
    );
    Err(malformed(path, problem))
}

/// The first few of `names`, and how many more there are.
fn listed(names: &[String]) -> String {
    let mut text = names[..names.len().min(MAX_LISTED)].join(", ");
    if names.len() > MAX_LISTED {
        text += &format!(" and {} more", names.len() - MAX_LISTED);
    }
    text
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

#[cfg(test)]
mod tests;
