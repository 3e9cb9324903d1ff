//! Key/value cache of the rollout engine, with the indexer's keys: heads of grouped-query attention,
//! or one latent a token of latent attention (576 values a token and layer at DeepSeek-V3.2's sizes).
//!
//! Every part is rows of tokens, in pages: which page holds which tokens of which sequence is in [`Pages`]. A slot
//! holds one sequence. Decode always works on slots `0..B`, so the engine keeps live sequences contiguous by moving
//! the last one into a freed slot, which moves its table only. Legend: R rows, one a token.

use std::ops::Range;

use kernels::tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::pages::{PAGE_TOKENS, Pages};

/// What a layer's main attention keeps of the tokens.
#[derive(Debug)]
pub enum KeyValueCache {
    /// Keys after RoPE and values, `[R, num_key_value_heads, head_dim]` each.
    Heads {
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
    },
    /// Normalised latents and the rotated shared key, `[R, kv_lora_rank + qk_rope_head_dim]`.
    Latent(Tensor),
}

/// One layer's cache.
#[derive(Debug)]
pub struct LayerCache {
    /// Of the main attention.
    pub main: KeyValueCache,
    /// Indexer keys after norm and RoPE, `[R, index_head_dim]`, with DSA only.
    pub index_k: Option<Tensor>,
}

/// The cache of a whole model.
#[derive(Debug)]
pub struct KvCache {
    /// One entry a layer.
    pub layers: Vec<LayerCache>,
    /// Which pages the slots hold.
    pub pages: Pages,
    /// What the layers' entries are parts of.
    storage: Storage,
    /// Pages of the longest sequence that a slot may hold.
    max_pages: usize,
}

/// All layers beside each other, so that a page is copied in one go: L layers.
#[derive(Debug)]
struct Storage {
    /// `[L, 2, R, num_key_value_heads, head_dim]`, keys then values, or latents `[L, R, width]`.
    main: Tensor,
    /// `[L, R, index_head_dim]`.
    index_k: Option<Tensor>,
}

/// Sizes of a [`KvCache`].
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// Sequences at once.
    pub num_slots: usize,
    /// Pages for all of them.
    pub num_pages: usize,
    /// Tokens of a page, a power of two.
    pub page_tokens: usize,
}

impl Storage {
    fn new(config: &ModelConfig, rows: i64, kind: Kind, device: Device) -> Storage {
        let layers = config.num_hidden_layers as i64;
        let main: &[i64] = match &config.mla {
            None => &[
                layers,
                2,
                rows,
                config.num_key_value_heads as i64,
                config.head_dim as i64,
            ],
            Some(mla) => &[layers, rows, mla.latent_dim() as i64],
        };
        let index_k = config.dsa.as_ref().map(|dsa| {
            let shape = [layers, rows, dsa.index_head_dim as i64];
            Tensor::zeros(shape, (index_kind(config, kind), device))
        });
        Storage {
            main: Tensor::zeros(main, (kind, device)),
            index_k,
        }
    }

    fn layers(&self) -> Vec<LayerCache> {
        let layers = 0..self.main.size()[0];
        let main = |layer| match self.main.dim() {
            5 => KeyValueCache::Heads {
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

    /// Both parts as `[layers, pages, numbers of a page]`.
    fn in_pages(&self, num_pages: usize) -> impl Iterator<Item = Tensor> + '_ {
        let parts = std::iter::once(&self.main).chain(&self.index_k);
        parts.map(move |part| {
            let layers = match part.dim() {
                5 => 2 * part.size()[0],
                _ => part.size()[0],
            };
            part.view([layers, num_pages as i64, -1])
        })
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
        let max_pages = capacity.div_ceil(PAGE_TOKENS);
        let shape = CacheShape {
            num_slots,
            num_pages: num_slots * max_pages,
            page_tokens: PAGE_TOKENS,
        };
        KvCache {
            max_pages,
            ..KvCache::of_pages(config, shape, kind, device)
        }
    }

    /// Pages for sequences of any length that the pages allow.
    pub fn of_pages(
        config: &ModelConfig,
        shape: CacheShape,
        kind: Kind,
        device: Device,
    ) -> KvCache {
        let rows = (shape.num_pages * shape.page_tokens) as i64;
        let storage = Storage::new(config, rows, kind, device);
        KvCache {
            layers: storage.layers(),
            pages: Pages::new(shape.num_slots, shape.num_pages, shape.page_tokens),
            storage,
            max_pages: shape.num_pages,
        }
    }

    /// Bytes that `tokens` tokens take in all layers.
    pub fn token_bytes(config: &ModelConfig, tokens: usize, kind: Kind) -> usize {
        let index = config.dsa.as_ref().map_or(0, |dsa| dsa.index_head_dim);
        let index_bytes = index * index_kind(config, kind).elt_size_in_bytes();
        let main = match &config.mla {
            None => 2 * config.num_key_value_heads * config.head_dim,
            Some(mla) => mla.latent_dim(),
        };
        let row_bytes = main * kind.elt_size_in_bytes() + index_bytes;
        config.num_hidden_layers * tokens * row_bytes
    }

    /// Number of slots.
    pub fn num_slots(&self) -> usize {
        self.pages.num_slots()
    }

    /// Tokens that each of the slots `0..batch` holds.
    pub fn lengths(&self, batch: usize) -> Vec<i64> {
        (0..batch).map(|slot| self.pages.len(slot) as i64).collect()
    }

    /// Where the keys begin, and the entries of a slot's table: others after the cache has grown.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.storage.main.data_ptr() as usize, self.max_pages)
    }

    /// The tables of the slots `0..batch`, each filled up with zeros to `width` entries: i32 `[batch, width]` flat.
    pub(crate) fn tables(&self, batch: usize, width: usize) -> Vec<i32> {
        let mut tables = vec![0; batch * width];
        for slot in 0..batch {
            self.write_table(slot, &mut tables[slot * width..(slot + 1) * width]);
        }
        tables
    }

    /// Writes the pages of `slot` to the front of `table`.
    pub(crate) fn write_table(&self, slot: usize, table: &mut [i32]) {
        for (entry, &page) in table.iter_mut().zip(self.pages.table(slot)) {
            *entry = page.cast_signed();
        }
    }

    /// Makes slots able to hold `tokens` tokens, and the pages `num_pages` in all. What slots hold stays; where
    /// none holds anything, the old memory goes before the new is taken.
    pub fn reserve(&mut self, config: &ModelConfig, tokens: usize, num_pages: usize) {
        self.max_pages = self.max_pages.max(self.pages.pages_for(tokens));
        let before = self.pages.num_pages();
        if num_pages <= before {
            return;
        }
        let (kind, device) = (self.storage.main.kind(), self.storage.main.device());
        let rows = (num_pages * self.pages.page_tokens()) as i64;
        let is_empty = self.pages.num_free() == before;
        self.layers.clear();
        if is_empty {
            self.storage = Storage::new(config, 0, kind, device);
        }
        let storage = Storage::new(config, rows, kind, device);
        if !is_empty {
            let parts = storage.in_pages(num_pages);
            for (to, from) in parts.zip(self.storage.in_pages(before)) {
                to.narrow(1, 0, before as i64).copy_(&from);
            }
        }
        self.storage = storage;
        self.layers = self.storage.layers();
        self.pages.add(num_pages - before);
    }

    /// Takes pages for the tokens that the next pass writes: by slot, which of the sequence's.
    ///
    /// # Panics
    /// Too few pages, or tokens that don't continue what the slot holds.
    pub(crate) fn begin(&mut self, sequences: impl Iterator<Item = (usize, Range<usize>)>) {
        for (slot, tokens) in sequences {
            self.pages.write(slot, tokens);
        }
        self.make_copies();
    }

    /// Takes room for one more token in each of the slots `0..batch`.
    ///
    /// # Panics
    /// Too few pages.
    pub(crate) fn make_room(&mut self, batch: usize) {
        for slot in 0..batch {
            assert!(self.pages.make_room(slot), "no page for slot {slot}");
        }
        self.make_copies();
    }

    /// Counts the tokens that a decode step of the slots `0..batch` has written.
    pub(crate) fn push(&mut self, batch: usize) {
        (0..batch).for_each(|slot| self.pages.push(slot));
    }

    fn make_copies(&mut self) {
        let copies = self.pages.take_copies();
        if copies.is_empty() {
            return;
        }
        let device = self.storage.main.device();
        let column = |pages: Vec<u32>| {
            let pages: Vec<i64> = pages.into_iter().map(i64::from).collect();
            Tensor::from_slice(&pages).to_device(device)
        };
        let (from, to) = copies.into_iter().unzip();
        let (from, to) = (column(from), column(to));
        for mut part in self.storage.in_pages(self.pages.num_pages()) {
            let copied = part.index_select(1, &from);
            let _ = part.index_copy_(1, &to, &copied);
        }
    }

    /// Makes slot `to` hold the sequence of slot `from` too.
    pub fn share_slot(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let held = self.pages.hold(from, self.pages.len(from));
        self.pages.share(&held, to);
        self.pages.release(held);
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
            KvCache::token_bytes(&heads, 1, Kind::Float),
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
        let bytes = KvCache::token_bytes(&latent, 10, Kind::BFloat16);
        assert_eq!(bytes, 61 * 10 * 2 * (576 + 128));
        let cache = KvCache::new(
            &ModelConfig {
                num_hidden_layers: 1,
                ..latent
            },
            3,
            40,
            Kind::BFloat16,
            Device::Cpu,
        );
        let KeyValueCache::Latent(latents) = &cache.layers[0].main else {
            panic!("heads are cached");
        };
        // Two pages of 32 a slot.
        assert_eq!(latents.size(), [3 * 64, 576]);
    }

    #[test]
    fn a_cache_that_grows_keeps_what_it_holds() {
        let config = ModelConfig {
            num_hidden_layers: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            ..ModelConfig::sizeless_llama()
        };
        let mut cache = KvCache::new(&config, 2, 32, Kind::Float, Device::Cpu);
        cache.begin([(0, 0..3), (1, 0..32)].into_iter());
        let rows = |cache: &KvCache| match &cache.layers[1].main {
            KeyValueCache::Heads { v, .. } => v.shallow_clone(),
            KeyValueCache::Latent(_) => panic!("latents are cached"),
        };
        let row = cache.pages.row(1, 31);
        let _ = rows(&cache).get(row).fill_(7.0);
        cache.reserve(&config, 33, 4);
        assert_eq!(rows(&cache).size(), [4 * 32, 1, 4]);
        assert_eq!(rows(&cache).get(row).double_value(&[0, 3]), 7.0);
        cache.make_room(2);
        assert_eq!((cache.pages.table(1), cache.place().1), (&[1, 2][..], 2));
    }
}
