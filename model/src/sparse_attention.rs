//! Sparse attention of one document: select, attend, and the indexer's loss, tile by tile of queries.
//!
//! S_t = the topk keys of highest index score;  o_t = attention over S_t;  loss = KL(head sums over S_t || softmax of the scores).
//! On a GPU in bf16 kernels of our own do all three ([`kernels::dsa::gpu`]); elsewhere libtorch's operations, in f32.
//! Queries are the document's tokens in the pack, behind whatever lies in the cache. L is their number, K the keys selected, dv the width of what heads attend to.

use kernels::dsa;
use kernels::dsa::Values;
use kernels::dsa::gpu::attention::SelectedAttention;
use kernels::dsa::gpu::choice::Way;
use kernels::dsa::gpu::indexer::IndexerKernels;
use kernels::dsa::gpu::masked::MaskedAttention;
use kernels::tch::{Kind, Tensor};

use crate::attention::{AttentionRequest, HeadValues, Heads, PackRecord};
use crate::context::{DocumentContext, RowVisibility};
use crate::indexer::{Indexer, IndexerStates};
use crate::indexer_loss::{self, GPU_SCORES, TiledLoss};
use crate::selection::{self, Selection};

/// Query rows whose scores are alive at once, O(rows * L).
const SPARSE_TILE: i64 = 256;
/// Query rows of a document of several tiles whose attention is alive at once: it is computed again
/// in the backward pass, since the graphs of all tiles together would take O(heads * L * topk).
const RECOMPUTED_ROWS: i64 = 128;

/// What one document's attention needs besides its heads.
#[derive(Debug)]
pub(crate) struct SparseAttention<'a> {
    pub(crate) indexer: &'a Indexer,
    pub(crate) document: &'a DocumentContext,
    pub(crate) request: &'a AttentionRequest,
    pub(crate) num_heads: i64,
    pub(crate) softmax_scale: f64,
    /// Taken on a GPU.
    pub(crate) way: Way,
}

impl SparseAttention<'_> {
    /// The heads, made by `heads` for gathered keys or for masked ones, and what they attended to, `[L, heads, dv]`; adds the
    /// document's loss, where asked for, and what became of its keys to `record`.
    pub(crate) fn attend(
        &self,
        heads: impl Fn(bool) -> Heads,
        index: IndexerStates,
        record: &mut PackRecord,
    ) -> (Heads, Tensor) {
        let num_keys = self.document.num_keys();
        let num_selected = self.indexer.topk().min(num_keys);
        if let Some(kernels) = IndexerKernels::of(&index.q, &index.k)
            && let Some((heads, attention)) = self.on_a_gpu(&heads, num_selected)
        {
            let attended = self.attend_by_kernels(attention, kernels, index, record);
            return (heads, attended);
        }
        let heads = heads(dsa::gathers(num_keys, num_selected));
        let attended = self.attend_by_tiles(&heads, index, record);
        (heads, attended)
    }

    /// The heads in the form of the fastest way there, and that way; `None` for what kernels don't know.
    fn on_a_gpu(
        &self,
        heads: &impl Fn(bool) -> Heads,
        num_selected: i64,
    ) -> Option<(Heads, GpuAttention)> {
        let scale = self.softmax_scale;
        if self.way == Way::Masked {
            let heads = heads(false);
            if let HeadValues::Own(v) = &heads.v
                && let Some(masked) = MaskedAttention::new(&heads.q, &heads.k, v, scale)
            {
                return Some((heads, GpuAttention::Masked(masked)));
            }
        }
        let heads = heads(true);
        let (q, k, v) = (&heads.q, &heads.k, heads.v.values());
        let gathered = SelectedAttention::new(q, k, v, num_selected, scale)?;
        Some((heads, GpuAttention::Gathered(gathered)))
    }

    fn attend_by_kernels(
        &self,
        mut attention: GpuAttention,
        kernels: IndexerKernels,
        index: IndexerStates,
        record: &mut PackRecord,
    ) -> Tensor {
        let document = self.document;
        let width = self.indexer.topk().min(document.num_keys());
        let mut tiles = Tiles::new(self, width);
        let mut loss = TiledLoss::new(index, self.request.indexer_loss);
        let rows_at_once =
            (GPU_SCORES / document.num_keys() / SPARSE_TILE * SPARSE_TILE).max(SPARSE_TILE);
        let mut first = 0;
        while first < document.len {
            let rows = rows_at_once.min(document.len - first);
            let tile = loss.rows(first, rows);
            let index_of_first = document.past + first;
            let visibility = document.visibility(index_of_first, rows);
            let scores = kernels.scores(tile.for_kernels(), visibility.as_kernels_take_it());
            let own = kernels.select(&scores, width, index_of_first);
            let selected = tiles.choose(own, first, record);
            attention.attend(first, &selected);
            if self.request.indexer_loss {
                let sums = attention.head_probs_sum(&selected, &visibility);
                let heads = (&sums, self.num_heads);
                loss.add_by_kernel(
                    &kernels,
                    &tile,
                    Some(&selected.to_kind(Kind::Int)),
                    &scores,
                    heads,
                );
            }
            first += rows;
        }
        tiles.finish(loss, record);
        attention.into_output()
    }

    fn attend_by_tiles(
        &self,
        heads: &Heads,
        index: IndexerStates,
        record: &mut PackRecord,
    ) -> Tensor {
        let document = self.document;
        let mut tiles = Tiles::new(self, self.indexer.topk().min(document.num_keys()));
        let mut loss = TiledLoss::new(index, self.request.indexer_loss);
        // Once, not once a tile: the copy is kept for the backward pass, and gradients add up in it.
        let kind = dsa::accumulation_kind(&heads.q);
        let k = heads.k.to_kind(kind);
        let (own_values, prefix) = match &heads.v {
            HeadValues::Own(v) => (Some(v.to_kind(kind)), 0),
            HeadValues::KeyPrefix(columns) => (None, *columns),
        };
        let rows_at_once = match document.len > SPARSE_TILE {
            true => RECOMPUTED_ROWS,
            false => SPARSE_TILE,
        };
        let mut outputs = Vec::new();
        let mut first = 0;
        while first < document.len {
            let rows = SPARSE_TILE.min(document.len - first);
            let tile = loss.tile(first, rows);
            let (own, scores) = self.indexer.select(&tile, document, document.past + first);
            let selected = tiles.choose(own, first, record);
            // No query sees a key after itself.
            let in_sight = |x: &Tensor| x.narrow(0, 0, document.past + first + rows);
            let own_values = own_values.as_ref().map(in_sight);
            let values = own_values
                .as_ref()
                .map_or(Values::KeyPrefix(prefix), Values::Own);
            let attended = dsa::attend_selected(
                &heads.q.narrow(0, first, rows),
                &in_sight(&k),
                values,
                &selected,
                self.softmax_scale,
                rows_at_once as usize,
            );
            if self.request.indexer_loss {
                let scores = scores.of_selected(&tile, &selected);
                let sum = &attended.head_probs_sum;
                loss.add(
                    tile,
                    &indexer_loss::sparse_loss(&scores, sum, self.num_heads),
                );
            }
            outputs.push(attended.output);
            first += rows;
        }
        tiles.finish(loss, record);
        Tensor::cat(&outputs, 0)
    }
}

/// A way to attend on a GPU, by rows of queries in order.
#[derive(Debug)]
enum GpuAttention {
    Gathered(SelectedAttention),
    Masked(MaskedAttention),
}

impl GpuAttention {
    fn attend(&mut self, first: i64, selected: &Tensor) {
        match self {
            GpuAttention::Gathered(attention) => attention.attend(first, selected),
            GpuAttention::Masked(attention) => attention
                .attend(first, selected)
                .expect("cuDNN knows bf16 heads of up to 192"),
        }
    }

    /// Of rows that have attended, `[rows, K]`.
    fn head_probs_sum(&self, selected: &Tensor, visibility: &RowVisibility) -> Tensor {
        let visibility = visibility.as_kernels_take_it();
        match self {
            GpuAttention::Gathered(attention) => {
                attention.head_probs_sum(visibility.first, selected.size()[0])
            }
            GpuAttention::Masked(attention) => attention.head_probs_sum(selected, visibility),
        }
    }

    fn into_output(self) -> Tensor {
        match self {
            GpuAttention::Gathered(attention) => attention.into_output(),
            GpuAttention::Masked(attention) => attention.into_output(),
        }
    }
}

/// What becomes of the selected keys, tile by tile: recorded, or replaced by those that are replayed.
#[derive(Debug)]
struct Tiles<'a> {
    sparse: &'a SparseAttention<'a>,
    /// Keys a query, at most.
    width: i64,
    replayed: Option<Tensor>,
    recorded: Vec<Tensor>,
}

impl<'a> Tiles<'a> {
    fn new(sparse: &'a SparseAttention<'a>, width: i64) -> Tiles<'a> {
        Tiles {
            sparse,
            width,
            replayed: sparse.request.replayed(sparse.document),
            recorded: Vec::new(),
        }
    }

    /// The keys `[rows, K]` that the queries from `first` on attend to, where `own` are those they would
    /// select. Queries are counted from the document's first in the pack.
    fn choose(&mut self, own: Tensor, first: i64, record: &mut PackRecord) -> Tensor {
        let document = self.sparse.document;
        let index_of_first = document.past + first;
        let (rows, width) = own.size2().expect("selected keys are [rows, K]");
        let selected = match &self.replayed {
            None => own,
            Some(keys) => {
                let keys = selection::of_width(&keys.narrow(0, first, rows), width);
                let (positions, in_sight) = (
                    document.positions(index_of_first, rows),
                    index_of_first + rows,
                );
                let topk = self.sparse.indexer.topk();
                let own = own.to_kind(Kind::Int64);
                let counts = selection::agreement(&own, &keys, &positions, topk, in_sight);
                record.agreements.push(counts);
                keys
            }
        };
        if let Selection::Record = self.sparse.request.selection {
            let positions = document.to_positions(&selected.to_kind(Kind::Int64), index_of_first);
            self.recorded
                .push(selection::of_width(&positions, self.width));
        }
        selected
    }

    fn finish(self, loss: TiledLoss, record: &mut PackRecord) {
        if self.sparse.request.indexer_loss {
            record.losses.push(loss.sum());
        }
        if !self.recorded.is_empty() {
            record.selected.push(Tensor::cat(&self.recorded, 0));
        }
    }
}
