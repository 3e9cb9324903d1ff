//! What a pass needs at least: floating-point operations of its products, bytes it can't avoid.
//!
//! Operations, two a multiply-add, of T tokens that attend to K keys together, N of them through the
//! output head, in L layers: `2 T L (attention + k ffn + router + indexer) + L (4 heads head_dim K +
//! 2 H_I d_I V) + 2 N V hidden`, with K keys attended and V keys visible. Bytes: every weight that is
//! used once, and the cache read and written; activations are taken to stay in the processor's caches.

use std::iter::Sum;
use std::ops::{Add, Mul};

use kernels::tch::Kind;
use model::{Attention, ModelConfig};

/// Bytes an optimizer step moves for each parameter: the gradient written in f32, then master,
/// gradient and both moments read, and master and both moments written.
const OPTIMIZER_BYTES: f64 = 4.0 + 7.0 * 4.0;

/// Operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations, two a multiply-add.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Mul<f64> for Work {
    type Output = Work;

    fn mul(self, times: f64) -> Work {
        Work {
            flops: self.flops * times,
            bytes: self.bytes * times,
        }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Work>>(works: I) -> Work {
        works.fold(Work::default(), Add::add)
    }
}

/// The product of `[rows, inner]` and `[inner, columns]` in `kind`.
pub fn product([rows, inner, columns]: [i64; 3], kind: Kind) -> Work {
    let (m, k, n) = (rows as f64, inner as f64, columns as f64);
    Work {
        flops: 2.0 * m * k * n,
        bytes: (m * k + k * n + m * n) * kind.elt_size_in_bytes() as f64,
    }
}

/// What tokens of a forward pass see of each other and of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Tokens forwarded.
    pub count: usize,
    /// Keys that the main attention reads, summed over tokens.
    pub keys_attended: usize,
    /// Keys that the indexer scores, summed over tokens; 0 where none selects.
    pub keys_scored: usize,
    /// Tokens put through the output head.
    pub predicted: usize,
    /// Latent attention attends to cached latents themselves.
    pub are_cached: bool,
}

impl Tokens {
    /// Tokens at `positions` of their own sequences, `predicted` of them through the head.
    pub fn at(
        positions: impl Iterator<Item = usize>,
        predicted: usize,
        config: &ModelConfig,
        attention: Attention,
    ) -> Tokens {
        let topk = match (&config.dsa, attention) {
            (Some(dsa), Attention::Sparse) => Some(dsa.index_topk),
            _ => None,
        };
        let mut tokens = Tokens {
            predicted,
            ..Tokens::default()
        };
        for position in positions {
            let visible = position + 1;
            tokens.count += 1;
            tokens.keys_attended += topk.map_or(visible, |topk| topk.min(visible));
            tokens.keys_scored += topk.map_or(0, |_| visible);
        }
        tokens
    }
}

/// A forward pass without its cache traffic.
pub fn forward(config: &ModelConfig, kind: Kind, tokens: Tokens) -> Work {
    let count = tokens.count as f64;
    let layers = config.num_hidden_layers as f64;
    let indexer = config.dsa.as_ref().map_or(0.0, |dsa| {
        let is_used = if tokens.keys_scored > 0 { 1.0 } else { 0.0 };
        (config.indexer_parameters() - 2 * dsa.index_head_dim) as f64 * is_used
    });
    let scoring = config.dsa.as_ref().map_or(0, |dsa| {
        2 * dsa.index_n_heads * dsa.index_head_dim * tokens.keys_scored
    });
    let fixed = config.attention_parameters() as f64 + indexer;
    let (passed, read) = feed_forward_weights(config, count);
    let head = (config.vocab_size * config.hidden_size) as f64;
    let attended = attended_width(config, tokens) * tokens.keys_attended;
    let is_predicting = if tokens.predicted > 0 { 1.0 } else { 0.0 };
    Work {
        flops: 2.0 * count * (layers * fixed + passed)
            + layers * (2 * attended + scoring) as f64
            + 2.0 * tokens.predicted as f64 * head,
        bytes: (layers * fixed + read + is_predicting * head) * kind.elt_size_in_bytes() as f64,
    }
}

/// Feed-forward weights of all layers: those one token passes, and those `count` tokens read.
fn feed_forward_weights(config: &ModelConfig, count: f64) -> (f64, f64) {
    let expert_layers = config.num_moe_layers();
    let dense_layers = (config.num_hidden_layers - expert_layers) as f64;
    let dense = dense_layers * (3 * config.hidden_size * config.intermediate_size) as f64;
    let Some(moe) = &config.moe else {
        return (dense, dense);
    };
    let one = (3 * config.hidden_size * config.expert_intermediate_size()) as f64;
    let router = (moe.num_experts * config.hidden_size) as f64;
    let (top_k, shared) = (moe.num_experts_per_tok as f64, moe.n_shared_experts as f64);
    // Tokens spread over the experts as far as they go.
    let used = (count * top_k).min(moe.num_experts as f64);
    let all_layers = |experts: f64| dense + expert_layers as f64 * (router + experts * one);
    (all_layers(top_k + shared), all_layers(used + shared))
}

/// Multiplications of one layer for a query and a key it attends to, values included.
fn attended_width(config: &ModelConfig, tokens: Tokens) -> usize {
    let width = match &config.mla {
        None => 2 * config.head_dim,
        Some(mla) if tokens.are_cached => mla.latent_dim() + mla.kv_lora_rank,
        Some(mla) => mla.qk_head_dim() + mla.v_head_dim,
    };
    config.num_attention_heads * width
}

/// Prefill of one prompt of `len` tokens whose last predicts the next, with its keys and values
/// written.
pub fn prefill(config: &ModelConfig, kind: Kind, attention: Attention, len: usize) -> Work {
    let tokens = Tokens::at(0..len, 1, config, attention);
    let written = (len * token_cache_bytes(config, kind)) as f64;
    forward(config, kind, tokens)
        + Work {
            flops: 0.0,
            bytes: written,
        }
}

/// One decode step of `batch` sequences that hold `context` tokens each, with the attended keys and
/// values and the scored indexer keys read, and those of the new tokens written.
pub fn decode(
    config: &ModelConfig,
    kind: Kind,
    attention: Attention,
    batch: usize,
    context: usize,
) -> Work {
    let positions = std::iter::repeat_n(context, batch);
    let tokens = Tokens {
        are_cached: true,
        ..Tokens::at(positions, batch, config, attention)
    };
    let index_dim = config.dsa.as_ref().map_or(0, |dsa| dsa.index_head_dim);
    let key_value = match &config.mla {
        None => 2 * config.num_key_value_heads * config.head_dim,
        Some(mla) => mla.latent_dim(),
    };
    let read = config.num_hidden_layers
        * (key_value * tokens.keys_attended + index_dim * tokens.keys_scored);
    let bytes = read * kind.elt_size_in_bytes() + batch * token_cache_bytes(config, kind);
    forward(config, kind, tokens)
        + Work {
            flops: 0.0,
            bytes: bytes as f64,
        }
}

/// Forward, backward (twice the operations, the weights read once more) and the optimizer's update.
pub fn training_step(config: &ModelConfig, kind: Kind, tokens: Tokens) -> Work {
    let forward = forward(config, kind, tokens);
    let copies = match kind {
        Kind::Float => 0.0,
        // The compute copy is written anew.
        _ => kind.elt_size_in_bytes() as f64,
    };
    Work {
        flops: 3.0 * forward.flops,
        bytes: 2.0 * forward.bytes + config.num_parameters() as f64 * (OPTIMIZER_BYTES + copies),
    }
}

fn token_cache_bytes(config: &ModelConfig, kind: Kind) -> usize {
    model::KvCache::token_bytes(config, 1, kind)
}

#[cfg(test)]
mod tests {
    use model::{DsaConfig, MlaConfig, ModelType, MoeConfig};

    use super::*;
    use crate::bench::shapes::smollm2_135m;

    #[test]
    fn a_product_multiplies_and_adds_every_pair() {
        let work = product([32, 576, 1536], Kind::Float);
        assert_eq!(work.flops, 56_623_104.0);
        // (32 x 576 + 576 x 1536 + 32 x 1536) x 4
        assert_eq!(work.bytes, 3_809_280.0);
    }

    #[test]
    fn decode_of_one_token_reads_every_weight_of_a_dense_model() {
        let config = smollm2_135m();
        let work = decode(&config, Kind::Float, Attention::Dense, 1, 0);
        // 30 x (884,736 + 2,654,208) + 49152 x 576 weights used, the norms left out.
        let weights = 30.0 * 3_538_944.0 + 28_311_552.0;
        assert_eq!(weights, 134_479_872.0);
        // 4 x 9 x 64 a key and layer; one key visible.
        assert_eq!(work.flops, 2.0 * weights + 30.0 * 2304.0);
        // 2 x 3 x 64 numbers a token and layer, written and read.
        assert_eq!(work.bytes, 4.0 * (weights + 2.0 * 30.0 * 384.0));
    }

    #[test]
    fn a_batch_shares_the_weights_and_reads_its_own_cache() {
        let config = smollm2_135m();
        let work = decode(&config, Kind::BFloat16, Attention::Dense, 64, 75);
        assert_eq!(
            work.flops,
            64.0 * (2.0 * 134_479_872.0 + 30.0 * 2304.0 * 76.0)
        );
        assert_eq!(
            work.bytes,
            2.0 * (134_479_872.0 + 64.0 * 30.0 * 384.0 * (76.0 + 1.0))
        );
    }

    #[test]
    fn prefill_attends_to_what_precedes_and_predicts_once() {
        let config = smollm2_135m();
        let work = prefill(&config, Kind::Float, Attention::Dense, 512);
        // 512 x 513 / 2 = 131,328 keys.
        let layers = 512.0 * 3_538_944.0 * 2.0 + 2304.0 * 131_328.0;
        assert_eq!(work.flops, 30.0 * layers + 2.0 * 28_311_552.0);
        assert_eq!(work.bytes, 4.0 * (134_479_872.0 + 512.0 * 30.0 * 384.0));
    }

    #[test]
    fn experts_and_selected_keys_count_as_far_as_they_are_used() {
        let config = ModelConfig {
            model_type: ModelType::Mixtral,
            moe: Some(MoeConfig::mixtral(4, 2)),
            dsa: Some(DsaConfig::new(4, 32, 16)),
            ..smollm2_135m()
        };
        // Router 4 x 576; indexer 576 x (4 x 32 + 32 + 4).
        let fixed = 884_736.0 + 2304.0 + 94_464.0;
        let (ffn, head) = (2_654_208.0, 28_311_552.0);
        let one = decode(&config, Kind::Float, Attention::Sparse, 1, 99);
        let products = 2.0 * (30.0 * (fixed + 2.0 * ffn) + head);
        // 16 keys attended at 2304, 100 scored at 2 x 4 x 32.
        assert_eq!(one.flops, products + 30.0 * (2304.0 * 16.0 + 256.0 * 100.0));
        // Cache: 16 x 384 and 100 x 32 numbers read, 384 + 32 written.
        let cache = 30.0 * (6144.0 + 3200.0 + 416.0);
        assert_eq!(one.bytes, 4.0 * (30.0 * (fixed + 2.0 * ffn) + head + cache));
        // Two tokens may use all four experts, more tokens no more than four.
        for batch in [2, 64] {
            let many = decode(&config, Kind::Float, Attention::Sparse, batch, 99);
            let weights = 30.0 * (fixed + 4.0 * ffn) + head;
            assert_eq!(many.bytes, 4.0 * (weights + batch as f64 * cache));
        }
    }

    /// A dense layer, then one with 8 experts, a shared one and latent attention in both.
    #[test]
    fn latents_shared_experts_and_dense_layers_count() {
        let config = ModelConfig {
            model_type: ModelType::DeepseekV32,
            vocab_size: 10,
            hidden_size: 16,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            head_dim: 2,
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
            dsa: Some(DsaConfig::new(2, 4, 4)),
            ..ModelConfig::sizeless_llama()
        };
        // Queries 6 x (16 + 1 + 12), latents 16 x 10 + 8 x (1 + 14), output 6 x 16; indexer 6 x 8 + 16 x 6.
        let attention = 2.0 * (174.0 + 280.0 + 96.0 + 144.0);
        // 3 x 16 x 20 dense; router 8 x 16 and 3 experts of 3 x 16 x 5.
        let feed_forward = 960.0 + 128.0 + 3.0 * 240.0;
        let one = decode(&config, Kind::Float, Attention::Sparse, 1, 9);
        // A head and key: latent of 10 for the score, 8 for the value; 4 keys attended, 10 scored.
        let keys = 2.0 * (2.0 * 2.0 * 18.0 * 4.0 + 2.0 * 8.0 * 10.0);
        let products = 2.0 * (attention + feed_forward + 160.0);
        assert_eq!(one.flops, products + keys);
        // Read: 4 latents and 10 indexer keys a layer; written: one each.
        let cache = 2.0 * (4.0 * 10.0 + 10.0 * 4.0 + 10.0 + 4.0);
        assert_eq!(one.bytes, 4.0 * (attention + feed_forward + 160.0 + cache));
        // Expanded heads: 6 for the score, 3 for the value; no indexer.
        let whole = prefill(&config, Kind::Float, Attention::Dense, 3);
        let layers = 3.0 * (attention - 288.0 + feed_forward);
        let keys = 2.0 * (2.0 * 2.0 * 9.0 * 6.0);
        assert_eq!(whole.flops, 2.0 * (layers + 160.0) + keys);
    }

    #[test]
    fn training_takes_three_forward_passes_and_an_update_of_every_parameter() {
        let config = smollm2_135m();
        let tokens = Tokens {
            count: 10,
            predicted: 10,
            ..Tokens::default()
        };
        let f32_step = training_step(&config, Kind::Float, tokens);
        assert_eq!(f32_step.flops, 3.0 * 20.0 * 134_479_872.0);
        // 134,515,008 parameters, the norms included.
        let update = 134_515_008.0 * 32.0;
        assert_eq!(f32_step.bytes, 2.0 * 4.0 * 134_479_872.0 + update);
        let bf16_step = training_step(&config, Kind::BFloat16, tokens);
        assert_eq!(
            bf16_step.bytes,
            2.0 * 2.0 * 134_479_872.0 + update + 134_515_008.0 * 2.0
        );
    }
}
