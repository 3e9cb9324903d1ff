//! Keys of `config.json` that would change what the model computes in a way that is not supported:
//! refused by name, never ignored.

use super::keys::Keys;
use crate::config::ModelType;
use crate::weights::WeightError;

/// Errors where the config asks for something that the network does not compute.
///
/// # Errors
/// The first such key, with its value.
pub(super) fn refuse(keys: &Keys, model_type: ModelType) -> Result<(), WeightError> {
    keys.only("hidden_act", &["silu"])?;
    keys.only_flag("mlp_bias", false, "biases are not supported")?;
    // Qwen2 has its biases whatever this key says.
    if model_type != ModelType::Qwen2 {
        keys.only_flag("attention_bias", false, "biases are not supported")?;
    }
    refuse_windows(keys, model_type)?;
    if model_type.is_deepseek() {
        keys.only("topk_method", &["noaux_tc"])?;
        keys.only("scoring_func", &["sigmoid"])?;
        only_size(keys, "moe_layer_freq", 1, "experts in every layer")?;
    }
    match model_type {
        ModelType::DeepseekV32 | ModelType::GlmMoeDsa => {
            let is_glm = model_type == ModelType::GlmMoeDsa;
            keys.only_flag("rope_interleave", true, "this family pairs neighbours")?;
            let why = "this family's indexer can't choose";
            keys.only_flag("indexer_rope_interleave", is_glm, why)?;
            refuse_shared_selections(keys)
        }
        ModelType::DeepseekV3 => refuse_indexer(keys),
        ModelType::Qwen3Moe => {
            only_size(keys, "decoder_sparse_step", 1, "experts in every layer")?;
            match keys.optional("mlp_only_layers", serde_json::Value::as_array)? {
                Some(layers) if !layers.is_empty() => Err(keys.refused(
                    "mlp_only_layers",
                    "names layers; only experts in every layer are supported",
                )),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Attention over a window, where it would hide a key from some query.
fn refuse_windows(keys: &Keys, model_type: ModelType) -> Result<(), WeightError> {
    for kind in keys.texts("layer_types")?.unwrap_or_default() {
        // Every layer of the families with an indexer is of one of the latter two types.
        if ![
            "full_attention",
            "deepseek_sparse_attention",
            "indexed_attention",
        ]
        .contains(&kind)
        {
            let problem = format!("holds '{kind}'; only attention to all tokens is supported");
            return Err(keys.refused("layer_types", problem));
        }
    }
    let Some(window) = keys.optional_size("sliding_window")? else {
        return Ok(());
    };
    let is_qwen = matches!(
        model_type,
        ModelType::Qwen2 | ModelType::Qwen3 | ModelType::Qwen3Moe
    );
    let is_off = is_qwen && keys.flag("use_sliding_window")? != Some(true);
    // Qwen2 and Qwen3 use it in the layers that `layer_types` names, else from `max_window_layers` on.
    let is_nowhere = matches!(model_type, ModelType::Qwen2 | ModelType::Qwen3)
        && (keys.has("layer_types")
            || keys.optional_size("max_window_layers")?.unwrap_or(28)
                >= keys.size("num_hidden_layers")?);
    if is_off || is_nowhere || window >= keys.size("max_position_embeddings")? {
        return Ok(());
    }
    Err(keys.refused(
        "sliding_window",
        format!("is {window}; attention over a window is not supported"),
    ))
}

/// GLM's layers may take over the keys that another layer selected.
fn refuse_shared_selections(keys: &Keys) -> Result<(), WeightError> {
    let why = "only layers that select their own keys are supported";
    if let Some(types) = keys.texts("indexer_types")? {
        return match types.iter().all(|kind| *kind == "full") {
            true => Ok(()),
            false => Err(keys.refused("indexer_types", format!("is {types:?}; {why}"))),
        };
    }
    if keys.has("index_topk_pattern") {
        return Err(keys.refused("index_topk_pattern", format!("is present; {why}")));
    }
    only_size(keys, "index_topk_freq", 1, why)
}

/// transformers builds a deepseek_v3 without an indexer, whatever the config says.
fn refuse_indexer(keys: &Keys) -> Result<(), WeightError> {
    match super::INDEX_KEYS.iter().find(|key| keys.has(key)) {
        Some(key) => Err(keys.refused(
            key,
            "is present, but a deepseek_v3 has no indexer; the model type with one is deepseek_v32",
        )),
        None => Ok(()),
    }
}

fn only_size(keys: &Keys, key: &str, value: usize, why: &str) -> Result<(), WeightError> {
    match keys.optional_size(key)? {
        Some(found) if found != value => {
            Err(keys.refused(key, format!("is {found}; only {value} is supported: {why}")))
        }
        _ => Ok(()),
    }
}
