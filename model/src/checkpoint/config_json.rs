//! `config.json` to [`ModelConfig`] and back. The only place that knows Hugging Face's keys.
//!
//! Keys mean what transformers (4 and 5) takes them to mean, in old and new spellings. A key that
//! would change what the model computes, and that is not supported (other RoPE types, biases,
//! sliding windows, another activation), is refused by name rather than ignored.

mod experts;
mod keys;
mod rope;
#[cfg(test)]
mod tests;
mod unsupported;
mod weight_format;
mod write;

use std::path::Path;

use self::keys::Keys;
pub(super) use self::weight_format::{WeightFormat, read_weight_format};
pub(super) use self::write::{config_json, generation_config_json};
use crate::config::{
    DsaConfig, IndexerQuantization, MlaConfig, ModelConfig, ModelType, initializer_range,
};
use crate::weights::WeightError;

/// Every family there is.
pub(super) const FAMILIES: [ModelType; 8] = [
    ModelType::Llama,
    ModelType::Qwen2,
    ModelType::Qwen3,
    ModelType::Mixtral,
    ModelType::Qwen3Moe,
    ModelType::DeepseekV3,
    ModelType::DeepseekV32,
    ModelType::GlmMoeDsa,
];

/// Keys of an indexer; with one of them come all.
const INDEX_KEYS: [&str; 3] = ["index_n_heads", "index_head_dim", "index_topk"];

/// Ours: how the quantised indexer is simulated. Other tools skip it.
const INDEX_QUANTIZATION: &str = "index_quantization";

/// Reads the config of the model folder `dir`. End-of-sequence ids of `generation_config.json` and
/// `config.json` are joined.
///
/// # Errors
/// A missing or damaged file, an unknown model type, a missing key, or an unsupported feature.
pub fn read_config(dir: &Path) -> Result<ModelConfig, WeightError> {
    let keys = Keys::read(&dir.join("config.json"))?;
    let model_type = model_type(&keys)?;
    unsupported::refuse(&keys, model_type)?;
    weight_format::parse(&keys)?;
    let hidden_size = keys.size("hidden_size")?;
    let num_attention_heads = keys.size("num_attention_heads")?;
    let mla = match model_type.is_deepseek() {
        true => Some(latent_attention(&keys, model_type)?),
        false => None,
    };
    let rope = rope::read(&keys)?;
    let config = ModelConfig {
        model_type,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: keys
            .optional_size("num_key_value_heads")?
            .unwrap_or(num_attention_heads),
        head_dim: match (&mla, keys.optional_size("head_dim")?) {
            // Whatever `head_dim` says.
            (Some(mla), _) => mla.qk_rope_head_dim,
            (None, Some(head_dim)) => head_dim,
            (None, None) if model_type == ModelType::Qwen3 => 128,
            (None, None) => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
        },
        rms_norm_eps: keys.number("rms_norm_eps")?,
        initializer_range: keys
            .optional_number("initializer_range")?
            .unwrap_or_else(initializer_range),
        rope_theta: rope.theta,
        yarn: rope.yarn,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: model_type == ModelType::Qwen2,
        qk_norm: matches!(model_type, ModelType::Qwen3 | ModelType::Qwen3Moe),
        bos_token_id: keys.ids("bos_token_id")?.first().copied(),
        eos_token_ids: eos_token_ids(&keys, dir)?,
        mla,
        moe: experts::read(&keys, model_type)?,
        dsa: indexer(&keys, model_type)?,
    };
    match config.problems() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(keys.malformed(problems.join("; "))),
    }
}

fn model_type(keys: &Keys) -> Result<ModelType, WeightError> {
    let name = keys
        .text("model_type")?
        .ok_or_else(|| keys.missing("model_type"))?;
    let found = FAMILIES.into_iter().find(|family| family.name() == name);
    found.ok_or_else(|| {
        let known = FAMILIES.map(ModelType::name).join(", ");
        keys.malformed(format!(
            "model_type '{name}' is not known; {known} are: choose a model of one of these families"
        ))
    })
}

fn latent_attention(keys: &Keys, model_type: ModelType) -> Result<MlaConfig, WeightError> {
    Ok(MlaConfig {
        // The other two always have the query latent, which feeds the indexer too.
        q_lora_rank: match model_type {
            ModelType::DeepseekV3 => keys.optional_size("q_lora_rank")?,
            _ => Some(keys.size("q_lora_rank")?),
        },
        kv_lora_rank: keys.size("kv_lora_rank")?,
        qk_nope_head_dim: keys.size("qk_nope_head_dim")?,
        qk_rope_head_dim: keys.size("qk_rope_head_dim")?,
        v_head_dim: keys.size("v_head_dim")?,
        rope_interleave: keys.flag("rope_interleave")?.unwrap_or(true),
    })
}

/// The indexer of the families that have one, and what `baleen` attaches to the others.
fn indexer(keys: &Keys, model_type: ModelType) -> Result<Option<DsaConfig>, WeightError> {
    let always = matches!(model_type, ModelType::DeepseekV32 | ModelType::GlmMoeDsa);
    if !always && !INDEX_KEYS.iter().any(|key| keys.has(key)) {
        return Ok(None);
    }
    let quantization = keys.optional(INDEX_QUANTIZATION, |value| {
        serde_json::from_value::<IndexerQuantization>(value.clone()).ok()
    })?;
    Ok(Some(DsaConfig {
        index_n_heads: keys.size("index_n_heads")?,
        index_head_dim: keys.size("index_head_dim")?,
        index_topk: keys.size("index_topk")?,
        rope_interleave: model_type == ModelType::GlmMoeDsa,
        quantization,
    }))
}

fn eos_token_ids(keys: &Keys, dir: &Path) -> Result<Vec<u32>, WeightError> {
    let mut all = keys.ids("eos_token_id")?;
    let generation = dir.join("generation_config.json");
    if generation.exists() {
        for id in Keys::read(&generation)?.ids("eos_token_id")? {
            if !all.contains(&id) {
                all.push(id);
            }
        }
    }
    Ok(all)
}
