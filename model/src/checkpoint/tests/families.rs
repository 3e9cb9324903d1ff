//! Every family: what is saved is what is loaded, in f32 and bf16, in shards.

use kernels::tch::{no_grad, set_num_threads};

use super::*;
use crate::config::{DsaConfig, MlaConfig, ModelType, MoeConfig, ScoringFunc, YarnConfig};
use crate::input::PackedInput;
use crate::transformer::{ForwardOptions, Transformer};

/// A small model of each family, with the parts that the family leaves open switched on.
pub(super) fn small_configs() -> Vec<ModelConfig> {
    let dense = |model_type| ModelConfig {
        model_type,
        num_hidden_layers: 2,
        qkv_bias: model_type == ModelType::Qwen2,
        qk_norm: model_type == ModelType::Qwen3,
        ..tiny_config()
    };
    let qwen3_moe = ModelConfig {
        model_type: ModelType::Qwen3Moe,
        tie_word_embeddings: false,
        moe: Some(MoeConfig {
            moe_intermediate_size: Some(4),
            norm_topk_prob: false,
            ..MoeConfig::mixtral(4, 2)
        }),
        ..dense(ModelType::Qwen3)
    };
    let mixtral = ModelConfig {
        moe: Some(MoeConfig::mixtral(4, 2)),
        dsa: Some(DsaConfig::new(2, 4, 16)),
        ..dense(ModelType::Mixtral)
    };
    let deepseek = |model_type| ModelConfig {
        num_key_value_heads: 2,
        head_dim: 4,
        yarn: Some(YarnConfig {
            factor: 40.0,
            original_max_position_embeddings: 16,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 1.0,
        }),
        tie_word_embeddings: false,
        mla: Some(MlaConfig {
            q_lora_rank: Some(6),
            kv_lora_rank: 4,
            qk_nope_head_dim: 2,
            qk_rope_head_dim: 4,
            v_head_dim: 3,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            num_experts: 8,
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(4),
            first_k_dense_replace: 1,
            n_shared_experts: 1,
            n_group: 4,
            topk_group: 2,
            routed_scaling_factor: 2.5,
            correction_bias: true,
            ..MoeConfig::mixtral(8, 2)
        }),
        dsa: (model_type != ModelType::DeepseekV3).then(|| DsaConfig {
            rope_interleave: model_type == ModelType::GlmMoeDsa,
            ..DsaConfig::new(2, 8, 16)
        }),
        ..dense(model_type)
    };
    vec![
        dense(ModelType::Llama),
        dense(ModelType::Qwen2),
        dense(ModelType::Qwen3),
        mixtral,
        qwen3_moe,
        deepseek(ModelType::DeepseekV3),
        deepseek(ModelType::DeepseekV32),
        deepseek(ModelType::GlmMoeDsa),
    ]
}

pub(super) fn small_config(model_type: ModelType) -> ModelConfig {
    let mut all = small_configs().into_iter();
    all.find(|config| config.model_type == model_type).unwrap()
}

pub(super) fn save_small(dir: &Path, config: &ModelConfig, tensors: &[(String, Tensor)]) {
    let tokenizer = Tokenizer::byte_level();
    save(dir, config, &tokenizer, tensors, Kind::Float, 1000).unwrap();
}

#[test]
fn every_family_survives_saving_and_loading() {
    let dir = TempDir::new().unwrap();
    for config in small_configs() {
        assert_eq!(config.problems(), Vec::<String>::new());
        let tensors = random_tensors(&config);
        let target = dir.path().join(config.model_type.name());
        for kind in [Kind::Float, Kind::BFloat16] {
            let tokenizer = Tokenizer::byte_level();
            save(&target, &config, &tokenizer, &tensors, kind, 4000).unwrap();
            let (loaded, mut source, _) = open(&target).unwrap();
            assert_eq!(loaded, config);
            for (name, tensor) in &tensors {
                let found = source.tensor(name, &tensor.size()).unwrap();
                let expected = match name.ends_with("e_score_correction_bias") {
                    true => tensor.shallow_clone(),
                    false => tensor.to_kind(kind).to_kind(Kind::Float),
                };
                assert_eq!(found, expected, "{name}");
            }
        }
        assert!(target.join("model.safetensors.index.json").exists());
    }
}

/// The rounding that the bias is spared would be seen.
#[test]
fn bf16_would_change_a_correction_bias() {
    let config = small_config(ModelType::DeepseekV32);
    let tensors = random_tensors(&config);
    let is_bias = |name: &str| name == "model.layers.1.mlp.gate.e_score_correction_bias";
    let (_, bias) = tensors.iter().find(|(name, _)| is_bias(name)).unwrap();
    assert_ne!(&bias.to_kind(Kind::BFloat16).to_kind(Kind::Float), bias);
}

#[test]
fn experts_lie_one_by_one_under_the_names_of_their_family() {
    let names = |model_type| -> Vec<String> {
        let expected = expected_tensors(&small_config(model_type)).into_iter();
        expected.map(|(name, _)| name).collect()
    };
    let holds = |model_type, name: &str| {
        assert!(
            names(model_type).iter().any(|found| found == name),
            "{name}"
        );
    };
    holds(
        ModelType::Mixtral,
        "model.layers.1.block_sparse_moe.experts.3.w2.weight",
    );
    holds(
        ModelType::Mixtral,
        "model.layers.0.self_attn.indexer.wq.weight",
    );
    holds(
        ModelType::Qwen3Moe,
        "model.layers.1.mlp.experts.3.up_proj.weight",
    );
    holds(
        ModelType::Qwen3Moe,
        "model.layers.0.self_attn.q_norm.weight",
    );
    holds(ModelType::Qwen2, "model.layers.1.self_attn.v_proj.bias");
    holds(
        ModelType::DeepseekV3,
        "model.layers.1.mlp.shared_experts.down_proj.weight",
    );
    holds(ModelType::DeepseekV3, "model.layers.0.mlp.gate_proj.weight");
    holds(
        ModelType::GlmMoeDsa,
        "model.layers.1.mlp.experts.7.gate_proj.weight",
    );
    holds(
        ModelType::GlmMoeDsa,
        "model.layers.0.self_attn.indexer.wq_b.weight",
    );
}

/// Notes what it is asked for.
#[derive(Default)]
struct Asked(Vec<(String, Vec<i64>)>);

impl WeightSource for Asked {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        self.0.push((name.to_string(), shape.to_vec()));
        Ok(Tensor::zeros(shape, (Kind::Float, Device::Cpu)))
    }
}

#[test]
fn the_network_asks_for_every_expected_tensor_once_and_for_no_other() {
    let sorted = |mut tensors: Vec<(String, Vec<i64>)>| {
        tensors.sort();
        tensors
    };
    for config in small_configs() {
        let mut asked = Asked::default();
        let model = Transformer::load(&config, &mut asked, Kind::Float, Device::Cpu).unwrap();
        let expected = sorted(expected_tensors(&config));
        assert_eq!(sorted(asked.0), expected, "{:?}", config.model_type);
        let parameters = model.parameters().into_iter();
        let parameters = parameters.map(|p| (p.name.clone(), p.master.size()));
        assert_eq!(
            sorted(parameters.collect()),
            expected,
            "{:?}",
            config.model_type
        );
    }
}

/// Logits of 40 tokens, more than any indexer here selects.
fn logits(model: &Transformer) -> Tensor {
    let tokens: Vec<u32> = (0..40).map(|i| i * i * 7 % 259).collect();
    let input = PackedInput::from_sequences(&[&tokens], Device::Cpu);
    no_grad(|| {
        let output = model.forward_packed(&input, &ForwardOptions::inference());
        model.logits(&output.hidden)
    })
}

#[test]
fn a_network_of_every_family_computes_the_same_after_saving_and_loading() {
    set_num_threads(1);
    let dir = TempDir::new().unwrap();
    for config in small_configs() {
        let load = |folder: &Path| {
            let (config, mut source, _) = open(folder).unwrap();
            Transformer::load(&config, source.as_mut(), Kind::Float, Device::Cpu).unwrap()
        };
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        save_small(&first, &config, &random_tensors(&config));
        let model = load(&first);
        let parameters = model.parameters().into_iter();
        let tensors = parameters.map(|p| (p.name.clone(), p.master.detach()));
        save_small(&second, &config, &tensors.collect::<Vec<_>>());
        let (found, expected) = (logits(&load(&second)), logits(&model));
        assert_eq!(found, expected, "{:?}", config.model_type);
        let spread = expected.std(false).double_value(&[]);
        assert!(spread > 1e-3 && spread.is_finite(), "{spread}");
    }
}
