//! Text for the stages that train on text: files, worked solutions, or the policy's own samples.
//!
//! Document number i of a stage is determined by the run's seed and i alone, so that a resumed run
//! needs only the next number.

use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, StringArray};
use model::Tokenizer;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::batch::TextDocument;
use crate::config::{RunConfig, StageConfig, TextConfig};
use crate::error::TrainerError;

/// Opens every text file that `config` names, so that a run does not find hours later that one is
/// missing.
///
/// # Errors
/// The first file that can't be opened.
pub fn check_files(config: &RunConfig) -> Result<(), TrainerError> {
    let of_stage = |stage: &'_ StageConfig| match stage {
        StageConfig::IndexerWarmup(stage)
        | StageConfig::SparseTraining(stage)
        | StageConfig::Sft(stage) => Some(stage.text.clone().unwrap_or(config.text.clone())),
        StageConfig::Grpo(_) => None,
    };
    for text in config.stages.iter().filter_map(of_stage) {
        let TextConfig::Files(files) = text else {
            continue;
        };
        for path in files.into_iter().map(PathBuf::from) {
            if let Err(error) = fs::File::open(&path) {
                let problem = format!("{error}; the configuration names it as text to train on");
                return Err(TrainerError::Text { path, problem });
            }
        }
    }
    Ok(())
}

/// Tokenised documents of a set of files, in file order.
#[derive(Debug)]
pub struct Corpus {
    documents: Vec<Vec<u32>>,
}

impl Corpus {
    /// Reads `.txt` (a document a blank-line-separated block), `.jsonl` (key `text`) and `.parquet`
    /// (column `text`); documents longer than `max_tokens` are cut into pieces of that length.
    ///
    /// # Errors
    /// A file that can't be read, has no `text`, or is of another kind; files without any document.
    pub fn read(
        paths: &[String],
        tokenizer: &Tokenizer,
        max_tokens: usize,
    ) -> Result<Corpus, TrainerError> {
        let mut documents = Vec::new();
        for path in paths.iter().map(PathBuf::from) {
            for text in read_texts(&path)? {
                let tokens = tokenizer.encode(&text);
                // A single token predicts nothing.
                documents.extend(
                    tokens
                        .chunks(max_tokens)
                        .filter(|piece| piece.len() > 1)
                        .map(<[u32]>::to_vec),
                );
            }
        }
        if documents.is_empty() {
            return Err(TrainerError::Text {
                path: paths.join(", ").into(),
                problem: "no document of two tokens or more".to_string(),
            });
        }
        Ok(Corpus { documents })
    }

    /// Document number `index`: each pass over the corpus has its own order, drawn from `seed`.
    pub fn document(&self, seed: u64, index: u64) -> TextDocument {
        let (pass, place) = (
            index / self.documents.len() as u64,
            index as usize % self.documents.len(),
        );
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&pass.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        let mut order: Vec<usize> = (0..self.documents.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
        }
        TextDocument {
            tokens: self.documents[order[place]].clone(),
            loss_from: 1,
            given: Vec::new(),
        }
    }
}

fn read_texts(path: &Path) -> Result<Vec<String>, TrainerError> {
    let fail = |problem: String| TrainerError::Text {
        path: path.to_path_buf(),
        problem,
    };
    let text = || fs::read_to_string(path).map_err(|error| fail(error.to_string()));
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt" | "md") => {
            let text = text()?;
            Ok(text
                .split("\n\n")
                .map(str::trim)
                .filter(|block| !block.is_empty())
                .map(String::from)
                .collect())
        }
        Some("jsonl") => {
            let record = |(number, line): (usize, &str)| {
                let value: serde_json::Value = serde_json::from_str(line)
                    .map_err(|error| fail(format!("line {}: {error}", number + 1)))?;
                let text = value.get("text").and_then(|text| text.as_str());
                text.map(String::from).ok_or_else(|| {
                    fail(format!(
                        "line {}: no string under the key \"text\"",
                        number + 1
                    ))
                })
            };
            text()?
                .lines()
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
                .map(record)
                .collect()
        }
        Some("parquet") => read_parquet(path).map_err(fail),
        _ => Err(fail(
            "unknown kind of file; use .txt, .md, .jsonl (key \"text\") or .parquet (column text)"
                .into(),
        )),
    }
}

fn read_parquet(path: &Path) -> Result<Vec<String>, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.build())
        .map_err(|error| error.to_string())?;
    let mut texts = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        let column = batch.column_by_name("text").ok_or("no column named text")?;
        let column = column
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or("the column text does not hold strings")?;
        texts.extend(column.iter().flatten().map(String::from));
    }
    Ok(texts)
}
