//! `config.json` to [`ModelConfig`] and back. The only place that knows Hugging Face's keys.
//!
//! A key that would change what the model computes, and that is not supported (RoPE scaling,
//! biases, sliding windows, another activation), is refused rather than ignored.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{DsaConfig, ModelConfig, ModelType, MoeConfig, ScoringFunc};
use crate::weights::WeightError;

/// Reads the config of the model folder `dir`. End-of-sequence ids of `generation_config.json` and
/// `config.json` are joined.
///
/// # Errors
/// A missing or damaged file, an unknown model type, a missing key, or an unsupported feature.
pub fn read_config(dir: &Path) -> Result<ModelConfig, WeightError> {
    let path = dir.join("config.json");
    let keys = Keys::read(&path)?;
    let model_type = keys
        .optional("model_type", Value::as_str)?
        .unwrap_or("(none)");
    if !["llama", "mixtral"].contains(&model_type) {
        return Err(keys.malformed(format!(
            "model_type '{model_type}' is not known; llama and mixtral are"
        )));
    }
    keys.refuse_unsupported()?;
    let hidden_size = keys.size("hidden_size")?;
    let num_attention_heads = keys.size("num_attention_heads")?;
    let moe = match model_type {
        "mixtral" => Some(MoeConfig {
            scoring_func: match keys.optional("scoring_func", Value::as_str)? {
                None | Some("softmax") => ScoringFunc::Softmax,
                Some("sigmoid") => ScoringFunc::Sigmoid,
                Some(other) => {
                    return Err(keys.malformed(format!(
                        "scoring_func '{other}' is not known; softmax and sigmoid are"
                    )));
                }
            },
            ..MoeConfig::mixtral(
                keys.size("num_local_experts")?,
                keys.size("num_experts_per_tok")?,
            )
        }),
        _ => None,
    };
    let has_indexer = ["index_n_heads", "index_head_dim", "index_topk"]
        .iter()
        .any(|key| keys.get(key).is_some());
    let dsa = if has_indexer {
        Some(DsaConfig::new(
            keys.size("index_n_heads")?,
            keys.size("index_head_dim")?,
            keys.size("index_topk")?,
        ))
    } else {
        None
    };
    let mut eos_token_ids = keys.ids("eos_token_id")?;
    let generation = dir.join("generation_config.json");
    if generation.exists() {
        for id in Keys::read(&generation)?.ids("eos_token_id")? {
            if !eos_token_ids.contains(&id) {
                eos_token_ids.push(id);
            }
        }
    }
    let rope_parameters = keys.get("rope_parameters");
    let rope_theta = match rope_parameters.and_then(|rope| rope.get("rope_theta")) {
        Some(theta) => theta.as_f64(),
        None => keys.optional("rope_theta", Value::as_f64)?,
    };
    let config = ModelConfig {
        model_type: match moe {
            None => ModelType::Llama,
            Some(_) => ModelType::Mixtral,
        },
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: keys
            .optional_size("num_key_value_heads")?
            .unwrap_or(num_attention_heads),
        head_dim: match keys.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
        },
        rms_norm_eps: keys
            .optional("rms_norm_eps", Value::as_f64)?
            .ok_or_else(|| keys.missing("rms_norm_eps"))?,
        rope_theta: rope_theta.ok_or_else(|| keys.missing("rope_theta"))?,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        tie_word_embeddings: keys
            .optional("tie_word_embeddings", Value::as_bool)?
            .unwrap_or(false),
        bos_token_id: keys.ids("bos_token_id")?.first().copied(),
        eos_token_ids,
        moe,
        dsa,
        ..ModelConfig::sizeless_llama()
    };
    match config.problems() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(keys.malformed(problems.join("; "))),
    }
}

/// The `config.json` that [`read_config`] and transformers (4 and 5) read as `config`, with the
/// weights' type `dtype`.
pub(super) fn config_json(config: &ModelConfig, dtype: &str) -> Value {
    let (model_type, class) = match config.moe {
        None => ("llama", "LlamaForCausalLM"),
        Some(_) => ("mixtral", "MixtralForCausalLM"),
    };
    let mut keys = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos_json(config),
        "torch_dtype": dtype,
    });
    if let Some(moe) = &config.moe {
        keys["num_local_experts"] = json!(moe.num_experts);
        keys["num_experts_per_tok"] = json!(moe.num_experts_per_tok);
        keys["scoring_func"] = json!(moe.scoring_func);
        keys["sliding_window"] = Value::Null;
    }
    if let Some(dsa) = &config.dsa {
        keys["index_n_heads"] = json!(dsa.index_n_heads);
        keys["index_head_dim"] = json!(dsa.index_head_dim);
        keys["index_topk"] = json!(dsa.index_topk);
    }
    keys
}

/// The `generation_config.json` of `config`.
pub(super) fn generation_config_json(config: &ModelConfig) -> Value {
    json!({"bos_token_id": config.bos_token_id, "eos_token_id": eos_json(config)})
}

fn eos_json(config: &ModelConfig) -> Value {
    match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    }
}

/// A JSON object and the file it came from; `null` counts as absent.
struct Keys<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Keys<'_> {
    fn read(path: &Path) -> Result<Keys<'_>, WeightError> {
        let text = std::fs::read(path).map_err(|source| WeightError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        let map = serde_json::from_slice(&text).map_err(|error| WeightError::Malformed {
            path: path.to_path_buf(),
            problem: format!("not a JSON object: {error}"),
        })?;
        Ok(Keys { path, map })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WeightError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.malformed(format!("'{key}' can't be {value}"))),
            },
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, WeightError> {
        // No size of a model comes near 2^32; the bound keeps products of sizes from overflowing.
        self.optional(key, |value| u32::try_from(value.as_u64()?).ok())
            .map(|size| size.map(|size| size as usize))
    }

    fn size(&self, key: &str) -> Result<usize, WeightError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// One token id, a list of them, or none.
    fn ids(&self, key: &str) -> Result<Vec<u32>, WeightError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let ids = self.optional(key, |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    fn refuse_unsupported(&self) -> Result<(), WeightError> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.optional(key, Value::as_bool)? == Some(true) {
                return Err(self.malformed(format!("'{key}' is true; biases are not supported")));
            }
        }
        if let Some(act) = self.optional("hidden_act", Value::as_str)?
            && act != "silu"
        {
            return Err(self.malformed(format!("hidden_act '{act}'; only silu is supported")));
        }
        if self.get("sliding_window").is_some() {
            return Err(self.malformed("sliding_window is not supported"));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let rope = self.get(key);
            let kind = rope.and_then(|rope| rope.get("rope_type").or_else(|| rope.get("type")));
            if let Some(kind) = kind.filter(|kind| *kind != "default") {
                return Err(self.malformed(format!("{key}: RoPE of type {kind} is not supported")));
            }
        }
        Ok(())
    }

    fn missing(&self, key: &str) -> WeightError {
        self.malformed(format!("the key '{key}' is missing"))
    }

    fn malformed(&self, problem: impl Into<String>) -> WeightError {
        WeightError::Malformed {
            path: self.path.to_path_buf(),
            problem: problem.into(),
        }
    }
}
