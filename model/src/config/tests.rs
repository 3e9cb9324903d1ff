use super::*;

/// DeepSeek-V3.2 as its `config.json` says.
fn v32() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::DeepseekV32,
        vocab_size: 129_280,
        hidden_size: 7168,
        intermediate_size: 18_432,
        num_hidden_layers: 61,
        num_attention_heads: 128,
        num_key_value_heads: 128,
        head_dim: 64,
        rms_norm_eps: 1e-6,
        yarn: Some(YarnConfig {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }),
        max_position_embeddings: 163_840,
        mla: Some(MlaConfig {
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(2048),
            first_k_dense_replace: 3,
            n_shared_experts: 1,
            n_group: 8,
            topk_group: 4,
            routed_scaling_factor: 2.5,
            correction_bias: true,
            ..MoeConfig::mixtral(256, 8)
        }),
        dsa: Some(DsaConfig::new(64, 128, 2048)),
        ..ModelConfig::sizeless_llama()
    }
}

fn llama() -> ModelConfig {
    ModelConfig {
        vocab_size: 96,
        hidden_size: 32,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 64,
        ..ModelConfig::sizeless_llama()
    }
}

/// The problems of `config` after `change`, joined.
fn problems(mut config: ModelConfig, change: impl FnOnce(&mut ModelConfig)) -> String {
    assert_eq!(config.problems(), Vec::<String>::new());
    change(&mut config);
    config.problems().join("; ")
}

#[test]
fn softmax_scale_of_v32_holds_the_squared_yarn_magnitude() {
    assert!((v32().softmax_scale() - 0.135_233_778_860_880_1).abs() < 1e-15);
    let plain = ModelConfig {
        yarn: None,
        ..v32()
    };
    assert!((plain.softmax_scale() - 0.072_168_783_648_703_2).abs() < 1e-15);
    // YaRN without MLA leaves the scale alone and turns up cosine and sine: 0.1 ln 40 + 1.
    let yarn = v32().yarn.map(|yarn| YarnConfig {
        mscale: 0.0,
        mscale_all_dim: 0.0,
        ..yarn
    });
    assert!((yarn.as_ref().unwrap().rotation_factor() - 1.368_887_945_411_394).abs() < 1e-12);
    let stretched = ModelConfig { yarn, ..llama() };
    assert_eq!(stretched.softmax_scale(), 8f64.powf(-0.5));
    assert_eq!(v32().yarn.unwrap().rotation_factor(), 1.0);
}

#[test]
fn parameters_of_v32_are_those_of_its_checkpoint() {
    let config = v32();
    assert_eq!(config.indexer_parameters(), 13_959_424);
    // q_a 1536x7168, its norm, q_b 24576x1536, kv_a 576x7168, its norm, kv_b 32768x512, o 7168x16384.
    let attention = 11_010_048 + 1536 + 37_748_736 + 4_128_768 + 512 + 16_777_216 + 117_440_512;
    assert_eq!(config.attention_parameters(), attention);
    // 257 experts of 3x2048x7168, gate 256x7168 and its bias.
    assert_eq!(config.moe_parameters(), 257 * 44_040_192 + 1_835_008 + 256);
    let layers = 61 * (attention + 13_959_424 + 2 * 7168);
    let feed_forward = 3 * 396_361_728 + 58 * config.moe_parameters();
    let embeddings = 2 * 926_679_040 + 7168;
    assert_eq!(config.num_parameters(), layers + feed_forward + embeddings);
    assert_eq!(config.num_moe_layers(), 58);
    assert!(config.layer_moe(2).is_none() && config.layer_moe(3).is_some());
}

#[test]
fn biases_and_head_norms_count() {
    let plain = llama().num_parameters();
    let qwen2 = ModelConfig {
        model_type: ModelType::Qwen2,
        qkv_bias: true,
        ..llama()
    };
    // Biases of 4 + 2 + 2 heads of 8 in two layers; two norms of 8 in two layers.
    assert_eq!(qwen2.num_parameters(), plain + 2 * 64);
    let qwen3 = ModelConfig {
        model_type: ModelType::Qwen3,
        qk_norm: true,
        ..llama()
    };
    assert_eq!(qwen3.num_parameters(), plain + 2 * 16);
    for config in [qwen2, qwen3, v32()] {
        assert_eq!(config.problems(), Vec::<String>::new());
    }
}

#[test]
fn configs_from_before_the_families_still_load() {
    let llama_json = serde_json::json!({
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": false,
        "bos_token_id": null, "eos_token_ids": [], "moe": null,
        "dsa": {"index_n_heads": 4, "index_head_dim": 6, "index_topk": 8},
    });
    let with_dsa = ModelConfig {
        dsa: Some(DsaConfig::new(4, 6, 8)),
        ..llama()
    };
    let read = |json: serde_json::Value| serde_json::from_value::<ModelConfig>(json);
    assert_eq!(read(llama_json.clone()).unwrap(), with_dsa);
    let mut mixtral_json = llama_json.clone();
    mixtral_json["moe"] = serde_json::json!({
        "num_experts": 4, "num_experts_per_tok": 2, "scoring_func": "softmax",
    });
    let mixtral = read(mixtral_json).unwrap();
    assert_eq!(mixtral.model_type, ModelType::Mixtral);
    assert_eq!(mixtral.moe, Some(MoeConfig::mixtral(4, 2)));
    let mut contradiction = llama_json.clone();
    contradiction["model_type"] = serde_json::json!("mixtral");
    assert_eq!(
        read(contradiction).unwrap().problems(),
        ["model_type mixtral needs moe"]
    );
    let mut unknown = llama_json;
    unknown["n_heads"] = serde_json::json!(1);
    assert!(read(unknown).unwrap_err().to_string().contains("n_heads"));
}

#[test]
fn every_family_survives_serialisation_under_its_hugging_face_name() {
    for (family, name) in [
        (ModelType::Llama, "llama"),
        (ModelType::Qwen2, "qwen2"),
        (ModelType::Qwen3, "qwen3"),
        (ModelType::Mixtral, "mixtral"),
        (ModelType::Qwen3Moe, "qwen3_moe"),
        (ModelType::DeepseekV3, "deepseek_v3"),
        (ModelType::DeepseekV32, "deepseek_v32"),
        (ModelType::GlmMoeDsa, "glm_moe_dsa"),
    ] {
        assert_eq!(family.name(), name);
        assert_eq!(serde_json::to_value(family).unwrap(), name);
    }
    let json = serde_json::to_value(v32()).unwrap();
    assert_eq!(serde_json::from_value::<ModelConfig>(json).unwrap(), v32());
}

#[test]
fn a_part_that_the_family_has_not_or_lacks_is_named() {
    let found = problems(llama(), |c| c.qkv_bias = true);
    assert_eq!(found, "model_type llama has no qkv_bias");
    let found = problems(llama(), |c| c.qk_norm = true);
    assert_eq!(found, "model_type llama has no qk_norm");
    assert!(problems(llama(), |c| c.mla = v32().mla).contains("model_type llama has no mla"));
    let found = problems(v32(), |c| c.moe = None);
    assert_eq!(found, "model_type deepseek_v32 needs moe");
    let found = problems(v32(), |c| c.dsa = None);
    assert_eq!(found, "model_type deepseek_v32 needs dsa");
    let found = problems(v32(), |c| c.model_type = ModelType::DeepseekV3);
    assert_eq!(found, "model_type deepseek_v3 has no dsa");
    let found = problems(v32(), |c| c.model_type = ModelType::GlmMoeDsa);
    assert_eq!(
        found,
        "dsa.rope_interleave must be true for model_type glm_moe_dsa"
    );
    let mut mixtral = llama();
    (mixtral.model_type, mixtral.moe) = (ModelType::Mixtral, Some(MoeConfig::mixtral(4, 2)));
    let moe = v32().moe;
    let found = problems(mixtral, |c| c.moe = moe);
    for key in [
        "correction_bias must be false",
        "n_shared_experts must be 0",
        "first_k_dense_replace must be 0",
        "n_group must be 1",
        "routed_scaling_factor must be 1",
        "moe_intermediate_size must be intermediate_size",
    ] {
        assert!(found.contains(key), "{key}: {found}");
    }
}

#[test]
fn contradictions_of_latent_attention_and_experts_are_named() {
    fn mla(config: &mut ModelConfig) -> &mut MlaConfig {
        config.mla.as_mut().unwrap()
    }
    fn moe(config: &mut ModelConfig) -> &mut MoeConfig {
        config.moe.as_mut().unwrap()
    }
    type Change = fn(&mut ModelConfig);
    let cases: [(Change, &str); 14] = [
        (|c| mla(c).kv_lora_rank = 0, "kv_lora_rank is 0"),
        (
            |c| mla(c).q_lora_rank = None,
            "dsa with mla needs q_lora_rank",
        ),
        (
            |c| mla(c).rope_interleave = false,
            "mla.rope_interleave must be true",
        ),
        (
            |c| c.head_dim = 128,
            "head_dim (128) must be qk_rope_head_dim (64)",
        ),
        (
            |c| c.num_key_value_heads = 1,
            "must be num_attention_heads (128) with MLA",
        ),
        (
            |c| moe(c).n_group = 7,
            "n_group (7) does not divide the number of experts (256)",
        ),
        (
            |c| moe(c).topk_group = 9,
            "topk_group (9) must lie between 1 and n_group (8)",
        ),
        (|c| moe(c).n_group = 256, "leaves one expert a group"),
        (
            |c| moe(c).num_experts_per_tok = 129,
            "exceeds the 128 experts of topk_group (4)",
        ),
        (
            |c| moe(c).first_k_dense_replace = 61,
            "first_k_dense_replace (61) leaves none",
        ),
        (
            |c| moe(c).routed_scaling_factor = f64::NAN,
            "routed_scaling_factor (NaN)",
        ),
        (
            |c| moe(c).scoring_func = ScoringFunc::Softmax,
            "scoring_func must be sigmoid",
        ),
        (
            |c| c.dsa = Some(DsaConfig::new(64, 32, 8)),
            "less than qk_rope_head_dim (64)",
        ),
        (
            |c| c.yarn.as_mut().unwrap().factor = 0.0,
            "yarn.factor (0) must be a positive number",
        ),
    ];
    for (change, expected) in cases {
        let found = problems(v32(), change);
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let found = problems(v32(), |c| {
        c.dsa = Some(DsaConfig {
            quantization: Some(IndexerQuantization {
                scale_format: ScaleFormat::Ue8m0,
            }),
            ..DsaConfig::new(64, 96, 8)
        });
    });
    assert!(
        found.contains("index_head_dim (96) must be a power of two"),
        "{found}"
    );
}
