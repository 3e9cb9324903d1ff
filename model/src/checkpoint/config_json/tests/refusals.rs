//! Keys that are missing, of a wrong kind, or ask for what is not supported: each error names its key.

use super::*;

#[test]
fn every_missing_or_wrong_key_is_named() {
    let common = [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "vocab_size",
    ];
    let latent = [
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
    ];
    let gate = [
        "n_routed_experts",
        "n_shared_experts",
        "n_group",
        "topk_group",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "routed_scaling_factor",
        "first_k_dense_replace",
    ];
    for json in published::all() {
        let family = json["model_type"].as_str().unwrap().to_string();
        let mut keys = common.to_vec();
        match family.as_str() {
            "mixtral" => keys.extend(["num_local_experts", "num_experts_per_tok"]),
            "qwen3_moe" => {
                keys.extend([
                    "num_experts",
                    "num_experts_per_tok",
                    "moe_intermediate_size",
                ]);
                keys.push("norm_topk_prob");
            }
            "deepseek_v3" => keys.extend([latent.as_slice(), &gate].concat()),
            "deepseek_v32" | "glm_moe_dsa" => {
                keys.extend([latent.as_slice(), &gate, &INDEX_KEYS, &["q_lora_rank"]].concat());
            }
            _ => {}
        }
        if family != "glm_moe_dsa" {
            keys.push("rope_theta");
        }
        for key in keys {
            refused(
                json.clone(),
                json!({key: null}),
                &[&format!("'{key}' is missing")],
            );
            let wrong = json!({key: ["a"]});
            refused(json.clone(), wrong, &[&format!("'{key}' can't be [\"a\"]")]);
        }
    }
    let rope = |key: &str| {
        let mut rope = published::deepseek_v32()["rope_scaling"].clone();
        rope.as_object_mut().unwrap().remove(key);
        refused(
            published::deepseek_v32(),
            json!({"rope_scaling": rope}),
            &[&format!("'rope_scaling.{key}' is missing")],
        );
    };
    rope("factor");
    rope("original_max_position_embeddings");
    refused(
        published::llama(),
        json!({"vocab_size": -1}),
        &["'vocab_size' can't be -1"],
    );
    refused(
        published::llama(),
        json!({"vocab_size": u64::MAX}),
        &["'vocab_size'"],
    );
    refused(
        published::llama(),
        json!({"rope_scaling": 3}),
        &["'rope_scaling' can't be 3"],
    );
    refused(
        published::llama(),
        json!({"eos_token_id": "x"}),
        &["eos_token_id"],
    );
    refused(
        published::llama(),
        json!({"index_topk": 64}),
        &["'index_n_heads' is missing"],
    );
    refused(
        published::llama(),
        json!({"num_key_value_heads": 3}),
        &["does not divide"],
    );
}

#[test]
fn what_would_be_computed_otherwise_is_refused_by_key() {
    let known = "'gpt_neox' is not known; llama, qwen2, qwen3, mixtral, qwen3_moe, deepseek_v3";
    refused(
        published::llama(),
        json!({"model_type": "gpt_neox"}),
        &[known],
    );
    for json in published::all() {
        let any = |changes: Value, parts: &[&str]| refused(json.clone(), changes, parts);
        any(
            json!({"hidden_act": "gelu"}),
            &["'hidden_act' is 'gelu'", "silu"],
        );
        any(json!({"mlp_bias": true}), &["'mlp_bias' is true"]);
        if json["model_type"] != "qwen2" {
            any(
                json!({"attention_bias": true}),
                &["'attention_bias' is true"],
            );
        }
        for kind in ["linear", "dynamic", "llama3", "longrope"] {
            let rope = json!({"rope_type": kind, "rope_theta": 1e4, "factor": 2.0});
            let parts = [&format!("rope_type' is '{kind}'"), "default and yarn"];
            any(
                json!({"rope_scaling": null, "rope_parameters": rope}),
                &parts,
            );
            let old = json!({"rope_scaling": {"type": kind, "factor": 2.0}});
            any(old, &[&format!("'rope_scaling.type' is '{kind}'")]);
        }
        any(
            json!({"partial_rotary_factor": 0.5}),
            &["'partial_rotary_factor' is 0.5"],
        );
        let windows = json!({"layer_types": ["full_attention", "sliding_attention"]});
        any(windows, &["'layer_types' holds 'sliding_attention'"]);
        for method in ["awq", "gptq", "bitsandbytes", "compressed-tensors"] {
            let quantization = json!({"quant_method": method, "bits": 4});
            let parts = ["'quantization_config.quant_method'", method, "bf16"];
            any(json!({"quantization_config": quantization}), &parts);
        }
    }
    let yarn = |key: &str, value: Value, parts: &[&str]| {
        let mut rope = published::deepseek_v32()["rope_scaling"].clone();
        rope[key] = value;
        refused(
            published::deepseek_v32(),
            json!({"rope_scaling": rope}),
            parts,
        );
    };
    yarn(
        "truncate",
        json!(false),
        &["'rope_scaling.truncate' is false"],
    );
    yarn(
        "attention_factor",
        json!(1.5),
        &["'rope_scaling.attention_factor' is 1.5"],
    );
    yarn("factor", json!(-1.0), &["factor"]);
    for json in [published::mixtral(), published::llama()] {
        refused(
            json,
            json!({"sliding_window": 4095}),
            &["'sliding_window' is 4095"],
        );
    }
    for json in [
        published::qwen2(),
        published::qwen3(),
        published::qwen3_moe(),
    ] {
        let window =
            json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 2});
        refused(json, window, &["'sliding_window' is 64"]);
    }
    let step = json!({"decoder_sparse_step": 2});
    refused(
        published::qwen3_moe(),
        step,
        &["'decoder_sparse_step' is 2"],
    );
    let only = json!({"mlp_only_layers": [0]});
    refused(published::qwen3_moe(), only, &["'mlp_only_layers'"]);
    let twice = json!({"num_experts": 64, "num_local_experts": 8});
    refused(
        published::mixtral(),
        twice,
        &["'num_experts' is 64", "'num_local_experts' is 8"],
    );
}

#[test]
fn what_deepseek_s_families_can_t_be_is_refused_by_key() {
    for json in [
        published::deepseek_v3(),
        published::deepseek_v32(),
        published::glm_moe_dsa(),
    ] {
        let any = |changes: Value, parts: &[&str]| refused(json.clone(), changes, parts);
        any(
            json!({"scoring_func": "softmax"}),
            &["'scoring_func' is 'softmax'"],
        );
        any(
            json!({"topk_method": "greedy"}),
            &["'topk_method' is 'greedy'", "noaux_tc"],
        );
        any(json!({"moe_layer_freq": 2}), &["'moe_layer_freq' is 2"]);
        any(
            json!({"num_key_value_heads": 8}),
            &["num_key_value_heads (8)"],
        );
        any(json!({"n_group": 7}), &["n_group (7)"]);
    }
    let layers = [vec!["sparse"], vec!["dense"; 60]].concat();
    let parts = ["'mlp_layer_types'", "'dense' layers followed by 'sparse'"];
    refused(
        published::deepseek_v32(),
        json!({"mlp_layer_types": layers}),
        &parts,
    );
    let parts = ["'mlp_layer_types' has 1 entries for 61 layers"];
    refused(
        published::deepseek_v32(),
        json!({"mlp_layer_types": ["sparse"]}),
        &parts,
    );
    let parts = ["'index_topk' is present", "deepseek_v32"];
    refused(
        published::deepseek_v3(),
        json!({"index_topk": 2048}),
        &parts,
    );
    let interleave = json!({"indexer_rope_interleave": true});
    refused(
        published::deepseek_v32(),
        interleave,
        &["'indexer_rope_interleave' is true"],
    );
    let halves = json!({"indexer_rope_interleave": false});
    refused(
        published::glm_moe_dsa(),
        halves,
        &["'indexer_rope_interleave' is false"],
    );
    let halves = json!({"rope_interleave": false});
    refused(
        published::glm_moe_dsa(),
        halves.clone(),
        &["'rope_interleave' is false"],
    );
    let v3 = read(&changed(published::deepseek_v3(), halves)).unwrap();
    assert!(!v3.mla.unwrap().rope_interleave);
    let shared = json!({"indexer_types": ["full", "shared"]});
    refused(
        published::glm_moe_dsa(),
        shared,
        &["'indexer_types'", "shared"],
    );
    let shared = json!({"index_topk_freq": 4});
    refused(
        published::glm_moe_dsa(),
        shared,
        &["'index_topk_freq' is 4"],
    );
    let shared = json!({"index_topk_pattern": "FSSF"});
    refused(published::glm_moe_dsa(), shared, &["'index_topk_pattern'"]);
}

#[test]
fn fp8_blocks_are_read_and_other_kinds_of_fp8_refused() {
    let dir = TempDir::new().unwrap();
    let format = |json: &Value| {
        fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        read_weight_format(dir.path()).map_err(|error| error.to_string())
    };
    let blocks = |weight_block_size, num_nextn_predict_layers| WeightFormat {
        weight_block_size,
        num_nextn_predict_layers,
    };
    let v32 = published::deepseek_v32();
    assert_eq!(format(&v32), Ok(blocks(Some([128, 128]), 1)));
    assert_eq!(format(&published::llama()), Ok(blocks(None, 0)));
    let more = json!({"num_nextn_predict_layers": null, "num_mtp_layers": 2});
    assert_eq!(
        format(&changed(v32.clone(), more)),
        Ok(blocks(Some([128, 128]), 2))
    );
    let unsaid = json!({"num_nextn_predict_layers": null, "quantization_config": null});
    assert_eq!(format(&changed(v32.clone(), unsaid)), Ok(blocks(None, 1)));
    assert_eq!(
        read_weight_format(Path::new("nowhere")).unwrap(),
        WeightFormat::default()
    );
    for (key, value) in [
        ("weight_block_size", json!([128])),
        ("weight_block_size", json!([128, 0])),
        ("weight_block_size", json!(128)),
        ("fmt", json!("e5m2")),
        ("activation_scheme", json!("static")),
        ("quant_method", Value::Null),
    ] {
        let mut quantization = v32["quantization_config"].clone();
        quantization[key] = value.clone();
        let parts = [format!("quantization_config.{key}")];
        let changes = json!({"quantization_config": quantization});
        refused(v32.clone(), changes, &[&parts[0]]);
    }
}
