//! [`ModelConfig`] to the `config.json` that transformers (4 and 5), SGLang and vLLM read.

use serde_json::{Map, Value, json};

use super::{INDEX_QUANTIZATION, experts, rope};
use crate::config::{ModelConfig, ModelType};

/// The `config.json` that [`super::read_config`] and transformers read as `config`, with the
/// weights' type `dtype`.
pub(crate) fn config_json(config: &ModelConfig, dtype: &str) -> Value {
    let mut keys = Map::new();
    let mut add = |key: &str, value: Value| {
        keys.insert(key.to_string(), value);
    };
    add("architectures", json!([architecture(config.model_type)]));
    add("model_type", json!(config.model_type.name()));
    add("vocab_size", json!(config.vocab_size));
    add("hidden_size", json!(config.hidden_size));
    add("intermediate_size", json!(config.intermediate_size));
    add("num_hidden_layers", json!(config.num_hidden_layers));
    add("num_attention_heads", json!(config.num_attention_heads));
    add("num_key_value_heads", json!(config.num_key_value_heads));
    match &config.mla {
        None => add("head_dim", json!(config.head_dim)),
        Some(mla) => {
            add("q_lora_rank", json!(mla.q_lora_rank));
            add("kv_lora_rank", json!(mla.kv_lora_rank));
            add("qk_nope_head_dim", json!(mla.qk_nope_head_dim));
            add("qk_rope_head_dim", json!(mla.qk_rope_head_dim));
            add("v_head_dim", json!(mla.v_head_dim));
            add("rope_interleave", json!(mla.rope_interleave));
            // The prediction layer is not kept.
            add("num_nextn_predict_layers", json!(0));
        }
    }
    add("hidden_act", json!("silu"));
    add("rms_norm_eps", json!(config.rms_norm_eps));
    add("initializer_range", json!(config.initializer_range));
    add(
        "max_position_embeddings",
        json!(config.max_position_embeddings),
    );
    add("attention_bias", json!(config.qkv_bias));
    add("tie_word_embeddings", json!(config.tie_word_embeddings));
    add("bos_token_id", json!(config.bos_token_id));
    add("eos_token_id", eos_json(config));
    add("torch_dtype", json!(dtype));
    match config.model_type {
        ModelType::Mixtral => add("sliding_window", Value::Null),
        ModelType::Qwen2 | ModelType::Qwen3 | ModelType::Qwen3Moe => {
            add("sliding_window", Value::Null);
            add("use_sliding_window", json!(false));
        }
        _ => {}
    }
    if let Some(dsa) = &config.dsa {
        add("index_n_heads", json!(dsa.index_n_heads));
        add("index_head_dim", json!(dsa.index_head_dim));
        add("index_topk", json!(dsa.index_topk));
        if dsa.rope_interleave {
            add("indexer_rope_interleave", json!(true));
        }
        if let Some(quantization) = &dsa.quantization {
            add(INDEX_QUANTIZATION, json!(quantization));
        }
    }
    rope::write(config, &mut keys);
    experts::write(config, &mut keys);
    Value::Object(keys)
}

/// The class that transformers makes of the config.
fn architecture(model_type: ModelType) -> &'static str {
    match model_type {
        ModelType::Llama => "LlamaForCausalLM",
        ModelType::Qwen2 => "Qwen2ForCausalLM",
        ModelType::Qwen3 => "Qwen3ForCausalLM",
        ModelType::Mixtral => "MixtralForCausalLM",
        ModelType::Qwen3Moe => "Qwen3MoeForCausalLM",
        ModelType::DeepseekV3 => "DeepseekV3ForCausalLM",
        ModelType::DeepseekV32 => "DeepseekV32ForCausalLM",
        ModelType::GlmMoeDsa => "GlmMoeDsaForCausalLM",
    }
}

/// The `generation_config.json` of `config`.
pub(crate) fn generation_config_json(config: &ModelConfig) -> Value {
    json!({"bos_token_id": config.bos_token_id, "eos_token_id": eos_json(config)})
}

fn eos_json(config: &ModelConfig) -> Value {
    match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    }
}
