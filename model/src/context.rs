//! What the layers of one forward pass share: positions, visibility, rotations.

use std::cell::OnceCell;

use kernels::dsa::gpu::indexer::Visibility;
use kernels::fused::varlen::{VarlenPlan, VarlenSequence};
use kernels::paged::{self, PageTable};
use kernels::tch::{Device, Kind, Tensor};

use crate::config::{ModelConfig, YarnConfig};
use crate::input::{Document, PackedInput};
use crate::kv_cache::KvCache;
use crate::rope::{RopeLayout, Rotation, inverse_frequencies};

/// Rotations of the main heads and of the indexer's heads for one set of tokens.
#[derive(Debug)]
pub(crate) struct Rotations {
    pub(crate) main: Rotation,
    pub(crate) index: Option<Rotation>,
}

impl Rotations {
    pub(crate) fn new(config: &ModelConfig, positions: &Tensor, kind: Kind) -> Rotations {
        let yarn = config.yarn.as_ref();
        let factor = yarn.map_or(1.0, YarnConfig::rotation_factor);
        let rotation = |dim, interleave| {
            let frequencies = inverse_frequencies(dim, config.rope_theta, yarn);
            let layout = RopeLayout::of(interleave);
            Rotation::new(positions, &frequencies, factor, layout, kind)
        };
        let interleave = config.mla.as_ref().is_some_and(|mla| mla.rope_interleave);
        Rotations {
            main: rotation(config.head_dim, interleave),
            index: config
                .dsa
                .as_ref()
                .map(|dsa| rotation(config.index_rope_dim(dsa), dsa.rope_interleave)),
        }
    }
}

/// One document of a pack.
#[derive(Debug)]
pub(crate) struct DocumentContext {
    pub(crate) start: i64,
    /// Tokens in the pack.
    pub(crate) len: i64,
    /// Tokens before them that lie in the cache. Indices within the document count them.
    pub(crate) past: i64,
    /// With those before.
    pub(crate) trunk_len: i64,
    /// Keys that the query seeing most sees.
    pub(crate) most_visible: i64,
    /// First of its keys among those of all documents.
    key_start: i64,
    branch_lens: Vec<i64>,
    device: Device,
    branch_starts: OnceCell<Tensor>,
    visible: OnceCell<Tensor>,
    varlen_plan: OnceCell<VarlenPlan>,
}

/// Which keys some rows of a document see.
#[derive(Debug)]
pub(crate) struct RowVisibility {
    first: i64,
    trunk_len: i64,
    branch_starts: Tensor,
}

impl RowVisibility {
    pub(crate) fn as_kernels_take_it(&self) -> Visibility<'_> {
        Visibility {
            first: self.first,
            trunk_len: self.trunk_len,
            branch_starts: &self.branch_starts,
        }
    }
}

/// A pack, prepared once for all layers.
#[derive(Debug)]
pub(crate) struct PackContext {
    pub(crate) documents: Vec<DocumentContext>,
    pub(crate) rotations: Rotations,
    /// Position of every token in its own sequence, `[T]` i64.
    pub(crate) positions: Tensor,
    pub(crate) num_tokens: i64,
    varlen_plan: OnceCell<VarlenPlan>,
    key_plan: OnceCell<VarlenPlan>,
}

impl PackContext {
    pub(crate) fn new(config: &ModelConfig, input: &PackedInput, kind: Kind) -> PackContext {
        PackContext::behind(config, input, &vec![0; input.documents.len()], kind)
    }

    /// A pack whose documents continue sequences: of each so many tokens lie in the cache. Those have no branches.
    pub(crate) fn behind(
        config: &ModelConfig,
        input: &PackedInput,
        pasts: &[usize],
        kind: Kind,
    ) -> PackContext {
        let device = input.tokens.device();
        let mut key_start = 0;
        let documents = input.documents.iter().zip(pasts);
        let documents: Vec<DocumentContext> = documents
            .map(|(document, &past)| {
                let document = DocumentContext::new(document, past as i64, key_start, device);
                key_start += document.num_keys();
                document
            })
            .collect();
        let positions = input.documents.iter().zip(pasts);
        let positions: Vec<i64> = positions
            .flat_map(|(document, &past)| {
                let positions = document.positions().into_iter();
                positions.map(move |position| position + past as i64)
            })
            .collect();
        let positions = kernels::upload(&positions, device);
        PackContext {
            documents,
            rotations: Rotations::new(config, &positions, kind),
            positions,
            num_tokens: input.num_tokens(),
            varlen_plan: OnceCell::new(),
            key_plan: OnceCell::new(),
        }
    }

    /// The pack as sequences that attend to themselves, made when first asked for: of each document the trunk, and
    /// each branch behind the trunk. A single branch simply continues it.
    pub(crate) fn varlen_plan(&self) -> &VarlenPlan {
        self.varlen_plan.get_or_init(|| {
            let sequences = self
                .documents
                .iter()
                .flat_map(|document| document.sequences(document.start));
            let sequences: Vec<VarlenSequence> = sequences.collect();
            VarlenPlan::new(&sequences, self.num_tokens, self.positions.device())
        })
    }

    /// The documents as sequences over the keys of all of them, made when first asked for. They have no branches.
    pub(crate) fn key_plan(&self) -> &VarlenPlan {
        self.key_plan.get_or_init(|| {
            let sizes = self.documents.iter().map(|d| [d.len, d.num_keys()]);
            VarlenPlan::of_gathered(&sizes.collect::<Vec<_>>(), self.positions.device())
        })
    }

    /// The cache's row of each token, `[T]` i64, where the documents go to `slots`.
    pub(crate) fn cache_rows(&self, cache: &KvCache, slots: &[usize]) -> Tensor {
        self.rows_of_slots(cache, slots, |document| document.past)
    }

    /// The cache's row of each key of all documents, those before them included; `None` where there are none.
    pub(crate) fn key_rows(&self, cache: &KvCache, slots: &[usize]) -> Option<Tensor> {
        let continues = self.documents.iter().any(|document| document.past > 0);
        continues.then(|| self.rows_of_slots(cache, slots, |_| 0))
    }

    fn rows_of_slots(
        &self,
        cache: &KvCache,
        slots: &[usize],
        first: impl Fn(&DocumentContext) -> i64,
    ) -> Tensor {
        let documents = self.documents.iter().zip(slots);
        let rows = documents.flat_map(|(document, &slot)| {
            let tokens = first(document) as usize..document.num_keys() as usize;
            tokens.map(move |position| cache.pages.row(slot, position))
        });
        let rows: Vec<i64> = rows.collect();
        kernels::upload(&rows, self.positions.device())
    }

    /// Attended over visible keys, averaged over tokens, when each query attends to at most `topk`.
    pub(crate) fn key_share(&self, documents: &[Document], topk: i64) -> f64 {
        let share = |visible: i64| topk.min(visible) as f64 / visible as f64;
        let visible = documents.iter().zip(&self.documents);
        let visible = visible.flat_map(|(document, context)| {
            let positions = document.positions().into_iter();
            positions.map(|position| context.past + position + 1)
        });
        visible.map(share).sum::<f64>() / self.num_tokens as f64
    }
}

impl DocumentContext {
    fn new(document: &Document, past: i64, key_start: i64, device: Device) -> DocumentContext {
        assert!(
            past == 0 || document.branch_lens.is_empty(),
            "branches behind cached tokens"
        );
        let trunk_len = past + document.trunk_len;
        DocumentContext {
            start: document.start,
            len: document.num_tokens(),
            past,
            key_start,
            trunk_len,
            most_visible: trunk_len + document.branch_lens.iter().copied().max().unwrap_or(0),
            branch_lens: document.branch_lens.clone(),
            device,
            branch_starts: OnceCell::new(),
            visible: OnceCell::new(),
            varlen_plan: OnceCell::new(),
        }
    }

    /// Tokens, those before included.
    pub(crate) fn num_keys(&self) -> i64 {
        self.past + self.len
    }

    pub(crate) fn is_branched(&self) -> bool {
        self.branch_lens.len() > 1
    }

    /// Document-relative start of each token's own branch, `[num_keys]` i64, made when first asked for.
    pub(crate) fn branch_starts(&self) -> &Tensor {
        self.branch_starts.get_or_init(|| {
            let document = Document {
                start: self.start,
                trunk_len: self.trunk_len,
                branch_lens: self.branch_lens.clone(),
            };
            kernels::upload(&document.branch_starts(), self.device)
        })
    }

    /// Which keys the tokens `first..first + rows` see.
    pub(crate) fn visibility(&self, first: i64, rows: i64) -> RowVisibility {
        RowVisibility {
            first,
            trunk_len: self.trunk_len,
            branch_starts: self.branch_starts().narrow(0, first, rows),
        }
    }

    /// This document alone as a pack, made when first asked for.
    pub(crate) fn varlen_plan(&self) -> &VarlenPlan {
        self.varlen_plan
            .get_or_init(|| VarlenPlan::new(&self.sequences(0), self.len, self.device))
    }

    /// The sequences of the document, whose first token is row `start`.
    fn sequences(&self, start: i64) -> Vec<VarlenSequence> {
        let end_of_trunk = start + self.trunk_len;
        if !self.is_branched() {
            let end = start + self.len;
            return vec![VarlenSequence {
                queries: start..end,
                keys: vec![start..end_of_trunk, end_of_trunk..end],
            }];
        }
        let trunk = start..end_of_trunk;
        let mut sequences = vec![VarlenSequence {
            queries: trunk.clone(),
            keys: Vec::from([trunk.clone()]),
        }];
        let mut next = end_of_trunk;
        for len in &self.branch_lens {
            let branch = next..next + len;
            next = branch.end;
            sequences.push(VarlenSequence {
                queries: branch.clone(),
                keys: vec![trunk.clone(), branch],
            });
        }
        sequences
    }

    /// Keys each query sees, `[len, len]` bool, made when first asked for: sparse attention never does.
    /// `None` where plain causal order says it, as for a single branch behind its trunk.
    pub(crate) fn visible(&self) -> Option<&Tensor> {
        self.is_branched().then(|| {
            self.visible.get_or_init(|| {
                let options = (Kind::Int64, self.device);
                let keys = Tensor::arange(self.len, options).unsqueeze(0);
                let queries = keys.transpose(0, 1);
                let own = keys
                    .ge_tensor(&self.branch_starts().unsqueeze(1))
                    .logical_or(&keys.lt(self.trunk_len));
                keys.le_tensor(&queries).logical_and(&own)
            })
        })
    }

    /// Positions of the tokens `first..first + rows` in their own sequences, `[rows]`.
    pub(crate) fn positions(&self, first: i64, rows: i64) -> Tensor {
        let options = (Kind::Int64, self.device);
        self.to_positions(
            &Tensor::arange_start(first, first + rows, options).unsqueeze(1),
            first,
        )
        .squeeze_dim(1)
    }

    /// Indices of keys within this document as positions in the sequence of their query; absent ones
    /// (-1) stay. `keys` `[rows, K]` of the tokens from `first` on.
    pub(crate) fn to_positions(&self, keys: &Tensor, first: i64) -> Tensor {
        keys.where_self(&keys.lt(self.trunk_len), &(keys - self.shifts(keys, first)))
    }

    /// The inverse of [`DocumentContext::to_positions`].
    pub(crate) fn to_indices(&self, positions: &Tensor, first: i64) -> Tensor {
        let shifted = positions + self.shifts(positions, first);
        positions.where_self(&positions.lt(self.trunk_len), &shifted)
    }

    /// How far a token's own branch lies behind where its sequence would continue the trunk, `[rows, 1]`.
    fn shifts(&self, keys: &Tensor, first: i64) -> Tensor {
        let starts = self.branch_starts().narrow(0, first, keys.size()[0]);
        (starts - self.trunk_len).unsqueeze(1)
    }

    /// The rows of this document in a tensor over the pack.
    pub(crate) fn rows(&self, x: &Tensor) -> Tensor {
        x.narrow(0, self.start, self.len)
    }

    /// The rows of this document's keys in a tensor over the keys of all documents.
    pub(crate) fn keys(&self, x: &Tensor) -> Tensor {
        x.narrow(0, self.key_start, self.num_keys())
    }
}

/// One decode step over slots `0..B`, whose new tokens have room in the cache.
#[derive(Debug)]
pub(crate) struct DecodeContext {
    pub(crate) rotations: Rotations,
    /// Row of the cache for the new token of each slot, `[B]` i64.
    pub(crate) rows: Tensor,
    /// Tokens each slot sees, the new one included.
    pub(crate) lengths: Vec<i64>,
    /// Tokens of the longest sequence after this step.
    pub(crate) max_len: i64,
    /// Position of the new token of each slot, `[B]` i64.
    positions: Tensor,
    /// i32 `[B, width]` flat, 0 behind a slot's last page.
    pages: Vec<i32>,
    width: usize,
    page: usize,
    visible: OnceCell<Tensor>,
    page_ids: OnceCell<Tensor>,
}

impl DecodeContext {
    pub(crate) fn new(
        config: &ModelConfig,
        cache: &KvCache,
        batch: usize,
        kind: Kind,
        device: Device,
    ) -> DecodeContext {
        let positions = cache.lengths(batch);
        let max_len = positions.iter().copied().max().unwrap_or(0) + 1;
        let width = cache.pages.pages_for(max_len as usize);
        let rows = positions.iter().enumerate();
        let rows: Vec<i64> = rows
            .map(|(slot, &position)| cache.pages.row(slot, position as usize))
            .collect();
        let lengths = positions.iter().map(|position| position + 1).collect();
        let positions = Tensor::from_slice(&positions).to_device(device);
        DecodeContext {
            rotations: Rotations::new(config, &positions, kind),
            rows: Tensor::from_slice(&rows).to_device(device),
            lengths,
            max_len,
            positions,
            pages: cache.tables(batch, width),
            width,
            page: cache.pages.page_tokens(),
            visible: OnceCell::new(),
            page_ids: OnceCell::new(),
        }
    }

    /// Where the slots' tokens lie, on the host.
    pub(crate) fn table(&self) -> PageTable<'_> {
        PageTable {
            pages: &self.pages,
            width: self.width,
            page: self.page,
        }
    }

    /// The same on the device, `[B, width]` i64.
    fn page_ids(&self) -> &Tensor {
        self.page_ids.get_or_init(|| {
            let ids = Tensor::from_slice(&self.pages).view([-1, self.width as i64]);
            ids.to_device(self.rows.device()).to_kind(Kind::Int64)
        })
    }

    /// The tokens of each slot side by side: `[R, ...]` of the cache to `[B, max_len, ...]`.
    pub(crate) fn gathered(&self, cache: &Tensor) -> Tensor {
        let (ids, batch) = (self.page_ids().view([-1]), self.lengths.len() as i64);
        paged::gather(cache, &ids, batch, self.page as i64).narrow(1, 0, self.max_len)
    }

    /// Rows of the tokens `selected` `[B, K]` of each slot; absent ones (-1) stay.
    pub(crate) fn rows_of(&self, selected: &Tensor) -> Tensor {
        let (tokens, page) = (selected.clamp_min(0), self.page as i64);
        let of_page = tokens.divide_scalar_mode(page, "floor");
        let rows = self.page_ids().gather(1, &of_page, false) * page + tokens.remainder(page);
        rows.masked_fill(&selected.lt(0), -1)
    }

    /// Tokens each slot sees, `[B, max_len]` bool, made when first asked for.
    pub(crate) fn visible(&self) -> &Tensor {
        self.visible.get_or_init(|| {
            let columns = Tensor::arange(self.max_len, (Kind::Int64, self.positions.device()));
            columns.unsqueeze(0).le_tensor(&self.positions.unsqueeze(1))
        })
    }

    /// Every key that each slot sees, `[B, max_len]`, -1 for absent.
    pub(crate) fn all_in_sight(&self) -> Tensor {
        let keys = Tensor::arange(self.max_len, (Kind::Int64, self.positions.device()));
        let keys = keys.unsqueeze(0).expand_as(self.visible());
        keys.masked_fill(&self.visible().logical_not(), -1)
    }
}
