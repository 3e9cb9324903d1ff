//! Key/value cache of the rollout engine, with the indexer's keys: heads of grouped-query attention,
//! or one latent a token of latent attention (576 values a token and layer at DeepSeek-V3.2's sizes).
//!
//! A slot holds one sequence. Decode always works on slots `0..B` (a view, no gather), so the
//! engine keeps live sequences contiguous by moving the last one into a freed slot.

use kernels::tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;

/// What a layer's main attention keeps of the tokens.
#[derive(Debug)]
pub enum KeyValueCache {
    /// Keys after RoPE and values, `[slots, num_key_value_heads, capacity, head_dim]` each.
    Heads {
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
    },
    /// Normalised latents and the rotated shared key, `[slots, capacity, kv_lora_rank + qk_rope_head_dim]`.
    Latent(Tensor),
}

/// One layer's cache.
#[derive(Debug)]
pub struct LayerCache {
    /// Of the main attention.
    pub main: KeyValueCache,
    /// Indexer keys after norm and RoPE, `[slots, capacity, index_head_dim]`, with DSA only.
    pub index_k: Option<Tensor>,
}

/// The cache of a whole model.
#[derive(Debug)]
pub struct KvCache {
    /// One entry a layer.
    pub layers: Vec<LayerCache>,
    /// Tokens held by each slot.
    pub lengths: Vec<i64>,
    capacity: i64,
}

impl KvCache {
    /// Room for `num_slots` sequences of at most `capacity` tokens.
    pub fn new(
        config: &ModelConfig,
        num_slots: usize,
        capacity: usize,
        kind: Kind,
        device: Device,
    ) -> KvCache {
        let (slots, capacity) = (num_slots as i64, capacity as i64);
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (kind, device));
        let index_kind = index_kind(config, kind);
        let (kv_heads, head_dim) = (config.num_key_value_heads as i64, config.head_dim as i64);
        let main = || match &config.mla {
            None => KeyValueCache::Heads {
                k: zeros(&[slots, kv_heads, capacity, head_dim]),
                v: zeros(&[slots, kv_heads, capacity, head_dim]),
            },
            Some(mla) => KeyValueCache::Latent(zeros(&[slots, capacity, mla.latent_dim() as i64])),
        };
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerCache {
                main: main(),
                index_k: config
                    .dsa
                    .as_ref()
                    .map(|dsa| [slots, capacity, dsa.index_head_dim as i64])
                    .map(|shape| Tensor::zeros(shape, (index_kind, device))),
            })
            .collect();
        KvCache {
            layers,
            lengths: vec![0; num_slots],
            capacity,
        }
    }

    /// Bytes the cache of one slot takes.
    pub fn slot_bytes(config: &ModelConfig, capacity: usize, kind: Kind) -> usize {
        let index = config.dsa.as_ref().map_or(0, |dsa| dsa.index_head_dim);
        let index_bytes = index * index_kind(config, kind).elt_size_in_bytes();
        let main = match &config.mla {
            None => 2 * config.num_key_value_heads * config.head_dim,
            Some(mla) => mla.latent_dim(),
        };
        let row_bytes = main * kind.elt_size_in_bytes() + index_bytes;
        config.num_hidden_layers * capacity * row_bytes
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens a slot can hold.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Makes room for sequences of `capacity` tokens; what the slots hold stays.
    pub fn reserve(&mut self, capacity: usize) {
        let missing = capacity as i64 - self.capacity;
        if missing <= 0 {
            return;
        }
        // Pads the second last dimension, the tokens, at its end.
        let grow = |cache: &mut Tensor| *cache = cache.constant_pad_nd([0, 0, 0, missing]);
        for layer in &mut self.layers {
            match &mut layer.main {
                KeyValueCache::Heads { k, v } => {
                    grow(k);
                    grow(v);
                }
                KeyValueCache::Latent(latents) => grow(latents),
            }
            layer.index_k.iter_mut().for_each(grow);
        }
        self.capacity += missing;
    }

    /// Copies the sequence in slot `from` to slot `to` (a group shares its prompt's prefill).
    pub fn copy_slot(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let len = self.lengths[from];
        let copy = |cache: &Tensor, dim: i64| {
            let source = cache.select(0, from as i64).narrow(dim, 0, len);
            cache
                .select(0, to as i64)
                .narrow(dim, 0, len)
                .copy_(&source);
        };
        for layer in &self.layers {
            match &layer.main {
                KeyValueCache::Heads { k, v } => {
                    copy(k, 1);
                    copy(v, 1);
                }
                KeyValueCache::Latent(latents) => copy(latents, 0),
            }
            if let Some(index_k) = &layer.index_k {
                copy(index_k, 0);
            }
        }
        self.lengths[to] = len;
    }

    /// Forgets the sequence in `slot`.
    pub fn clear_slot(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }
}

/// Type of the indexer's keys: quantised ones are multiplied out in f32.
fn index_kind(config: &ModelConfig, kind: Kind) -> Kind {
    let quantization = config.dsa.as_ref().and_then(|dsa| dsa.quantization);
    quantization.map_or(kind, |_| Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DsaConfig, MlaConfig};

    #[test]
    fn a_latent_token_takes_576_values_a_layer_and_the_indexers_key() {
        let heads = ModelConfig {
            num_hidden_layers: 61,
            num_key_value_heads: 128,
            head_dim: 64,
            ..ModelConfig::sizeless_llama()
        };
        assert_eq!(
            KvCache::slot_bytes(&heads, 1, Kind::Float),
            61 * 4 * 2 * 128 * 64
        );
        let latent = ModelConfig {
            mla: Some(MlaConfig {
                q_lora_rank: Some(1536),
                kv_lora_rank: 512,
                qk_nope_head_dim: 128,
                qk_rope_head_dim: 64,
                v_head_dim: 128,
                rope_interleave: true,
            }),
            dsa: Some(DsaConfig::new(64, 128, 2048)),
            ..heads
        };
        let bytes = KvCache::slot_bytes(&latent, 10, Kind::BFloat16);
        assert_eq!(bytes, 61 * 10 * 2 * (576 + 128));
        let cache = KvCache::new(
            &ModelConfig {
                num_hidden_layers: 1,
                ..latent
            },
            3,
            10,
            Kind::BFloat16,
            Device::Cpu,
        );
        let KeyValueCache::Latent(latents) = &cache.layers[0].main else {
            panic!("heads are cached");
        };
        assert_eq!(latents.size(), [3, 10, 576]);
    }
}
