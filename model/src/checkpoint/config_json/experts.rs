//! Experts in `config.json`: Mixtral's, Qwen3-MoE's and DeepSeek-V3's keys.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::config::{ModelConfig, ModelType, MoeConfig, ScoringFunc};
use crate::weights::WeightError;

/// The experts that the keys of a `model_type` describe; `None` for the dense families.
///
/// # Errors
/// A key that is missing or of the wrong kind, or a pattern of layers that is not supported.
pub(super) fn read(keys: &Keys, model_type: ModelType) -> Result<Option<MoeConfig>, WeightError> {
    let top_k = || keys.size("num_experts_per_tok");
    Ok(match model_type {
        ModelType::Llama | ModelType::Qwen2 | ModelType::Qwen3 => None,
        ModelType::Mixtral => Some(MoeConfig {
            scoring_func: scoring_func(keys)?,
            ..MoeConfig::mixtral(
                count(keys, &["num_local_experts", "num_experts"])?,
                top_k()?,
            )
        }),
        ModelType::Qwen3Moe => Some(MoeConfig {
            moe_intermediate_size: Some(keys.size("moe_intermediate_size")?),
            norm_topk_prob: norm_topk_prob(keys)?,
            ..MoeConfig::mixtral(
                count(keys, &["num_experts", "num_local_experts"])?,
                top_k()?,
            )
        }),
        ModelType::DeepseekV3 | ModelType::DeepseekV32 | ModelType::GlmMoeDsa => Some(MoeConfig {
            num_experts: count(
                keys,
                &["n_routed_experts", "num_local_experts", "num_experts"],
            )?,
            num_experts_per_tok: top_k()?,
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(keys.size("moe_intermediate_size")?),
            first_k_dense_replace: leading_dense_layers(keys, model_type)?,
            n_shared_experts: keys.size("n_shared_experts")?,
            n_group: keys.size("n_group")?,
            topk_group: keys.size("topk_group")?,
            norm_topk_prob: norm_topk_prob(keys)?,
            routed_scaling_factor: keys.number("routed_scaling_factor")?,
            correction_bias: true,
        }),
    })
}

/// A size that goes by several names, which must not contradict each other; an error misses the
/// first.
fn count(keys: &Keys, names: &[&str]) -> Result<usize, WeightError> {
    let mut found = None;
    for name in names {
        match (keys.optional_size(name)?, found) {
            (Some(size), Some((other, before))) if size != before => {
                let problem = format!("is {size}, but '{other}' is {before}; they mean the same");
                return Err(keys.refused(name, problem));
            }
            (Some(size), None) => found = Some((*name, size)),
            _ => {}
        }
    }
    let (_, size) = found.ok_or_else(|| keys.missing(names[0]))?;
    Ok(size)
}

/// transformers knows softmax only; sigmoid is ours.
fn scoring_func(keys: &Keys) -> Result<ScoringFunc, WeightError> {
    keys.only("scoring_func", &["softmax", "sigmoid"])?;
    Ok(match keys.text("scoring_func")? {
        Some("sigmoid") => ScoringFunc::Sigmoid,
        _ => ScoringFunc::Softmax,
    })
}

/// Absent it means true to one family and false to another: too easily wrong to be guessed.
fn norm_topk_prob(keys: &Keys) -> Result<bool, WeightError> {
    keys.required("norm_topk_prob", Value::as_bool)
}

/// `mlp_layer_types`, where the family knows it, else `first_k_dense_replace`.
fn leading_dense_layers(keys: &Keys, model_type: ModelType) -> Result<usize, WeightError> {
    let key = "mlp_layer_types";
    let types = match model_type {
        ModelType::DeepseekV3 => None,
        _ => keys.texts(key)?,
    };
    let Some(types) = types else {
        return keys.size("first_k_dense_replace");
    };
    let num_layers = keys.size("num_hidden_layers")?;
    if types.len() != num_layers {
        let problem = format!("has {} entries for {num_layers} layers", types.len());
        return Err(keys.refused(key, problem));
    }
    let num_dense = types.iter().take_while(|kind| **kind == "dense").count();
    match types[num_dense..].iter().all(|kind| *kind == "sparse") {
        true => Ok(num_dense),
        false => Err(keys.refused(key, "must be 'dense' layers followed by 'sparse' ones")),
    }
}

/// Adds the keys of the experts.
pub(super) fn write(config: &ModelConfig, keys: &mut Map<String, Value>) {
    let Some(moe) = &config.moe else { return };
    let mut add = |key: &str, value: Value| {
        keys.insert(key.to_string(), value);
    };
    add("num_experts_per_tok", json!(moe.num_experts_per_tok));
    match config.model_type {
        ModelType::Llama | ModelType::Qwen2 | ModelType::Qwen3 => {}
        ModelType::Mixtral => {
            add("num_local_experts", json!(moe.num_experts));
            add("scoring_func", json!(moe.scoring_func));
        }
        ModelType::Qwen3Moe => {
            add("num_experts", json!(moe.num_experts));
            add(
                "moe_intermediate_size",
                json!(config.expert_intermediate_size()),
            );
            add("norm_topk_prob", json!(moe.norm_topk_prob));
            add("decoder_sparse_step", json!(1));
            add("mlp_only_layers", json!([]));
        }
        ModelType::DeepseekV3 | ModelType::DeepseekV32 | ModelType::GlmMoeDsa => {
            add("n_routed_experts", json!(moe.num_experts));
            add(
                "moe_intermediate_size",
                json!(config.expert_intermediate_size()),
            );
            add("first_k_dense_replace", json!(moe.first_k_dense_replace));
            add("moe_layer_freq", json!(1));
            add("n_shared_experts", json!(moe.n_shared_experts));
            add("n_group", json!(moe.n_group));
            add("topk_group", json!(moe.topk_group));
            add("norm_topk_prob", json!(moe.norm_topk_prob));
            add("routed_scaling_factor", json!(moe.routed_scaling_factor));
            add("scoring_func", json!("sigmoid"));
            add("topk_method", json!("noaux_tc"));
        }
    }
}
