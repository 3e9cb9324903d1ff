//! How much memory a run will take: an estimate of the large parts.
//!
//! Weights, their optimizer state, the reference policy, the sampler's own policy where it runs ahead, the key/value cache and the activations of one
//! micro-batch, at the most demanding stage; on a GPU in bf16 also what its kernels work in.

use kernels::cuda::WORKSPACE_BYTES;
use kernels::fused::logprobs::CHUNK_LOGITS;
use kernels::tch::{Device, Kind};
use model::{KvCache, ModelConfig, MoeConfig};
use rollout::CacheMemory;

use crate::config::{RunConfig, StageConfig};

/// Room assumed for a prompt, in tokens, where its cache is estimated.
const PROMPT_TOKENS: usize = 128;

/// Bytes of the large parts at the most demanding stage.
pub fn memory_bytes(config: &RunConfig, shape: &ModelConfig, kind: Kind, device: Device) -> usize {
    // f32 master weights, and a copy where computation runs in another type.
    let weight = match kind {
        Kind::Float => 4,
        other => 4 + other.elt_size_in_bytes(),
    };
    // Gradient and the optimizer's two moments, all f32.
    let trained = 4 + 8;
    let has_reference = config
        .stages
        .iter()
        .any(|stage| matches!(stage, StageConfig::Grpo(grpo) if grpo.kl_beta > 0.0));
    // The thread that samples ahead has a policy of its own, and a copy of the f32 weights is under way to it.
    let is_ahead = config
        .stages
        .iter()
        .any(|stage| matches!(stage, StageConfig::Grpo(grpo) if grpo.asynchronous.is_some()));
    let ahead = if is_ahead { weight + 4 } else { 0 };
    let policies = if has_reference { 2 } else { 1 };
    let weights = shape.num_parameters() * (weight * policies + trained + ahead);
    let capacity = PROMPT_TOKENS + config.sampling.max_new_tokens;
    let cache = config.max_batch_sequences * KvCache::token_bytes(shape, capacity, kind);
    let cache = match config.cache_memory {
        CacheMemory::Bytes(budget) => cache.min(usize::try_from(budget).unwrap_or(usize::MAX)),
        CacheMemory::Auto | CacheMemory::Share(_) => cache,
    };
    let has_kernels = device.is_cuda() && kind == Kind::BFloat16;
    let buffers = match has_kernels {
        true => decode_buffer_bytes(config, shape, kind),
        false => 0,
    };
    weights
        + cache
        + buffers
        + activation_bytes(config, shape, kind)
        + logit_bytes(config, shape, has_kernels)
}

/// What decode steps recorded as graphs work in: rows of states, of the feed-forward and of logits, and cuBLAS's
/// scratch memory.
fn decode_buffer_bytes(config: &RunConfig, shape: &ModelConfig, kind: Kind) -> usize {
    let heads = 2 * shape.num_attention_heads + 2 * shape.num_key_value_heads;
    let experts = shape.moe.as_ref().map_or(0, |moe| moe.num_experts);
    let inner = shape
        .intermediate_size
        .max(experts * shape.expert_intermediate_size());
    let row =
        (3 + experts) * shape.hidden_size + heads * shape.head_dim + 3 * inner + shape.vocab_size;
    WORKSPACE_BYTES as usize + config.max_batch_sequences * row * kind.elt_size_in_bytes()
}

/// Logits with their gradient: of all rows in f32, or with kernels of a chunk of them in bf16.
fn logit_bytes(config: &RunConfig, shape: &ModelConfig, has_kernels: bool) -> usize {
    let logits = config.micro_batch_tokens * shape.vocab_size;
    match has_kernels {
        true => 2 * logits.min(CHUNK_LOGITS as usize),
        false => 2 * 4 * logits,
    }
}

/// Activations kept for backward: the inputs of each layer's products.
fn activation_bytes(config: &RunConfig, shape: &ModelConfig, kind: Kind) -> usize {
    let layers = shape.num_hidden_layers;
    let numbers = match config.activation_checkpointing {
        true => layers * shape.hidden_size,
        false => {
            let shared = |moe: &MoeConfig| moe.num_experts_per_tok + moe.n_shared_experts;
            let active = shape.moe.as_ref().map_or(0, shared);
            let expert_layers = shape.num_moe_layers();
            layers * (4 * shape.hidden_size + attention_row(shape))
                + expert_layers * 4 * active * shape.expert_intermediate_size()
                + (layers - expert_layers) * 4 * shape.intermediate_size
        }
    };
    config.micro_batch_tokens * numbers * kind.elt_size_in_bytes()
}

/// Queries, keys, values and head outputs of one token in one layer, with latents where they are.
fn attention_row(shape: &ModelConfig) -> usize {
    let heads = shape.num_attention_heads;
    match &shape.mla {
        None => 2 * (heads + shape.num_key_value_heads) * shape.head_dim,
        Some(mla) => {
            let latents = mla.q_lora_rank.unwrap_or(0) + mla.latent_dim();
            latents + 2 * heads * (mla.qk_head_dim() + mla.v_head_dim)
        }
    }
}

#[cfg(test)]
mod tests {
    use model::MlaConfig;

    use super::*;
    use crate::config::AsynchronousConfig;
    use crate::{config_file, policy};

    fn config() -> RunConfig {
        let text = r#"(
            name: "a",
            model: (source: Random(
                vocab_size: 260, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1,
                num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, rms_norm_eps: 1e-5,
                rope_theta: 1e4, max_position_embeddings: 64, tie_word_embeddings: true,
                eos_token_ids: [2],
            )),
            environments: [(family: sums)],
            max_batch_sequences: 1,
            micro_batch_tokens: 1,
            activation_checkpointing: true,
            stages: [grpo(
                steps: 5, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-5),
            )],
        )"#;
        config_file::parse(text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn memory_counts_policy_reference_optimizer_cache_and_activations() {
        let config = config();
        let parts = policy::open(&config.model, 0).expect("a random model");
        // Attention 8*4*(4 + 2) = 192, feed-forward 3*8*16 = 384, norms 16 + 8, embedding 2080.
        assert_eq!(parts.config.num_parameters(), 2680);
        // Weights 2680 (4*2 + 12), cache (128 + 24) rows of 8 f32, one token of 8 f32 + 520 f32.
        let expected = 2680 * 20 + 152 * 8 * 4 + (8 + 520) * 4;
        let bytes =
            |config: &RunConfig, kind, device| memory_bytes(config, &parts.config, kind, device);
        assert_eq!(bytes(&config, Kind::Float, Device::Cpu), expected);
        // bf16: 2 bytes a weight more, the cache and the token in 2 bytes; kernels of 260 bf16 logits, and a row of
        // 3 x 8 + 6 x 4 + 3 x 16 + 260 beside 64 MB.
        let narrow = 2680 * 24 + 152 * 8 * 2 + 8 * 2;
        assert_eq!(
            bytes(&config, Kind::BFloat16, Device::Cpu),
            narrow + 520 * 4
        );
        let buffers = (64 << 20) + 356 * 2 + 260 * 2;
        assert_eq!(
            bytes(&config, Kind::BFloat16, Device::Cuda(0)),
            narrow + buffers
        );
        let capped = RunConfig {
            cache_memory: CacheMemory::Bytes(1000),
            ..config.clone()
        };
        let with_less = expected - 152 * 8 * 4 + 1000;
        assert_eq!(bytes(&capped, Kind::Float, Device::Cpu), with_less);
        let mut ahead = config;
        for stage in &mut ahead.stages {
            if let StageConfig::Grpo(grpo) = stage {
                grpo.asynchronous = Some(AsynchronousConfig::default());
            }
        }
        let expected = expected + 2680 * 8;
        assert_eq!(bytes(&ahead, Kind::Float, Device::Cpu), expected);
    }

    #[test]
    fn activations_count_latents_and_dense_layers_beside_experts() {
        let shape = ModelConfig {
            vocab_size: 10,
            hidden_size: 16,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            mla: Some(MlaConfig {
                q_lora_rank: Some(6),
                kv_lora_rank: 8,
                qk_nope_head_dim: 4,
                qk_rope_head_dim: 2,
                v_head_dim: 3,
                rope_interleave: true,
            }),
            moe: Some(MoeConfig {
                moe_intermediate_size: Some(5),
                first_k_dense_replace: 1,
                n_shared_experts: 1,
                ..MoeConfig::mixtral(8, 2)
            }),
            ..ModelConfig::sizeless_llama()
        };
        let config = RunConfig {
            activation_checkpointing: false,
            ..config()
        };
        // A layer: 64 and latents 6 + 10, heads 2 x 2 x (6 + 3); three experts of 5, one dense of 20.
        let numbers = 2 * (64 + 16 + 36) + 4 * 3 * 5 + 4 * 20;
        let bytes = activation_bytes(&config, &shape, Kind::Float);
        assert_eq!(bytes, 4 * numbers);
    }
}
