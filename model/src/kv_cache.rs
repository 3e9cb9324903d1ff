//! Key/value cache of the rollout engine, with the indexer's keys.
//!
//! A slot holds one sequence. Decode always works on slots `0..B` (a view, no gather), so the
//! engine keeps live sequences contiguous by moving the last one into a freed slot.

use kernels::tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;

/// One layer's cache.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys after RoPE, `[slots, num_key_value_heads, capacity, head_dim]`.
    pub k: Tensor,
    /// Values, `[slots, num_key_value_heads, capacity, head_dim]`.
    pub v: Tensor,
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
        let kv = [
            slots,
            config.num_key_value_heads as i64,
            capacity,
            config.head_dim as i64,
        ];
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerCache {
                k: Tensor::zeros(kv, (kind, device)),
                v: Tensor::zeros(kv, (kind, device)),
                index_k: config.dsa.as_ref().map(|dsa| {
                    Tensor::zeros([slots, capacity, dsa.index_head_dim as i64], (kind, device))
                }),
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
        let row = 2 * config.num_key_value_heads * config.head_dim + index;
        config.num_hidden_layers * capacity * row * kind.elt_size_in_bytes()
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens a slot can hold.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
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
            copy(&layer.k, 1);
            copy(&layer.v, 1);
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
