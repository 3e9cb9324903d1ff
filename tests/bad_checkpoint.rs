//! Model folders that are wrong in one place: every command names the file and the key or tensor.

use std::fs;
use std::path::{Path, PathBuf};

use kernels::tch::{Kind, Tensor};
use model::random_model::RandomSource;
use model::{DsaConfig, ModelConfig, Tokenizer, WeightSource};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program;
use crate::refusal::{WRONG_INPUT, refused, spoil};
use crate::run_files::text;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 259,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        max_position_embeddings: 256,
        eos_token_ids: vec![257],
        dsa: Some(DsaConfig::new(2, 8, 16)),
        ..ModelConfig::sizeless_llama()
    }
}

/// A model in shards; the tensors as `change` leaves them.
fn folder(change: impl FnOnce(&mut Vec<(String, Tensor)>)) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let mut source = RandomSource::new(&config(), 1);
    let mut tensors: Vec<(String, Tensor)> = model::checkpoint::expected_tensors(&config())
        .into_iter()
        .map(|(name, shape)| {
            let tensor = source.tensor(&name, &shape).unwrap();
            (name, tensor)
        })
        .collect();
    change(&mut tensors);
    let tokenizer = Tokenizer::byte_level();
    model::checkpoint::save(&path, &config(), &tokenizer, &tensors, Kind::Float, 2000).unwrap();
    (dir, path)
}

/// `import`, `score` and `generate` refuse `model` with one error that holds all `parts`.
fn refused_by_all(model: &Path, parts: &[&str]) {
    let input = model.join("input.jsonl");
    fs::write(&input, "{\"tokens\": [1, 2]}\n").unwrap();
    let target = model.join("copy");
    let model = text(model);
    refused(&["import", model, text(&target)], WRONG_INPUT, parts);
    refused(
        &["score", model, "--input", text(&input)],
        WRONG_INPUT,
        parts,
    );
    refused(&["generate", model, "--prompt", "1"], WRONG_INPUT, parts);
    assert!(!target.exists(), "nothing was to be written");
}

#[test]
fn wrong_and_missing_config_keys_are_named() {
    let (_dir, model) = folder(|_| {});
    let vocabulary = "\"vocab_size\": 259";
    spoil(&model, "config.json", vocabulary, "\"vocab_sise\": 259");
    refused_by_all(&model, &["config.json", "'vocab_size' is missing"]);
    spoil(
        &model,
        "config.json",
        "\"vocab_sise\": 259",
        "\"vocab_size\": \"many\"",
    );
    refused_by_all(&model, &["config.json", "'vocab_size' can't be \"many\""]);
    spoil(
        &model,
        "config.json",
        "\"vocab_size\": \"many\"",
        vocabulary,
    );
    spoil(&model, "config.json", "\"llama\"", "\"lama\"");
    refused_by_all(
        &model,
        &[
            "config.json",
            "model_type 'lama' is not known",
            "deepseek_v32",
        ],
    );
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    let norm = "model.layers.1.self_attn.indexer.k_norm.bias";
    let (_dir, model) = folder(|tensors| {
        tensors.retain(|(name, _)| name != norm);
        let extra = Tensor::from_slice(&[1f32]);
        tensors.push(("model.layers.2.input_layernorm.weight".to_string(), extra));
    });
    let parts = [
        "missing tensors",
        norm,
        "unknown",
        "model.layers.2.input_layernorm.weight",
    ];
    refused_by_all(&model, &[&[text(&model)], parts.as_slice()].concat());
}

#[test]
fn a_shard_missing_from_disk_or_index_is_named() {
    let (_dir, model) = folder(|_| {});
    let path = model.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let head = index["weight_map"]["lm_head.weight"].clone();
    let shard = model.join(head.as_str().unwrap());
    let away = model.join("away");
    fs::rename(&shard, &away).unwrap();
    refused_by_all(&model, &[text(&shard), "is missing", "lm_head.weight"]);

    fs::rename(&away, &shard).unwrap();
    let map = index["weight_map"].as_object_mut().unwrap();
    map.retain(|_, file| *file != head);
    fs::write(&path, index.to_string()).unwrap();
    let files = "files that the index does not name";
    refused_by_all(&model, &["lm_head.weight", files, head.as_str().unwrap()]);
}

#[test]
fn an_fp8_tensor_without_its_scale_is_named() {
    let (_dir, model) = folder(|_| {});
    // The norm's shard, with the same bytes read as FP8.
    let name = "model.norm.weight";
    let index = fs::read(model.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let shard = model.join(index["weight_map"][name].as_str().unwrap());
    let bytes = fs::read(&shard).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (_, entry) in header.as_object_mut().unwrap() {
        if entry["dtype"] == "F32" {
            entry["dtype"] = json!("F8_E4M3");
            let ends: Vec<usize> = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
            entry["data_offsets"] = json!([ends[0] / 4, ends[1] / 4]);
        }
    }
    let header = header.to_string();
    let size = (header.len() as u64).to_le_bytes();
    let quarter = vec![0x38; (bytes.len() - 8 - length) / 4];
    fs::write(
        &shard,
        [size.as_slice(), header.as_bytes(), &quarter].concat(),
    )
    .unwrap();
    let unscaled = format!("'{name}' without '{name}_scale_inv'");
    refused_by_all(&model, &["FP8 weights without their scales", &unscaled]);
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_named() {
    let (_dir, model) = folder(|_| {});
    spoil(
        &model,
        "config.json",
        "\"vocab_size\": 259",
        "\"vocab_size\": 200",
    );
    let parts = [
        text(&model),
        "the tokenizer has 259 tokens, the embedding 200 rows",
    ];
    refused_by_all(&model, &parts);
}

#[test]
fn weights_that_are_nan_are_found_on_request() {
    let name = "model.layers.1.mlp.down_proj.weight";
    let (dir, model) = folder(|tensors| {
        let (_, down) = tensors.iter().find(|(other, _)| other == name).unwrap();
        let _ = down.get(2).narrow(0, 7, 1).fill_(f64::NAN);
    });
    let target = dir.path().join("copy");
    let import = ["import", text(&model), text(&target)];
    let found = format!("'{name}' (1 of 384, the first at [2, 7])");
    let checked = [import.as_slice(), &["--check-finite"]].concat();
    refused(
        &checked,
        WRONG_INPUT,
        &[text(&model), "NaN or infinite", &found],
    );
    assert!(!target.exists(), "nothing was to be written");
    let generate = ["generate", text(&model), "--prompt", "1", "--check-finite"];
    refused(&generate, WRONG_INPUT, &[text(&model), &found]);
    program::succeed(&import);
    assert!(target.exists(), "without the request nobody looks");
}
