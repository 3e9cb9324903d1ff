//! Attention of one layer: what grouped-query and latent attention share.
//!
//! A [`MainAttention`] turns hidden states into queries, keys and values; here they attend, to every
//! visible key or to those the lightning indexer selects, document by document, and the indexer's
//! losses and the selected keys are collected. Where a document is no longer than `index_topk` both
//! are the same and the dense kernel runs. Shapes: T tokens of a pack, L of a document, B cached
//! sequences; dv the width of what heads attend to.

use kernels::dsa::Values;
use kernels::tch::{self, Kind, Tensor};

use crate::config::ModelConfig;
use crate::context::{DecodeContext, DocumentContext, PackContext};
use crate::gqa::GroupedQueryAttention;
use crate::indexer::{Indexer, IndexerStates};
use crate::indexer_loss::{self, TiledLoss};
use crate::kv_cache::LayerCache;
use crate::mla::MultiHeadLatentAttention;
use crate::parameter::{Parameter, ParameterLoader};
use crate::rope::Rotation;
use crate::transformer::Attention;
use crate::weights::WeightError;

/// Query rows of the sparse path whose scores are alive at once, O(rows * L).
const SPARSE_TILE: i64 = 256;
/// Query rows of a document of several tiles whose attention is alive at once: it is computed again
/// in the backward pass, since the graphs of all tiles together would take O(heads * L * topk).
const RECOMPUTED_ROWS: i64 = 128;

/// What a packed pass wants of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionRequest {
    pub(crate) attention: Attention,
    pub(crate) indexer_loss: bool,
    pub(crate) record_selected: bool,
}

/// Where prefill puts keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheWrite<'a> {
    pub(crate) cache: &'a LayerCache,
    /// Slot of each document.
    pub(crate) slots: &'a [usize],
}

/// Result of a packed pass.
#[derive(Debug)]
pub(crate) struct AttentionOutput {
    /// `[T, hidden_size]`.
    pub(crate) y: Tensor,
    /// Indexer KL, summed over tokens.
    pub(crate) indexer_loss: Option<Tensor>,
    /// Selected keys of each token, relative to its document.
    pub(crate) selected: Option<Vec<Vec<i64>>>,
}

/// What heads attend to, besides their keys.
#[derive(Debug)]
pub(crate) enum HeadValues {
    /// `[L, kv_heads, dv]`.
    Own(Tensor),
    /// The leading columns of the keys, that many.
    KeyPrefix(i64),
}

/// Queries, keys and values of one document, after RoPE.
#[derive(Debug)]
pub(crate) struct Heads {
    /// `[L, heads, d]`.
    pub(crate) q: Tensor,
    /// `[L, kv_heads, d]`.
    pub(crate) k: Tensor,
    pub(crate) v: HeadValues,
}

/// The part of attention in which the families differ.
pub(crate) trait MainAttention {
    /// What tokens are projected to, over a pack or a decode step.
    type States;

    fn states(&self, h: &Tensor, rotation: &Rotation) -> Self::States;

    /// What the indexer makes its queries of, `[T, indexer input]`, if not of the hidden states.
    fn indexer_input<'a>(&self, states: &'a Self::States) -> Option<&'a Tensor>;

    /// Heads for attention to every visible key.
    fn dense_heads(&self, states: &Self::States, document: &DocumentContext) -> Heads;

    /// Heads for attention to `num_selected` keys a query.
    fn sparse_heads(
        &self,
        states: &Self::States,
        document: &DocumentContext,
        num_selected: i64,
    ) -> Heads;

    /// Attended values `[L, heads, dv]` to head outputs `[L, heads * v_head_dim]`.
    fn head_outputs(&self, attended: &Tensor, heads: &Heads) -> Tensor;

    /// Writes a document's keys and values to `slot`.
    fn write_prompt(
        &self,
        states: &Self::States,
        document: &DocumentContext,
        cache: &LayerCache,
        slot: usize,
    );

    /// Writes the keys and values of one new token a slot.
    fn write_step(&self, states: &Self::States, step: &DecodeContext, cache: &LayerCache);

    /// Head outputs `[B, heads * v_head_dim]` of one new token a slot, over `selected` (`[B, K]`, -1 for
    /// absent) or over every cached key.
    fn attend_cached(
        &self,
        states: &Self::States,
        step: &DecodeContext,
        cache: &LayerCache,
        selected: Option<&Tensor>,
    ) -> Tensor;

    /// Head outputs to the residual stream.
    fn output(&self, head_outputs: &Tensor) -> Tensor;

    fn parameters(&self) -> Vec<&Parameter>;
}

#[derive(Debug)]
enum Family {
    Gqa(GroupedQueryAttention),
    Mla(MultiHeadLatentAttention),
}

/// Attention of one layer with its indexer.
#[derive(Debug)]
pub(crate) struct AttentionLayer {
    family: Family,
    num_heads: i64,
    softmax_scale: f64,
    indexer: Option<Indexer>,
}

impl AttentionLayer {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
    ) -> Result<Self, WeightError> {
        let family = match &config.mla {
            None => Family::Gqa(GroupedQueryAttention::load(loader, prefix, config)?),
            Some(mla) => Family::Mla(MultiHeadLatentAttention::load(loader, prefix, config, mla)?),
        };
        let indexer = match &config.dsa {
            Some(dsa) => Some(Indexer::load(
                loader,
                &format!("{prefix}.indexer"),
                config,
                dsa,
            )?),
            None => None,
        };
        Ok(AttentionLayer {
            family,
            num_heads: config.num_attention_heads as i64,
            softmax_scale: config.softmax_scale(),
            indexer,
        })
    }

    /// Attention within each document of a pack. `h` `[T, hidden_size]` is the normalised input.
    pub(crate) fn packed(
        &self,
        h: &Tensor,
        pack: &PackContext,
        request: AttentionRequest,
        write: Option<CacheWrite>,
    ) -> AttentionOutput {
        match &self.family {
            Family::Gqa(main) => self.packed_by(main, h, pack, request, write),
            Family::Mla(main) => self.packed_by(main, h, pack, request, write),
        }
    }

    /// One new token a slot: `h` `[B, hidden_size]`; writes its key and value, then attends.
    pub(crate) fn cached(
        &self,
        h: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> Tensor {
        match &self.family {
            Family::Gqa(main) => self.cached_by(main, h, step, cache, attention),
            Family::Mla(main) => self.cached_by(main, h, step, cache, attention),
        }
    }

    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let mut all = match &self.family {
            Family::Gqa(main) => main.parameters(),
            Family::Mla(main) => main.parameters(),
        };
        all.extend(self.indexer.iter().flat_map(Indexer::parameters));
        all
    }

    fn packed_by<M: MainAttention>(
        &self,
        main: &M,
        h: &Tensor,
        pack: &PackContext,
        request: AttentionRequest,
        write: Option<CacheWrite>,
    ) -> AttentionOutput {
        let states = main.states(h, &pack.rotations.main);
        let index = self.indexer_states(h, main.indexer_input(&states), pack, request, write);
        if let Some(write) = write {
            for (document, &slot) in pack.documents.iter().zip(write.slots) {
                main.write_prompt(&states, document, write.cache, slot);
                if let (Some(index_k), Some(index)) = (&write.cache.index_k, &index) {
                    let mut place = index_k.select(0, slot as i64).narrow(0, 0, document.len);
                    place.copy_(&document.rows(&index.k));
                }
            }
        }
        let mut outputs = Vec::with_capacity(pack.documents.len());
        let mut losses = Vec::new();
        let mut selected = Vec::new();
        for document in &pack.documents {
            let index = index.as_ref().map(|index| index.of_document(document));
            let selects = |indexer: &Indexer| {
                request.attention == Attention::Sparse
                    && (document.most_visible > indexer.topk()
                        || request.indexer_loss
                        || request.record_selected)
            };
            let (heads, attended) = match (&self.indexer, index) {
                (Some(indexer), Some(index)) if selects(indexer) => {
                    let num_selected = indexer.topk().min(document.len);
                    let heads = main.sparse_heads(&states, document, num_selected);
                    let keys = request.record_selected.then_some(&mut selected);
                    let loss = request.indexer_loss.then_some(&mut losses);
                    let attended = self.attend_sparse(&heads, indexer, index, document, loss, keys);
                    (heads, attended)
                }
                (_, index) => {
                    let heads = main.dense_heads(&states, document);
                    if let (true, Some(index)) = (request.indexer_loss, index) {
                        let scale = self.softmax_scale;
                        let loss = indexer_loss::dense_loss(index, document, &heads, scale);
                        losses.push(loss);
                    }
                    let attended = attend_dense(&heads, document, self.softmax_scale);
                    (heads, attended)
                }
            };
            outputs.push(main.head_outputs(&attended, &heads));
        }
        AttentionOutput {
            y: main.output(&Tensor::cat(&outputs, 0)),
            indexer_loss: (!losses.is_empty()).then(|| Tensor::stack(&losses, 0).sum(Kind::Float)),
            selected: request.record_selected.then_some(selected),
        }
    }

    /// The indexer's states, where this pass needs them; tracked by autograd only for its loss.
    fn indexer_states(
        &self,
        h: &Tensor,
        query_input: Option<&Tensor>,
        pack: &PackContext,
        request: AttentionRequest,
        write: Option<CacheWrite>,
    ) -> Option<IndexerStates> {
        let (indexer, rotation) = (self.indexer.as_ref()?, pack.rotations.index.as_ref()?);
        let selects = request.attention == Attention::Sparse
            && (request.record_selected
                || pack
                    .documents
                    .iter()
                    .any(|d| d.most_visible > indexer.topk()));
        let query_input = query_input.unwrap_or(h);
        if request.indexer_loss {
            Some(indexer.states(h, query_input, rotation))
        } else if selects || write.is_some() {
            Some(tch::no_grad(|| indexer.states(h, query_input, rotation)))
        } else {
            None
        }
    }

    /// `[L, heads, dv]`; adds the document's loss to `losses` and its selected keys to `record`.
    fn attend_sparse(
        &self,
        heads: &Heads,
        indexer: &Indexer,
        index: IndexerStates,
        document: &DocumentContext,
        losses: Option<&mut Vec<Tensor>>,
        mut record: Option<&mut Vec<Vec<i64>>>,
    ) -> Tensor {
        let mut loss = TiledLoss::new(index, losses.is_some());
        // Once, not once a tile: the copy is kept for the backward pass, and gradients add up in it.
        let kind = kernels::dsa::accumulation_kind(&heads.q);
        let k = heads.k.to_kind(kind);
        let (own_values, prefix) = match &heads.v {
            HeadValues::Own(v) => (Some(v.to_kind(kind)), 0),
            HeadValues::KeyPrefix(columns) => (None, *columns),
        };
        let rows_at_once = match document.len > SPARSE_TILE {
            true => RECOMPUTED_ROWS,
            false => SPARSE_TILE,
        };
        let mut tiles = Vec::new();
        let mut first = 0;
        while first < document.len {
            let rows = SPARSE_TILE.min(document.len - first);
            let tile = loss.tile(first, rows);
            let (selected, scores) = indexer.select(&tile, document, first);
            // No query sees a key after itself.
            let in_sight = |x: &Tensor| x.narrow(0, 0, first + rows);
            let own_values = own_values.as_ref().map(in_sight);
            let values = own_values
                .as_ref()
                .map_or(Values::KeyPrefix(prefix), Values::Own);
            let attended = kernels::dsa::attend_selected(
                &heads.q.narrow(0, first, rows),
                &in_sight(&k),
                values,
                &selected,
                self.softmax_scale,
                rows_at_once as usize,
            );
            if losses.is_some() {
                let scores = scores.of_selected(&tile, &selected);
                let sum = &attended.head_probs_sum;
                loss.add(
                    tile,
                    &indexer_loss::sparse_loss(&scores, sum, self.num_heads),
                );
            }
            if let Some(record) = &mut record {
                let rows = Vec::<Vec<i64>>::try_from(&selected).expect("selected is [rows, k] i64");
                let present = |row: Vec<i64>| row.into_iter().filter(|&s| s >= 0).collect();
                record.extend(rows.into_iter().map(present));
            }
            tiles.push(attended.output);
            first += rows;
        }
        if let Some(losses) = losses {
            losses.push(loss.sum());
        }
        Tensor::cat(&tiles, 0)
    }

    fn cached_by<M: MainAttention>(
        &self,
        main: &M,
        h: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> Tensor {
        let states = main.states(h, &step.rotations.main);
        main.write_step(&states, step, cache);
        let selected = match (&self.indexer, &step.rotations.index, &cache.index_k) {
            (Some(indexer), Some(rotation), Some(index_k)) => {
                let query_input = main.indexer_input(&states).unwrap_or(h);
                let index = indexer.states(h, query_input, rotation);
                let at = [Some(&step.slots), Some(&step.positions)];
                let _ = index_k.shallow_clone().index_put_(&at, &index.k, false);
                let selects = attention == Attention::Sparse && step.max_len > indexer.topk();
                selects.then(|| indexer.select_cached(&index, step, index_k))
            }
            _ => None,
        };
        main.output(&main.attend_cached(&states, step, cache, selected.as_ref()))
    }
}

#[cfg(test)]
impl AttentionLayer {
    /// Index scores of a pack of one document, `[T, T]`, -inf where a key is not visible.
    pub(crate) fn index_scores(&self, h: &Tensor, pack: &PackContext) -> Tensor {
        let request = AttentionRequest {
            attention: Attention::Sparse,
            indexer_loss: false,
            record_selected: true,
        };
        let query_input = match &self.family {
            Family::Gqa(_) => None,
            Family::Mla(main) => {
                let states = main.states(h, &pack.rotations.main);
                main.indexer_input(&states).map(Tensor::shallow_clone)
            }
        };
        let states = self.indexer_states(h, query_input.as_ref(), pack, request, None);
        let states = states.expect("the layer has an indexer");
        crate::indexer::tile_scores(&states, &pack.documents[0], 0)
    }
}

/// Attention of one document to every visible key, `[L, heads, dv]`.
fn attend_dense(heads: &Heads, document: &DocumentContext, softmax_scale: f64) -> Tensor {
    let HeadValues::Own(v) = &heads.v else {
        panic!("dense attention takes values of their own");
    };
    let (width, v_width) = (heads.q.size()[2], v.size()[2]);
    let batch = |x: &Tensor| {
        // Zeros change no product, and kernels that keep no [L, L] want one width for all three.
        let missing = width.max(v_width) - x.size()[2];
        let x = match missing {
            0 => x.shallow_clone(),
            _ => x.constant_pad_nd([0, missing]),
        };
        x.transpose(0, 1).unsqueeze(0)
    };
    Tensor::scaled_dot_product_attention(
        &batch(&heads.q),
        &batch(&heads.k),
        &batch(v),
        document.visible(),
        0.0,
        document.visible().is_none(),
        softmax_scale,
        heads.q.size()[1] != heads.k.size()[1],
    )
    .squeeze_dim(0)
    .transpose(0, 1)
    .narrow(2, 0, v_width)
}
