//! Loading reads tensor by tensor: a process needs the model's memory and little more.
//!
//! A child loads a model of 200 MB and tells its peak (`VmHWM` of `/proc/self/status`). In one model
//! one matrix has half of all weights: who reads it a second time beside itself is found out. In the
//! other, experts have nearly all: they are moved, one by one, to the tensor that holds them all.

use std::path::{Path, PathBuf};

use kernels::tch::{Device, Kind, Tensor};
use model::checkpoint::{HfFolder, expected_tensors, read_config, save};
use model::config::{MlaConfig, ScoringFunc};
use model::{DsaConfig, ModelConfig, ModelType, MoeConfig, Tokenizer, Transformer};

use crate::program;

/// Tells the child which folder to load.
const FOLDER: &str = "BALEEN_TEST_MODEL_FOLDER";

/// Beyond the weights: pieces of a tensor being read, and what the allocator and libtorch keep.
const MAX_EXTRA_BYTES: u64 = 32 << 20;

fn llama() -> ModelConfig {
    ModelConfig {
        vocab_size: 100_000,
        hidden_size: 256,
        intermediate_size: 1024,
        num_hidden_layers: 20,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 64,
        max_position_embeddings: 256,
        tie_word_embeddings: true,
        eos_token_ids: vec![257],
        ..ModelConfig::sizeless_llama()
    }
}

fn deepseek_v32() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::DeepseekV32,
        vocab_size: 259,
        intermediate_size: 512,
        num_hidden_layers: 4,
        tie_word_embeddings: false,
        mla: Some(MlaConfig {
            q_lora_rank: Some(64),
            kv_lora_rank: 64,
            qk_nope_head_dim: 32,
            qk_rope_head_dim: 64,
            v_head_dim: 32,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(256),
            first_k_dense_replace: 1,
            n_shared_experts: 1,
            correction_bias: true,
            ..MoeConfig::mixtral(80, 4)
        }),
        dsa: Some(DsaConfig::new(4, 64, 16)),
        ..llama()
    }
}

/// Writes a model of random weights in files of 64 MB and returns the number of weights.
fn write_model(path: &Path, config: &ModelConfig, kind: Kind) -> u64 {
    let noise = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let tensors: Vec<(String, Tensor)> = expected_tensors(config)
        .into_iter()
        .map(|(name, shape)| (name, noise(&shape) * 0.02))
        .collect();
    let count = tensors.iter().map(|(_, tensor)| tensor.numel() as u64);
    let tokenizer = Tokenizer::byte_level();
    save(path, config, &tokenizer, &tensors, kind, 64 << 20).unwrap();
    count.sum()
}

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = line.unwrap().trim_matches([':', ' ', '\t', 'k', 'B']);
    kilobytes.parse::<u64>().unwrap() * 1024
}

/// What the child does; alone it has nothing to do.
#[test]
#[ignore = "a part of the test below"]
fn load_and_tell_the_peak() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    kernels::tch::set_num_threads(1);
    let config = read_config(&folder).unwrap();
    let mut source = HfFolder::open(&folder).unwrap();
    source.check(&config).unwrap();
    // Whatever libtorch allocates once, it has allocated.
    let warm = Tensor::ones([256, 256], (Kind::Float, Device::Cpu));
    assert_eq!(warm.matmul(&warm).double_value(&[0, 0]), 256.0);
    let before = status_bytes("VmRSS");
    let model = Transformer::load(&config, &mut source, Kind::Float, Device::Cpu).unwrap();
    let peak = status_bytes("VmHWM");
    assert_eq!(model.parameters()[0].name, "model.embed_tokens.weight");
    println!("grew by {} bytes", peak - before);
}

#[test]
fn loading_needs_the_memory_of_the_model_and_little_more() {
    let models = [
        (llama(), Kind::Float),
        (llama(), Kind::BFloat16),
        (deepseek_v32(), Kind::Float),
    ];
    for (config, kind) in models {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let model_bytes = 4 * write_model(&path, &config, kind);
        assert!(model_bytes > 180_000_000, "{model_bytes}");
        let mut child = program::quiet(std::env::current_exe().unwrap());
        child.args(["--exact", "loading::load_and_tell_the_peak"]);
        child.args(["--ignored", "--nocapture"]).env(FOLDER, &path);
        let ended = program::finish(child);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let told = ended
            .stdout
            .lines()
            .find_map(|line| line.split_once("grew by "));
        let (_, told) = told.unwrap_or_else(|| panic!("{}", ended.stdout));
        let grown: u64 = told.split(' ').next().unwrap().parse().unwrap();
        assert!(
            grown > model_bytes * 9 / 10,
            "{grown} of {model_bytes}: it was loaded"
        );
        let extra = grown.saturating_sub(model_bytes);
        assert!(
            extra < MAX_EXTRA_BYTES,
            "{:?} {kind:?}: {extra} bytes beside {model_bytes}",
            config.model_type
        );
    }
}
