//! Shapes of models whose weights are random: nothing has to be downloaded to measure speed.

use model::{DsaConfig, MlaConfig, ModelConfig, ModelType, MoeConfig, ScoringFunc};

/// The shape that `name` stands for.
pub fn named(name: &str) -> Option<ModelConfig> {
    match name {
        "smollm2-135m" => Some(smollm2_135m()),
        "deepseek-v32-layer" => Some(deepseek_v32_layer()),
        "deepseek-v32-attention" => Some(deepseek_v32_attention()),
        _ => None,
    }
}

/// SmolLM2-135M.
pub fn smollm2_135m() -> ModelConfig {
    ModelConfig {
        vocab_size: 49152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 1e5,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..ModelConfig::sizeless_llama()
    }
}

/// One layer of DeepSeek-V3.2 in small: widths an eighth to a sixteenth, proportions alike. A query
/// selects 256 keys, so that a document of 16,384 is to it what one of 131,072 is to the original.
pub fn deepseek_v32_layer() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::DeepseekV32,
        vocab_size: 512,
        hidden_size: 512,
        intermediate_size: 1024,
        num_hidden_layers: 1,
        num_attention_heads: 16,
        num_key_value_heads: 16,
        head_dim: 16,
        rms_norm_eps: 1e-6,
        max_position_embeddings: 16_384,
        eos_token_ids: vec![1],
        mla: Some(MlaConfig {
            q_lora_rank: Some(128),
            kv_lora_rank: 64,
            qk_nope_head_dim: 32,
            qk_rope_head_dim: 16,
            v_head_dim: 32,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            num_experts: 8,
            num_experts_per_tok: 2,
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(256),
            first_k_dense_replace: 0,
            n_shared_experts: 1,
            n_group: 4,
            topk_group: 2,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            correction_bias: true,
        }),
        dsa: Some(DsaConfig::new(8, 32, 256)),
        ..ModelConfig::sizeless_llama()
    }
}

/// The attention of one layer of DeepSeek-V3.2 at its full widths, with a small dense feed-forward and vocabulary: no
/// checkpoint of that model type is without experts, but nothing is saved here.
pub fn deepseek_v32_attention() -> ModelConfig {
    ModelConfig {
        hidden_size: 7168,
        num_attention_heads: 128,
        num_key_value_heads: 128,
        head_dim: 64,
        max_position_embeddings: 65_536,
        mla: Some(MlaConfig {
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rope_interleave: true,
        }),
        moe: None,
        dsa: Some(DsaConfig::new(64, 128, 2048)),
        ..deepseek_v32_layer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_sound() {
        for name in ["smollm2-135m", "deepseek-v32-layer"] {
            let config = named(name).expect("a known name");
            assert_eq!(config.problems(), Vec::<String>::new(), "{name}");
        }
        let attention = named("deepseek-v32-attention").expect("a known name");
        assert_eq!(attention.problems(), ["model_type deepseek_v32 needs moe"]);
        assert_eq!(named("models/smollm2-135m"), None);
    }
}
