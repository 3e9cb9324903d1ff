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
    /// What the layers' entries are parts of.
    storage: Storage,
    capacity: i64,
}

/// All layers beside each other, so that a slot is copied in one go: L layers.
#[derive(Debug)]
struct Storage {
    /// `[L, 2, slots, num_key_value_heads, capacity, head_dim]`, keys then values, or latents
    /// `[L, slots, capacity, width]`.
    main: Tensor,
    /// `[L, slots, capacity, index_head_dim]`.
    index_k: Option<Tensor>,
}

impl Storage {
    fn layers(&self) -> Vec<LayerCache> {
        let layers = 0..self.main.size()[0];
        let main = |layer| match self.main.dim() {
            6 => KeyValueCache::Heads {
                k: self.main.get(layer).get(0),
                v: self.main.get(layer).get(1),
            },
            _ => KeyValueCache::Latent(self.main.get(layer)),
        };
        layers
            .map(|layer| LayerCache {
                main: main(layer),
                index_k: self.index_k.as_ref().map(|index_k| index_k.get(layer)),
            })
            .collect()
    }

    /// The first `len` tokens of a slot in each part.
    fn slot(&self, slot: usize, len: i64) -> impl Iterator<Item = Tensor> + '_ {
        let of_slot = move |part: &Tensor| {
            let slots = if part.dim() == 6 { 2 } else { 1 };
            part.select(slots, slot as i64).narrow(-2, 0, len)
        };
        std::iter::once(&self.main)
            .chain(&self.index_k)
            .map(of_slot)
    }
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
        let layers = config.num_hidden_layers as i64;
        let main: &[i64] = match &config.mla {
            None => &[
                layers,
                2,
                slots,
                config.num_key_value_heads as i64,
                capacity,
                config.head_dim as i64,
            ],
            Some(mla) => &[layers, slots, capacity, mla.latent_dim() as i64],
        };
        let index_k = config.dsa.as_ref().map(|dsa| {
            let shape = [layers, slots, capacity, dsa.index_head_dim as i64];
            Tensor::zeros(shape, (index_kind(config, kind), device))
        });
        let storage = Storage {
            main: Tensor::zeros(main, (kind, device)),
            index_k,
        };
        KvCache {
            layers: storage.layers(),
            lengths: vec![0; num_slots],
            storage,
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

    /// Where the keys begin; another one after the cache has grown.
    pub(crate) fn address(&self) -> usize {
        self.storage.main.data_ptr() as usize
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
        let grow = |part: &Tensor| part.constant_pad_nd([0, 0, 0, missing]);
        self.storage = Storage {
            main: grow(&self.storage.main),
            index_k: self.storage.index_k.as_ref().map(grow),
        };
        self.layers = self.storage.layers();
        self.capacity += missing;
    }

    /// Copies the sequence in slot `from` to slot `to` (a group shares its prompt's prefill).
    pub fn copy_slot(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let len = self.lengths[from];
        for (mut place, source) in self.storage.slot(to, len).zip(self.storage.slot(from, len)) {
            place.copy_(&source);
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
