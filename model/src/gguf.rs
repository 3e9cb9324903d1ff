//! Import of GGUF files (llama.cpp's format), architecture `llama`.
//!
//! Tensors are handed out as f32 under their Hugging Face names. llama.cpp rotates neighbouring
//! pairs (2i, 2i + 1) of a head, Hugging Face the halves (i, i + head_dim/2), so the converter
//! permuted the rows of the query and key projections; here that is undone:
//! row (i, half) of a head [head_dim/2, 2, in] -> row (half, i) [2, head_dim/2, in].
//! Left out: experts, biases, RoPE scaling and other encodings than F32, F16, Q8_0, Q4_1; a file
//! that has one of them is refused.

mod container;
mod dequantize;

use std::path::Path;

use kernels::tch::Tensor;

use self::container::{Container, Value};
use crate::config::ModelConfig;
use crate::tokenizer::{GgufVocabulary, Tokenizer, TokenizerError};
use crate::weights::{WeightError, WeightSource};

/// GGUF and Hugging Face names outside the layers, without `.weight`.
const MODEL_NAMES: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// GGUF and Hugging Face names within a layer, without `.weight`.
const LAYER_NAMES: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    container: Container,
}

impl GgufFile {
    /// Reads and checks metadata and tensor table; tensor data is read when asked for.
    ///
    /// # Errors
    /// A file that can't be read, is no GGUF file, is damaged or cut short, or holds an encoding
    /// that is not known here.
    pub fn open(path: &Path) -> Result<GgufFile, WeightError> {
        let container = Container::open(path)?;
        Ok(GgufFile { container })
    }

    /// Shape of the model.
    ///
    /// # Errors
    /// Another architecture than `llama`, or a feature that is not supported.
    pub fn config(&self) -> Result<ModelConfig, WeightError> {
        let architecture = self.text("general.architecture")?;
        if architecture != "llama" {
            return Err(self.malformed(format!(
                "architecture '{architecture}'; 'llama' is the only one read from GGUF files"
            )));
        }
        if self.optional_size("llama.expert_count")?.unwrap_or(0) > 0 {
            return Err(self.malformed(
                "a mixture of experts; import its folder in Hugging Face layout instead",
            ));
        }
        if let Some(Value::Text(scaling)) = self.value("llama.rope.scaling.type")
            && scaling != "none"
        {
            return Err(self.malformed(format!("RoPE scaling '{scaling}' is not supported")));
        }
        let hidden_size = self.size("llama.embedding_length")?;
        let num_attention_heads = self.size("llama.attention.head_count")?;
        let head_dim = match self.optional_size("llama.attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
        };
        let rotated = self.optional_size("llama.rope.dimension_count")?;
        if rotated.is_some_and(|rotated| rotated != head_dim) {
            return Err(self.malformed(format!(
                "llama.rope.dimension_count is not the head's width {head_dim}; rotating a part \
                 of a head is not supported"
            )));
        }
        let embedding = self.container.tensors.get("token_embd.weight");
        let vocab_size = match embedding.map(|entry| entry.shape.as_slice()) {
            Some([rows, _]) => *rows as usize,
            _ => {
                return Err(self.malformed("tensor 'token_embd.weight' [vocab, hidden] is missing"));
            }
        };
        let mut eos_token_ids = Vec::new();
        for key in ["eos", "eot", "eom"] {
            if let Some(id) = self.token_id(key)?
                && !eos_token_ids.contains(&id)
            {
                eos_token_ids.push(id);
            }
        }
        let config = ModelConfig {
            vocab_size,
            hidden_size,
            intermediate_size: self.size("llama.feed_forward_length")?,
            num_hidden_layers: self.size("llama.block_count")?,
            num_attention_heads,
            num_key_value_heads: self
                .optional_size("llama.attention.head_count_kv")?
                .unwrap_or(num_attention_heads),
            head_dim,
            rms_norm_eps: self
                .optional_float("llama.attention.layer_norm_rms_epsilon")?
                .unwrap_or(1e-5),
            rope_theta: self.optional_float("llama.rope.freq_base")?.unwrap_or(1e4),
            max_position_embeddings: self.size("llama.context_length")?,
            tie_word_embeddings: !self.container.tensors.contains_key("output.weight"),
            bos_token_id: self.token_id("bos")?,
            eos_token_ids,
            ..ModelConfig::sizeless_llama()
        };
        match config.problems() {
            problems if problems.is_empty() => {}
            problems => return Err(self.malformed(problems.join("; "))),
        }
        self.refuse_unknown_tensors(config.num_hidden_layers)?;
        Ok(config)
    }

    /// The tokenizer in the metadata.
    ///
    /// # Errors
    /// Another kind than byte-level BPE, an unknown pre-tokenizer, or contradictory tables.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let malformed = |error: WeightError| TokenizerError::Malformed {
            path: self.container.path.clone(),
            problem: match error {
                WeightError::Malformed { problem, .. } => problem,
                other => other.to_string(),
            },
        };
        let kind = self.text("tokenizer.ggml.model").map_err(malformed)?;
        if kind != "gpt2" {
            return Err(malformed(self.malformed(format!(
                "tokenizer '{kind}'; byte-level BPE ('gpt2') is the only one read from GGUF files"
            ))));
        }
        let texts = |key: &str| match self.value(key) {
            Some(Value::Texts(texts)) => Ok(texts.clone()),
            _ => Err(malformed(self.malformed(format!("'{key}' is missing")))),
        };
        let token_types = match self.value("tokenizer.ggml.token_type") {
            Some(Value::Integers(types)) => types.iter().map(|&t| t as i32).collect(),
            _ => Vec::new(),
        };
        let chat_template = match self.value("tokenizer.chat_template") {
            Some(Value::Text(template)) => Some(template.clone()),
            _ => None,
        };
        let vocabulary = GgufVocabulary {
            tokens: texts("tokenizer.ggml.tokens")?,
            merges: texts("tokenizer.ggml.merges")?,
            token_types,
            pre_tokenizer: self.text("tokenizer.ggml.pre").map_err(malformed)?,
            bos_token_id: self.token_id("bos").map_err(malformed)?,
            eos_token_id: self.token_id("eos").map_err(malformed)?,
            padding_token_id: self.token_id("padding").map_err(malformed)?,
            chat_template,
        };
        Tokenizer::from_gguf(vocabulary, &self.container.path)
    }

    /// A tensor that nobody asks for would change what the model computes: biases, RoPE factors.
    fn refuse_unknown_tensors(&self, num_layers: usize) -> Result<(), WeightError> {
        let mut names: Vec<&String> = self.container.tensors.keys().collect();
        names.sort();
        for name in names {
            let stem = name.strip_suffix(".weight").unwrap_or_default();
            let known = match stem
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'))
            {
                Some((layer, part)) => {
                    layer.parse().is_ok_and(|layer: usize| layer < num_layers)
                        && LAYER_NAMES.iter().any(|(gguf, _)| *gguf == part)
                }
                None => MODEL_NAMES.iter().any(|(gguf, _)| *gguf == stem),
            };
            if !known {
                return Err(self.malformed(format!(
                    "tensor '{name}' is not part of a llama model as it is supported here \
                     (no biases, no RoPE factors)"
                )));
            }
        }
        Ok(())
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.container.metadata.get(key)
    }

    fn text(&self, key: &str) -> Result<String, WeightError> {
        match self.value(key) {
            Some(Value::Text(text)) => Ok(text.clone()),
            Some(_) => Err(self.malformed(format!("'{key}' is not a text"))),
            None => Err(self.malformed(format!("'{key}' is missing"))),
        }
    }

    fn size(&self, key: &str) -> Result<usize, WeightError> {
        self.optional_size(key)?
            .ok_or_else(|| self.malformed(format!("'{key}' is missing")))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, WeightError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if (0..=i128::from(u32::MAX)).contains(n) => {
                Ok(Some(*n as usize))
            }
            Some(_) => Err(self.malformed(format!("'{key}' is not one whole number below 2^32"))),
        }
    }

    fn optional_float(&self, key: &str) -> Result<Option<f64>, WeightError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() && *x > 0.0 => Ok(Some(*x)),
            Some(_) => Err(self.malformed(format!("'{key}' is not a positive number"))),
        }
    }

    fn token_id(&self, which: &str) -> Result<Option<u32>, WeightError> {
        let id = self.optional_size(&format!("tokenizer.ggml.{which}_token_id"))?;
        Ok(id.map(|id| id as u32))
    }

    fn malformed(&self, problem: impl Into<String>) -> WeightError {
        WeightError::Malformed {
            path: self.container.path.clone(),
            problem: problem.into(),
        }
    }
}

impl WeightSource for GgufFile {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let entry = gguf_name(name).and_then(|gguf| self.container.tensors.get(&gguf));
        let Some(entry) = entry else {
            return Err(WeightError::Missing {
                path: self.container.path.clone(),
                name: name.to_string(),
            });
        };
        if entry.shape != shape {
            return Err(WeightError::Shape {
                path: self.container.path.clone(),
                name: name.to_string(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let values = entry.encoding.decode(&self.container.read(entry)?);
        let weight = Tensor::from_slice(&values).reshape(shape);
        let heads = if name.ends_with("q_proj.weight") {
            self.size("llama.attention.head_count")?
        } else if name.ends_with("k_proj.weight") {
            match self.optional_size("llama.attention.head_count_kv")? {
                Some(heads) => heads,
                None => self.size("llama.attention.head_count")?,
            }
        } else {
            return Ok(weight);
        };
        let (rows, heads) = (shape[0], heads as i64);
        if heads == 0 || shape.len() != 2 || rows % (2 * heads) != 0 {
            return Err(self.malformed(format!("'{name}' {shape:?} can't hold {heads} heads")));
        }
        Ok(weight
            .reshape([heads, rows / heads / 2, 2, shape[1]])
            .transpose(1, 2)
            .reshape(shape))
    }
}

fn gguf_name(hugging_face: &str) -> Option<String> {
    let stem = hugging_face.strip_suffix(".weight")?;
    let (prefix, part, names) = match stem.strip_prefix("model.layers.") {
        Some(rest) => {
            let (layer, part) = rest.split_once('.')?;
            (format!("blk.{layer}."), part, LAYER_NAMES.as_slice())
        }
        None => (String::new(), stem, MODEL_NAMES.as_slice()),
    };
    let (gguf, _) = names.iter().find(|(_, hf)| *hf == part)?;
    Some(format!("{prefix}{gguf}.weight"))
}

#[cfg(test)]
#[path = "gguf/tests.rs"]
mod tests;
