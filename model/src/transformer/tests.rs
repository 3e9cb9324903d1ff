//! Claims about the whole network: golden logits of transformers, and passes that must agree.
//!
//! The models here are tiny and random, with weights ten times as large as fresh ones, so that
//! attention, routing and selection differ clearly from token to token, and norms other than 1.
//! "Variants" are the four combinations of dense and expert layers, dense and sparse attention, and
//! latent attention (a dense layer, then one with grouped, shared and biased experts) without and with an indexer.

mod cached;
mod checkpointing;
mod families;
mod formula_v32;
mod golden;
mod gpu;
mod indexer;
mod latent;
mod packing;
mod parts;
mod precision;
mod routing;
mod selection;
mod sparse;
mod upcycled;

use kernels::tch::{self, Device, Kind, Tensor};

use super::*;
use crate::config::{DsaConfig, MlaConfig, ModelType, MoeConfig, ScoringFunc};
use crate::input::Document;
use crate::random_model::fresh_tensor;

/// Keys selected per query in the sparse variants, far fewer than the sequences are long.
const TOPK: usize = 5;

fn dense_config() -> ModelConfig {
    ModelConfig {
        vocab_size: 96,
        hidden_size: 32,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
        max_position_embeddings: 512,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: vec![2],
        ..ModelConfig::sizeless_llama()
    }
}

fn with_experts(config: ModelConfig) -> ModelConfig {
    ModelConfig {
        model_type: ModelType::Mixtral,
        moe: Some(MoeConfig::mixtral(4, 2)),
        ..config
    }
}

fn with_indexer(config: ModelConfig, index_topk: usize) -> ModelConfig {
    ModelConfig {
        dsa: Some(DsaConfig::new(4, 6, index_topk)),
        ..config
    }
}

/// DeepSeek-V3 in small: latent attention with queries from the hidden state, a dense layer, then 4
/// experts in 2 groups of which one is kept, and a shared expert.
fn latent_config() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::DeepseekV3,
        num_key_value_heads: 4,
        head_dim: 4,
        mla: Some(MlaConfig {
            q_lora_rank: None,
            kv_lora_rank: 12,
            qk_nope_head_dim: 6,
            qk_rope_head_dim: 4,
            v_head_dim: 8,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(16),
            first_k_dense_replace: 1,
            n_shared_experts: 1,
            n_group: 2,
            routed_scaling_factor: 1.5,
            correction_bias: true,
            ..MoeConfig::mixtral(4, 2)
        }),
        ..dense_config()
    }
}

/// DeepSeek-V3.2 in small: [`latent_config`] with a query latent and an indexer that reads it.
fn latent_sparse_config(index_topk: usize) -> ModelConfig {
    let mut config = latent_config();
    config.model_type = ModelType::DeepseekV32;
    config.mla.as_mut().unwrap().q_lora_rank = Some(14);
    with_indexer(config, index_topk)
}

/// A model of either attention with an indexer.
fn sparse_configs(index_topk: usize) -> [ModelConfig; 2] {
    [
        with_indexer(dense_config(), index_topk),
        latent_sparse_config(index_topk),
    ]
}

fn variants() -> [ModelConfig; 6] {
    [
        dense_config(),
        with_experts(dense_config()),
        with_indexer(dense_config(), TOPK),
        with_indexer(with_experts(dense_config()), TOPK),
        latent_config(),
        latent_sparse_config(TOPK),
    ]
}

#[test]
fn variants_are_sound() {
    for config in variants() {
        assert_eq!(config.problems(), Vec::<String>::new());
    }
}

/// Every weight N(0, 0.2^2); norms N(1, 0.2^2); the gate's correction bias N(0, 0.04^2), so that every
/// expert has tokens.
struct LoudSource(u64);

impl WeightSource for LoudSource {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let noise = fresh_tensor(self.0, &format!("{name}.noise"), shape, 0.2);
        Ok(match name {
            _ if name.ends_with("norm.weight") => noise + 1.0,
            _ if name.ends_with("e_score_correction_bias") => noise * 0.2,
            _ => noise,
        })
    }
}

fn loud_model(config: &ModelConfig, kind: Kind) -> Transformer {
    tch::set_num_threads(1);
    Transformer::load(config, &mut LoudSource(3), kind, Device::Cpu).unwrap()
}

/// Arbitrary token ids, the same for the same `seed`.
fn sequence(seed: u64, len: usize) -> Vec<u32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99991);
            (state >> 40) as u32 % 96
        })
        .collect()
}

/// One document `[trunk | branches]` as a pack.
fn branched(trunk: &[u32], branches: &[Vec<u32>]) -> PackedInput {
    let tokens: Vec<u32> = [trunk, &branches.concat()].concat();
    let mut input = PackedInput::from_sequences(&[&tokens], Device::Cpu);
    input.documents = vec![Document {
        start: 0,
        trunk_len: trunk.len() as i64,
        branch_lens: branches.iter().map(|branch| branch.len() as i64).collect(),
    }];
    input
}

fn alone(tokens: &[u32]) -> PackedInput {
    PackedInput::from_sequences(&[tokens], Device::Cpu)
}

fn recording() -> ForwardOptions {
    ForwardOptions {
        routing: Routing::Record,
        ..ForwardOptions::inference()
    }
}

/// Every expert id moved on by one.
fn other_experts(ids: &Tensor) -> Tensor {
    (ids + 1).remainder(4)
}

fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

#[track_caller]
fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    let difference = max_difference(a, b);
    assert!(
        difference <= tolerance,
        "{what}: they differ by {difference}"
    );
}

/// -sum of the log-probs of each token after the first `context` ones, given those before.
fn language_loss(model: &Transformer, hidden: &Tensor, tokens: &[u32], context: usize) -> Tensor {
    let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    let rows = Tensor::arange_start(
        context as i64 - 1,
        tokens.len() as i64 - 1,
        (Kind::Int64, Device::Cpu),
    );
    let targets = Tensor::from_slice(&ids[context..]);
    -model
        .token_logprobs(hidden, &rows, &targets, 1.0, None)
        .sum(Kind::Float)
}

/// Name, group and gradient of every parameter, whose gradients are then dropped. Undefined
/// gradients are `None`.
fn take_gradients(model: &Transformer) -> Vec<(String, ParameterGroup, Option<Tensor>)> {
    let parameters = model.parameters().into_iter();
    parameters
        .map(|parameter| {
            let grad = Some(parameter.master.grad()).filter(Tensor::defined);
            let grad = grad.map(|grad| grad.copy());
            parameter.clear_grad();
            (parameter.name.clone(), parameter.group, grad)
        })
        .collect()
}

/// `gradient` against central differences of `loss` along itself, which shows a wrong size, and along three
/// fixed directions, which show a part of the derivative that it lacks. Within 2 % of its norm.
#[track_caller]
fn assert_slopes(weight: &Tensor, gradient: &Tensor, step: f64, loss: impl Fn() -> f64) {
    let norm = gradient.norm().double_value(&[]);
    assert!(norm > 0.0, "a gradient of zeros proves nothing");
    let mut directions = vec![gradient / norm];
    for seed in 0..3 {
        let draw = fresh_tensor(seed, "direction", &gradient.size(), 1.0);
        directions.push(&draw / draw.norm());
    }
    let mut weight = weight.detach();
    let start = weight.copy();
    for (index, direction) in directions.iter().enumerate() {
        let mut shifted = |by: f64| {
            weight.copy_(&(&start + direction * by));
            tch::no_grad(&loss)
        };
        let found = (shifted(step) - shifted(-step)) / (2.0 * step);
        let expected = (gradient * direction).sum(Kind::Double).double_value(&[]);
        assert!(
            (found - expected).abs() < 0.02 * norm,
            "direction {index}: {found} against {expected}, of {norm}"
        );
    }
    weight.copy_(&start);
}

/// The same parameters have gradients, equal within `tolerance` of each tensor's largest entry.
#[track_caller]
fn assert_same_gradients(
    found: &[(String, ParameterGroup, Option<Tensor>)],
    expected: &[(String, ParameterGroup, Option<Tensor>)],
    tolerance: f64,
) {
    assert_eq!(found.len(), expected.len());
    for ((name, _, found), (_, _, expected)) in found.iter().zip(expected) {
        match (found, expected) {
            (Some(found), Some(expected)) => {
                let size = expected.abs().max().double_value(&[]);
                assert!(size > 0.0, "{name}: a gradient of zeros proves nothing");
                assert_close(found, expected, tolerance * size, name);
            }
            (None, None) => {}
            _ => panic!("{name}: gradient {found:?} against {expected:?}"),
        }
    }
}
