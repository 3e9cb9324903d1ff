//! Configs of every family: read, refused by key, written and read again, counted.

mod published;
mod refusals;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::expected_tensors;
use crate::config::{MoeConfig, ScaleFormat, ScoringFunc, YarnConfig};

fn golden(name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    golden.join(name)
}

/// What is made of `json` as a `config.json`.
fn read(json: &Value) -> Result<ModelConfig, String> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    read_config(dir.path()).map_err(|error| error.to_string())
}

/// `json` with other values; null removes a key.
fn changed(mut json: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

/// The error about `changes` to `json`, which names the file and all `parts`.
#[track_caller]
fn refused(json: Value, changes: Value, parts: &[&str]) {
    let error = read(&changed(json, changes.clone())).expect_err(&changes.to_string());
    assert!(error.contains("config.json: "), "{error}");
    for part in parts {
        assert!(
            error.contains(part),
            "{changes}: {part:?} is not in: {error}"
        );
    }
}

#[test]
fn configs_written_by_transformers_are_read() {
    let expected = ModelConfig {
        vocab_size: 96,
        hidden_size: 32,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        initializer_range: 0.2,
        rope_theta: 500.0,
        max_position_embeddings: 256,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..ModelConfig::sizeless_llama()
    };
    assert_eq!(read_config(&golden("tiny_llama")).unwrap(), expected);
    let tied = read_config(&golden("tiny_llama_tied")).unwrap();
    let found = (tied.tie_word_embeddings, tied.head_dim, tied.eos_token_ids);
    assert_eq!(found, (true, 12, vec![2, 3]));
    let mixtral = read_config(&golden("tiny_mixtral")).unwrap();
    assert_eq!(mixtral.moe, Some(MoeConfig::mixtral(4, 2)));
    assert_eq!(
        mixtral.head_dim, 8,
        "head_dim null is hidden_size / num_attention_heads"
    );
}

#[test]
fn the_config_of_deepseek_v32_is_read() {
    let expected = ModelConfig {
        model_type: ModelType::DeepseekV32,
        vocab_size: 129280,
        hidden_size: 7168,
        intermediate_size: 18432,
        num_hidden_layers: 61,
        num_attention_heads: 128,
        num_key_value_heads: 128,
        head_dim: 64,
        rms_norm_eps: 1e-6,
        initializer_range: 0.02,
        rope_theta: 1e4,
        yarn: Some(YarnConfig {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }),
        max_position_embeddings: 163840,
        tie_word_embeddings: false,
        qkv_bias: false,
        qk_norm: false,
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
        mla: Some(MlaConfig {
            q_lora_rank: Some(1536),
            kv_lora_rank: 512,
            qk_nope_head_dim: 128,
            qk_rope_head_dim: 64,
            v_head_dim: 128,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            num_experts: 256,
            num_experts_per_tok: 8,
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(2048),
            first_k_dense_replace: 3,
            n_shared_experts: 1,
            n_group: 8,
            topk_group: 4,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            correction_bias: true,
        }),
        dsa: Some(DsaConfig::new(64, 128, 2048)),
    };
    assert_eq!(read(&published::deepseek_v32()).unwrap(), expected);
    let v3 = ModelConfig {
        model_type: ModelType::DeepseekV3,
        dsa: None,
        ..expected
    };
    assert_eq!(read(&published::deepseek_v3()).unwrap(), v3);
}

#[test]
fn the_indexer_of_glm_interleaves_and_that_of_deepseek_does_not() {
    let glm = read(&published::glm_moe_dsa()).unwrap();
    assert_eq!((glm.rope_theta, &glm.yarn), (1e6, &None));
    assert_eq!(glm.eos_token_ids, [154820, 154827, 154829]);
    let dsa = glm.dsa.unwrap();
    assert!(dsa.rope_interleave && glm.mla.unwrap().rope_interleave);
    assert_eq!((dsa.index_n_heads, dsa.index_head_dim), (32, 128));
    let deepseek = read(&published::deepseek_v32()).unwrap();
    assert!(!deepseek.dsa.unwrap().rope_interleave);
}

#[test]
fn the_other_families_have_their_biases_norms_and_experts() {
    let llama = read(&published::llama()).unwrap();
    let qwen2 = read(&published::qwen2()).unwrap();
    let qwen3 = read(&published::qwen3()).unwrap();
    let mixtral = read(&published::mixtral()).unwrap();
    let qwen3_moe = read(&published::qwen3_moe()).unwrap();
    let parts = |c: &ModelConfig| (c.model_type, c.head_dim, c.qkv_bias, c.qk_norm);
    assert_eq!(parts(&llama), (ModelType::Llama, 128, false, false));
    assert_eq!(parts(&qwen2), (ModelType::Qwen2, 64, true, false));
    assert_eq!(parts(&qwen3), (ModelType::Qwen3, 128, false, true));
    assert_eq!(parts(&mixtral), (ModelType::Mixtral, 128, false, false));
    assert_eq!(parts(&qwen3_moe), (ModelType::Qwen3Moe, 128, false, true));
    assert_eq!(mixtral.moe, Some(MoeConfig::mixtral(8, 2)));
    let experts = MoeConfig {
        moe_intermediate_size: Some(768),
        ..MoeConfig::mixtral(128, 8)
    };
    assert_eq!(qwen3_moe.moe, Some(experts));
    for dense in [llama, qwen2, qwen3] {
        assert_eq!((dense.moe, dense.mla, dense.dsa), (None, None, None));
    }
}

/// Counts from the model cards, from the DeepSeek-V3 report (671 B) and by hand: an indexer of
/// DeepSeek-V3.2 has 64 * 128 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168 = 13,959,424 parameters.
#[test]
fn published_configs_have_the_published_numbers_of_parameters() {
    let count = |json: Value| -> i64 {
        let config = read(&json).unwrap();
        let tensors = expected_tensors(&config);
        let sum = tensors
            .iter()
            .map(|(_, shape)| shape.iter().product::<i64>());
        let sum = sum.sum();
        assert_eq!(
            sum as usize,
            config.num_parameters(),
            "{:?}",
            config.model_type
        );
        sum
    };
    assert_eq!(count(published::llama()), 6_738_415_616);
    assert_eq!(count(published::qwen2()), 494_032_768);
    assert_eq!(count(published::qwen3()), 596_049_920);
    assert_eq!(count(published::mixtral()), 46_702_792_704);
    assert_eq!(count(published::qwen3_moe()), 30_532_122_624);
    let (v3, v32) = (
        count(published::deepseek_v3()),
        count(published::deepseek_v32()),
    );
    assert!((671_000_000_000..671_100_000_000).contains(&v3), "{v3}");
    assert_eq!(v32 - v3, 61 * 13_959_424);
    count(published::glm_moe_dsa());
}

#[test]
fn old_and_new_spellings_mean_the_same() {
    let same = |json: Value, changes: Value| {
        let expected = read(&json).unwrap();
        assert_eq!(
            read(&changed(json, changes.clone())),
            Ok(expected),
            "{changes}"
        );
    };
    let mut parameters = published::deepseek_v32()["rope_scaling"].clone();
    parameters["rope_theta"] = json!(10000);
    let new = json!({"rope_scaling": null, "rope_theta": null, "rope_parameters": parameters});
    same(published::deepseek_v32(), new);
    let mut scaling = published::deepseek_v32()["rope_scaling"].clone();
    scaling.as_object_mut().unwrap().remove("type");
    scaling["rope_type"] = json!("yarn");
    // What YaRN means without them.
    scaling["beta_fast"] = Value::Null;
    scaling["beta_slow"] = Value::Null;
    scaling["truncate"] = json!(true);
    scaling["attention_factor"] = json!(1.0);
    same(published::deepseek_v32(), json!({"rope_scaling": scaling}));
    let types = [vec!["dense"; 3], vec!["sparse"; 58]].concat();
    let layers = json!({"mlp_layer_types": types, "first_k_dense_replace": null});
    same(published::deepseek_v32(), layers.clone());
    for alias in ["num_local_experts", "num_experts"] {
        same(
            published::deepseek_v3(),
            json!({"n_routed_experts": null, alias: 256}),
        );
    }
    same(
        published::mixtral(),
        json!({"num_local_experts": null, "num_experts": 8}),
    );
    same(
        published::qwen3_moe(),
        json!({"num_experts": null, "num_local_experts": 128}),
    );
    same(
        published::deepseek_v3(),
        json!({"rope_interleave": true, "head_dim": 56}),
    );
    same(
        published::llama(),
        json!({"head_dim": null, "num_key_value_heads": null}),
    );
    same(published::qwen2(), json!({"head_dim": null}));
    same(published::qwen3(), json!({"head_dim": null}));
    same(
        published::llama(),
        json!({"rope_parameters": {"rope_type": "default"}}),
    );
    same(
        published::glm_moe_dsa(),
        json!({"indexer_types": vec!["full"; 78]}),
    );
    // The inner base wins over the outer one, and `rope_scaling` over `rope_parameters`.
    let rope = json!({"rope_theta": 3.0, "rope_parameters": {"rope_theta": 10000.0}});
    same(published::llama(), rope);
    let rope =
        json!({"rope_scaling": {"rope_theta": 10000.0}, "rope_parameters": {"rope_theta": 3.0}});
    same(published::llama(), rope);
    // Windows that hide nothing.
    same(published::qwen2(), json!({"use_sliding_window": true}));
    let from_behind =
        json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 28});
    same(published::qwen3(), from_behind);
}

#[test]
fn yarn_of_other_families_has_no_softmax_factor() {
    let scaling = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
    });
    let config = read(&changed(
        published::qwen3(),
        json!({"rope_scaling": scaling}),
    ))
    .unwrap();
    let yarn = config.yarn.as_ref().unwrap();
    // 0.1 ln 4 + 1.
    assert!((yarn.rotation_factor() - 1.138_629_436_111_989).abs() < 1e-12);
    assert_eq!(config.softmax_scale(), 128f64.powf(-0.5));
}

#[test]
fn end_of_sequence_ids_of_both_files_are_joined() {
    let dir = TempDir::new().unwrap();
    let write = |file: &str, json: Value| {
        fs::write(dir.path().join(file), json.to_string()).unwrap();
    };
    write("config.json", published::qwen2());
    write(
        "generation_config.json",
        json!({"eos_token_id": [151645, 151643]}),
    );
    let config = read_config(dir.path()).unwrap();
    assert_eq!(config.eos_token_ids, [151645, 151643]);
    write(
        "config.json",
        changed(published::qwen2(), json!({"eos_token_id": null})),
    );
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    assert_eq!(
        read_config(dir.path()).unwrap().eos_token_ids,
        Vec::<u32>::new()
    );
}

#[test]
fn every_config_survives_writing_and_reading() {
    let mut configs: Vec<ModelConfig> = published::all()
        .iter()
        .map(|json| read(json).unwrap())
        .collect();
    let mut gqa_with_indexer = configs[2].clone();
    gqa_with_indexer.dsa = Some(DsaConfig::new(4, 32, 16));
    let mut sigmoid = configs[3].clone();
    sigmoid.moe.as_mut().unwrap().scoring_func = ScoringFunc::Sigmoid;
    let mut raw = configs[4].clone();
    raw.moe.as_mut().unwrap().norm_topk_prob = false;
    let mut without_q_latent = configs[5].clone();
    let mla = without_q_latent.mla.as_mut().unwrap();
    (mla.q_lora_rank, mla.rope_interleave) = (None, false);
    let mut quantised = configs[6].clone();
    quantised.dsa.as_mut().unwrap().quantization = Some(IndexerQuantization {
        scale_format: ScaleFormat::Ue8m0,
    });
    quantised.yarn.as_mut().unwrap().mscale = 0.0;
    quantised.rms_norm_eps = 9.999999747378752e-6;
    quantised.eos_token_ids = vec![7, 8];
    configs.extend([gqa_with_indexer, sigmoid, raw, without_q_latent, quantised]);
    for config in configs {
        assert_eq!(read(&config_json(&config, "bfloat16")), Ok(config));
    }
}
