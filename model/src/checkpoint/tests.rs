//! Folders: written, read back, damaged, replaced. Models here have a few thousand weights.

mod families;
mod fp8;
mod tensors;

use std::fs;

use kernels::tch::{Device, Kind, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::random_model::fresh_tensor;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(name)
}

fn tiny_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 259,
        hidden_size: 8,
        intermediate_size: 6,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: vec![257],
        ..ModelConfig::sizeless_llama()
    }
}

/// Some tensors of the model, of numbers that bf16 and f16 hold exactly.
fn tiny_tensors() -> Vec<(String, Tensor)> {
    let ramp = |rows: i64, columns: i64| {
        let n = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
        (n.remainder(128) - 64).reshape([rows, columns]) / 8
    };
    vec![
        ("model.embed_tokens.weight".to_string(), ramp(259, 8)),
        (
            "model.layers.0.self_attn.q_proj.weight".to_string(),
            ramp(8, 8),
        ),
        (
            "model.layers.0.mlp.down_proj.weight".to_string(),
            ramp(6, 8).tr(),
        ),
        ("model.norm.weight".to_string(), ramp(1, 8).reshape([8])),
    ]
}

fn save_tiny(dir: &Path, kind: Kind, max_shard_bytes: usize) -> Result<(), CheckpointError> {
    let tokenizer = Tokenizer::byte_level();
    save(
        dir,
        &tiny_config(),
        &tokenizer,
        &tiny_tensors(),
        kind,
        max_shard_bytes,
    )
}

/// All tensors that a `config` implies, N(0, 0.2^2); nothing is 0 or 1.
fn random_tensors(config: &ModelConfig) -> Vec<(String, Tensor)> {
    let noise = |name: String, shape: Vec<i64>| {
        let noise = fresh_tensor(1, &format!("{name}.noise"), &shape, 0.2);
        (name, noise)
    };
    let expected = expected_tensors(config).into_iter();
    expected.map(|(name, shape)| noise(name, shape)).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn tensors_written_by_transformers_are_read() {
    let mut folder = HfFolder::open(&golden("tiny_mixtral")).unwrap();
    let name = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
    let w2 = folder.tensor(name, &[32, 16]).unwrap();
    assert_eq!(w2.kind(), Kind::Float);
    let std = w2.std(false).double_value(&[]);
    assert!((std - 0.2).abs() < 0.02, "{std}");

    let error = folder.tensor(name, &[16, 32]).unwrap_err().to_string();
    assert!(error.contains("tiny_mixtral/model.safetensors"), "{error}");
    assert!(
        error.contains("has shape [32, 16], the config asks for [16, 32]"),
        "{error}"
    );
    let error = folder
        .tensor("model.layers.2.x", &[1])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tiny_mixtral: tensor 'model.layers.2.x' is missing"),
        "{error}"
    );
}

#[test]
fn a_saved_model_is_read_back_exactly_in_every_type_and_any_number_of_shards() {
    let dir = TempDir::new().unwrap();
    for (kind, bytes_each) in [(Kind::Float, 4), (Kind::BFloat16, 2), (Kind::Half, 2)] {
        for (max_shard_bytes, num_shards) in [(usize::MAX, 1), (64 * bytes_each, 3), (1, 4)] {
            let target = dir.path().join("model");
            save_tiny(&target, kind, max_shard_bytes).unwrap();
            let files = entries(&target);
            let shards = files.iter().filter(|name| name.ends_with(".safetensors"));
            assert_eq!(shards.count(), num_shards, "{files:?}");
            assert_eq!(entries(dir.path()), ["model"]);

            assert_eq!(read_config(&target).unwrap(), tiny_config());
            assert_eq!(Tokenizer::from_folder(&target).unwrap().vocab_size(), 259);
            let mut source = HfFolder::open(&target).unwrap();
            for (name, tensor) in tiny_tensors() {
                assert_eq!(
                    source.tensor(&name, &tensor.size()).unwrap(),
                    tensor,
                    "{name}"
                );
            }
        }
    }
}

/// The bytes are those of the format, not just what our own reader understands.
#[test]
fn the_official_reader_accepts_what_is_written() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("model");
    save_tiny(&target, Kind::BFloat16, usize::MAX).unwrap();
    let bytes = fs::read(target.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let down = file.tensor("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!(down.shape(), [8, 6]);
    // Row 0 of the transposed ramp: -8, -7, ...; bf16 keeps the upper half of an f32.
    assert_eq!(down.data()[..4], [0x00, 0xc1, 0xe0, 0xc0]);
    assert_eq!(file.tensors().len(), 4);
    let (header_bytes, _) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header_bytes % 8, 0);
}

#[test]
fn a_safetensors_file_cut_short_or_damaged_is_an_error() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("model");
    save_tiny(&target, Kind::Float, 64 * 4).unwrap();
    let shard = target.join("model-00002-of-00003.safetensors");
    let whole = fs::read(&shard).unwrap();
    let error = || HfFolder::open(&target).unwrap_err().to_string();
    for len in 0..whole.len() {
        fs::write(&shard, &whole[..len]).unwrap();
        let error = error();
        assert!(
            error.contains("model-00002-of-00003.safetensors"),
            "{error}"
        );
        assert!(error.contains(&format!("ends at byte {len}")), "{error}");
    }
    let mut absurd = whole.clone();
    absurd[..8].fill(0xff);
    fs::write(&shard, &absurd).unwrap();
    assert!(error().contains("the header needs"), "{}", error());
    let mut damaged = whole.clone();
    damaged[8] = b'[';
    fs::write(&shard, &damaged).unwrap();
    assert!(
        error().contains("damaged safetensors header"),
        "{}",
        error()
    );
    fs::remove_file(&shard).unwrap();
    assert!(
        error().contains("00002-of-00003.safetensors: is missing"),
        "{}",
        error()
    );
    fs::remove_file(target.join("model.safetensors.index.json")).unwrap();
    assert!(
        error().contains("neither model.safetensors nor"),
        "{}",
        error()
    );
}

#[test]
fn an_index_that_lies_is_refused() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("model");
    save_tiny(&target, Kind::Float, 1).unwrap();
    let error = |weight_map: Value| {
        let index = json!({"weight_map": weight_map}).to_string();
        fs::write(target.join("model.safetensors.index.json"), index).unwrap();
        HfFolder::open(&target).unwrap_err().to_string()
    };
    let file = "model-00001-of-00004.safetensors";
    assert!(error(json!({"lm_head.weight": file})).contains("lacks tensor 'lm_head.weight'"));
    let outside = json!({"model.norm.weight": "../model/model-00004-of-00004.safetensors"});
    assert!(error(outside).contains("no file name"));
    assert!(error(json!({"model.norm.weight": 4})).contains("no file name"));
    assert!(error(Value::Null).contains("'weight_map' is missing"));
}

#[test]
fn integer_tensors_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let header = r#"{"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}  "#;
    let bytes = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &[0; 8],
    ]
    .concat();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let error = HfFolder::open(dir.path()).unwrap().tensor("x", &[1]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("tensor 'x' is of type I64")
    );
}

#[test]
fn saving_replaces_a_model_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("model");
    save_tiny(&target, Kind::Float, 1).unwrap();
    fs::write(target.join("old"), "x").unwrap();
    // What a killed save left behind is cleared away.
    fs::create_dir(dir.path().join(".model.partial")).unwrap();
    save_tiny(&target, Kind::Float, usize::MAX).unwrap();
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(entries(&target), expected);
    assert_eq!(entries(dir.path()), ["model"]);

    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    save_tiny(&home, Kind::Float, 1).expect("an empty folder may be filled");
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("thesis.tex"), "x").unwrap();
    for target in [precious.clone(), precious.join("thesis.tex")] {
        let error = save_tiny(&target, Kind::Float, 1).unwrap_err();
        assert!(matches!(error, CheckpointError::Occupied { .. }), "{error}");
    }
    assert_eq!(entries(&precious), ["thesis.tex"]);
}

#[test]
fn missing_parents_are_made_and_a_link_stays_a_link() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("a/b/model");
    save_tiny(&target, Kind::Float, usize::MAX).unwrap();
    let before = fs::read(target.join("model.safetensors")).unwrap();
    let link = dir.path().join("latest");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    save_tiny(&link, Kind::BFloat16, usize::MAX).unwrap();
    assert!(link.is_symlink());
    assert_ne!(fs::read(target.join("model.safetensors")).unwrap(), before);
}

#[test]
fn open_says_what_it_looked_for() {
    let dir = TempDir::new().unwrap();
    let error = |path: &Path| match open(path) {
        Ok(_) => panic!("{} opened", path.display()),
        Err(error) => error.to_string(),
    };
    let missing = error(&dir.path().join("nothing"));
    assert!(missing.contains("nothing does not exist"), "{missing}");
    assert!(missing.contains("scripts/setup.sh") && missing.contains("baleen import"));
    assert!(error(dir.path()).contains("is not a model"));
    let text = dir.path().join("notes.txt");
    fs::write(&text, "x").unwrap();
    assert!(error(&text).contains("is not a model"));
    let damaged = dir.path().join("x.gguf");
    fs::write(&damaged, "GGUF").unwrap();
    assert!(error(&damaged).contains("the file ends at byte 4"));
    // The golden model has weights but no tokenizer.
    assert!(error(&golden("tiny_llama")).contains("tokenizer.json"));
}

#[test]
fn open_refuses_a_tokenizer_larger_than_the_embedding_and_joins_eos() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("model");
    let write = |config: &ModelConfig| {
        let (tokenizer, tensors) = (Tokenizer::byte_level(), random_tensors(config));
        save(&target, config, &tokenizer, &tensors, Kind::Float, 1 << 20).unwrap();
        open(&target).map(|(config, ..)| config)
    };
    let eos = vec![3];
    let config = ModelConfig {
        eos_token_ids: eos,
        ..tiny_config()
    };
    assert_eq!(write(&config).unwrap().eos_token_ids, [3, 257]);
    let small = ModelConfig {
        vocab_size: 258,
        ..tiny_config()
    };
    let error = write(&small).unwrap_err().to_string();
    assert!(
        error.contains("the tokenizer has 259 tokens, the embedding 258 rows"),
        "{error}"
    );
}
