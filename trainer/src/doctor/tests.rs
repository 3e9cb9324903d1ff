//! Sound policies pass; every planted fault fails with its own cause named.
//!
//! The policies are tiny and random, with weights large enough for attention, routing and selection to
//! differ from token to token. Sampler and learner are loaded apart, so that one of them can be spoilt.

use std::sync::Arc;

use environments::{Split, Tasks};
use kernels::tch::{self, Device, Kind};
use model::random_model::RandomSource;
use model::{
    Attention, KeptTokens, ModelConfig, Routing, RoutingTrace, Tokenizer, Transformer, WeightError,
    WeightSource,
};
use rollout::{GenerationSettings, Group, GuardedGrader, Sample, SamplingConfig, Vocabulary};

use super::*;
use crate::config::RunConfig;
use crate::prompts::PromptSource;
use crate::{config_file, policy};

mod faults;
mod sound;

const GROUP_SIZE: usize = 3;
/// Tokens that every policy here reads.
const CONTEXT: usize = 256;

/// What every policy here has; `more` adds to it.
fn config(model: &str) -> RunConfig {
    let text = format!(
        r#"(
            name: "a",
            model: ({model}),
            environments: [(family: sums, level: 1), (family: compare, level: 2)],
            stages: [grpo(
                steps: 1, prompts_per_step: 4, group_size: 4, learning_rate: (peak: 1e-5),
            )],
        )"#
    );
    config_file::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"))
}

const SIZES: &str = "vocab_size: 259, hidden_size: 48, intermediate_size: 64, num_hidden_layers: 3, \
     num_attention_heads: 4, rms_norm_eps: 1e-5, rope_theta: 1e4, max_position_embeddings: 256, \
     tie_word_embeddings: false, eos_token_ids: [257], initializer_range: 0.15";

fn dense() -> RunConfig {
    config(&format!(
        "source: Random({SIZES}, num_key_value_heads: 2, head_dim: 12)"
    ))
}

/// A dense policy made into experts that are no longer copies, with an indexer.
fn upcycled() -> RunConfig {
    config(&format!(
        "source: Random({SIZES}, num_key_value_heads: 2, head_dim: 12), \
         upcycle: (experts: 4, top_k: 2), \
         dsa: (index_n_heads: 4, index_head_dim: 12, index_topk: 12)"
    ))
}

/// DeepSeek-V3.2 in small.
fn v32() -> RunConfig {
    config(&format!(
        "source: Random({SIZES}, model_type: deepseek_v32, num_key_value_heads: 4, head_dim: 8, \
         mla: (q_lora_rank: Some(32), kv_lora_rank: 24, qk_nope_head_dim: 12, qk_rope_head_dim: 8, \
         v_head_dim: 12), \
         moe: (num_experts: 8, num_experts_per_tok: 2, scoring_func: sigmoid, moe_intermediate_size: 32, \
         first_k_dense_replace: 1, n_shared_experts: 1, n_group: 4, topk_group: 2, \
         routed_scaling_factor: 1.5, correction_bias: true), \
         dsa: (index_n_heads: 4, index_head_dim: 16, index_topk: 12))"
    ))
}

/// Experts that are not all alike: copies of a dense feed-forward, each with noise of its own.
struct Parted {
    source: Box<dyn WeightSource>,
    noise: RandomSource,
}

impl WeightSource for Parted {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<tch::Tensor, WeightError> {
        let tensor = self.source.tensor(name, shape)?;
        Ok(match name.contains("experts.") {
            true => tensor + self.noise.tensor(name, shape)?,
            false => tensor,
        })
    }
}

fn load(config: &RunConfig, kind: Kind) -> Transformer {
    load_as(config, kind, |_| ())
}

/// The policy of `config`, after `change` to its shape.
fn load_as(config: &RunConfig, kind: Kind, change: impl Fn(&mut ModelConfig)) -> Transformer {
    // Tiny operations: threads would only wait for each other.
    tch::set_num_threads(1);
    let mut parts = policy::open(&config.model, 7).unwrap();
    change(&mut parts.config);
    let mut source = Parted {
        noise: RandomSource::new(&parts.config, 8),
        source: parts.source,
    };
    Transformer::load(&parts.config, &mut source, kind, Device::Cpu).unwrap()
}

fn whole() -> SamplingConfig {
    SamplingConfig {
        max_new_tokens: 20,
        ..SamplingConfig::default()
    }
}

fn truncated() -> SamplingConfig {
    SamplingConfig {
        temperature: 0.8,
        top_p: 0.9,
        ..whole()
    }
}

/// Groups that `sampler` draws for the run's prompts.
fn play(config: &RunConfig, sampler: &Transformer, sampling: &SamplingConfig) -> Vec<Group> {
    let tokenizer = Tokenizer::byte_level();
    let tasks = Arc::new(Tasks::default());
    let source = PromptSource::new(config, &tasks, &tokenizer, CONTEXT);
    let prompts = (0..4).map(|id| source.prompt(Split::Train, id).unwrap());
    let settings = GenerationSettings {
        sampling: sampling.clone(),
        attention: Attention::Sparse,
        stop_tokens: vec![257],
        vocabulary: Vocabulary::of(&tokenizer, 259),
        seed: 3,
        policy_version: 0,
        max_batch_sequences: 5,
        memory: config.memory(),
        record_selection: true,
    };
    let decode = |tokens: &[u32]| tokenizer.decode(tokens);
    let grader = GuardedGrader::new(tasks.clone(), &config.grading);
    let groups = rollout::sample_groups(
        sampler,
        prompts.collect(),
        GROUP_SIZE,
        &settings,
        rollout::Judge {
            decode: &decode,
            grader: &grader,
            episodes: None,
            rewards: None,
        },
        &mut |_, _| (),
    );
    groups.unwrap().0
}

fn players<'a>(
    sampler: &'a Transformer,
    learner: &'a Transformer,
    tokenizer: &'a Tokenizer,
    sampling: &'a SamplingConfig,
) -> Players<'a> {
    Players {
        sampler,
        learner,
        tokenizer,
        sampling,
        attention: Attention::Sparse,
        indexer_is_new: false,
        keep_routing: true,
        keep_sampling_mask: true,
        // Several micro-batches.
        micro_batch_tokens: 150,
        activation_checkpointing: false,
    }
}

/// The findings on `groups`, printed.
fn examined(
    sampler: &Transformer,
    learner: &Transformer,
    sampling: &SamplingConfig,
    groups: &[Group],
) -> Vec<Finding> {
    let tokenizer = Tokenizer::byte_level();
    let players = players(sampler, learner, &tokenizer, sampling);
    let found = diagnose(&observe(&players, groups));
    found.iter().for_each(|finding| println!("{finding}"));
    found
}

fn samples(groups: &mut [Group]) -> impl Iterator<Item = &mut Sample> {
    groups.iter_mut().flat_map(|group| &mut group.samples)
}
