//! Attention of one layer: what grouped-query and latent attention share.
//!
//! A [`MainAttention`] turns hidden states into queries, keys and values; here they attend, to every
//! visible key or to those the lightning indexer selects, document by document, and the indexer's
//! losses and the selected keys are collected. Where a document is no longer than `index_topk` both
//! are the same and the dense kernel runs. Shapes: T tokens of a pack, L of a document, B cached
//! sequences; dv the width of what heads attend to.

use kernels::dsa::Values;
use kernels::dsa::gpu::choice::{self, HeadShape, Problem, Way};
use kernels::tch::{self, Kind, Tensor};
use kernels::{KernelError, autograd};

use crate::config::ModelConfig;
use crate::context::{DecodeContext, DocumentContext, PackContext};
use crate::decode_graph::StepRecorder;
use crate::dense_attention::attend_dense;
use crate::gqa::GroupedQueryAttention;
use crate::indexer::{Indexer, IndexerStates};
use crate::indexer_loss;
use crate::kv_cache::LayerCache;
use crate::mla::MultiHeadLatentAttention;
use crate::parameter::{Parameter, ParameterLoader};
use crate::rope::Rotation;
use crate::selection::{self, Selection};
use crate::sparse_attention::SparseAttention;
use crate::transformer::Attention;
use crate::weights::WeightError;

/// What a packed pass wants of the attention of one layer.
#[derive(Debug)]
pub(crate) struct AttentionRequest {
    pub(crate) attention: Attention,
    pub(crate) indexer_loss: bool,
    /// Replays `[T, K]`.
    pub(crate) selection: Selection,
}

impl AttentionRequest {
    /// Recorded keys of a document's tokens, as indices within it.
    pub(crate) fn replayed(&self, document: &DocumentContext) -> Option<Tensor> {
        match &self.selection {
            Selection::Replay(keys) => {
                Some(document.to_indices(&document.rows(keys), document.past))
            }
            Selection::Free | Selection::Record => None,
        }
    }
}

/// Where prefill puts keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheWrite<'a> {
    pub(crate) cache: &'a LayerCache,
    /// The cache's row of each token, `[T]` i64.
    pub(crate) rows: &'a Tensor,
    /// The cache's row of each key of all documents, i64, where some continue what lies there.
    pub(crate) key_rows: Option<&'a Tensor>,
}

/// Result of a packed pass.
#[derive(Debug)]
pub(crate) struct AttentionOutput {
    /// `[T, hidden_size]`.
    pub(crate) y: Tensor,
    /// Indexer KL, summed over tokens.
    pub(crate) indexer_loss: Option<Tensor>,
    /// Selected keys, when recording.
    pub(crate) selected: Option<Tensor>,
    /// Under replay: recorded keys and how many of them free selection would choose, `[2]` i64.
    pub(crate) selection_agreement: Option<Tensor>,
}

/// What the documents of a pack yield besides the attended values.
#[derive(Debug, Default)]
pub(crate) struct PackRecord {
    pub(crate) losses: Vec<Tensor>,
    /// Positions `[L, K]` of each document, when recording; K differs.
    pub(crate) selected: Vec<Tensor>,
    pub(crate) agreements: Vec<Tensor>,
}

impl PackRecord {
    fn into_output(self, y: Tensor) -> AttentionOutput {
        let width = self.selected.iter().map(|keys| keys.size()[1]).max();
        let of_one_width = |width| {
            let keys = self.selected.iter();
            let keys: Vec<Tensor> = keys.map(|k| selection::of_width(k, width)).collect();
            Tensor::cat(&keys, 0)
        };
        let stacked = |parts: &[Tensor]| (!parts.is_empty()).then(|| Tensor::stack(parts, 0));
        AttentionOutput {
            y,
            indexer_loss: stacked(&self.losses).map(|losses| losses.sum(Kind::Float)),
            selected: width.map(of_one_width),
            selection_agreement: stacked(&self.agreements)
                .map(|counts| counts.sum_dim_intlist(0, false, Kind::Int64)),
        }
    }
}

/// What heads attend to, besides their keys.
#[derive(Debug)]
pub(crate) enum HeadValues {
    /// `[L, kv_heads, dv]`.
    Own(Tensor),
    /// The leading columns of the keys, that many.
    KeyPrefix(i64),
}

impl HeadValues {
    /// As [`kernels::dsa`] takes them.
    pub(crate) fn values(&self) -> Values<'_> {
        match self {
            HeadValues::Own(v) => Values::Own(v),
            HeadValues::KeyPrefix(columns) => Values::KeyPrefix(*columns),
        }
    }
}

/// Queries, keys and values of one document, after RoPE.
#[derive(Debug)]
pub(crate) struct Heads {
    /// `[L, heads, d]`.
    pub(crate) q: Tensor,
    /// `[L, kv_heads, d]`; before those of L lie those of tokens in the cache, where there are some.
    pub(crate) k: Tensor,
    pub(crate) v: HeadValues,
}

impl Heads {
    /// The values of the expanded form, or of grouped queries.
    pub(crate) fn own_values(&self) -> &Tensor {
        match &self.v {
            HeadValues::Own(v) => v,
            HeadValues::KeyPrefix(_) => panic!("dense attention takes values of their own"),
        }
    }
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

    /// Heads for attention to the selected keys of each query; with `gathers` they are gathered, else all others are masked.
    fn sparse_heads(
        &self,
        states: &Self::States,
        document: &DocumentContext,
        gathers: bool,
    ) -> Heads;

    /// Both of these forms in numbers.
    fn head_shape(&self) -> HeadShape;

    /// Attended values `[L, heads, dv]` to head outputs `[L, heads * v_head_dim]`.
    fn head_outputs(&self, attended: &Tensor, heads: &Heads) -> Tensor;

    /// Writes a pack's keys and values.
    fn write_prompts(&self, states: &Self::States, write: CacheWrite);

    /// The same with what lies in `rows` of the cache in place of their own keys and values.
    fn with_cached(&self, states: Self::States, cache: &LayerCache, rows: &Tensor) -> Self::States;

    /// Head outputs `[T, heads * v_head_dim]` of a whole pack over every visible key, all documents at once, with the
    /// cache written; `None` where only the way document by document can be gone.
    fn attend_pack(
        &self,
        _h: &Tensor,
        _pack: &PackContext,
        _write: Option<CacheWrite>,
    ) -> Option<Tensor> {
        None
    }

    /// Head outputs `[T, heads * v_head_dim]` of a whole pack over every visible key, all documents at once, where
    /// `states` has the keys of all of them; `None` where only the way document by document can be gone.
    fn attend_behind(&self, _states: &Self::States, _pack: &PackContext) -> Option<Tensor> {
        None
    }

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
        request: &AttentionRequest,
        write: Option<CacheWrite>,
    ) -> AttentionOutput {
        match &self.family {
            Family::Gqa(main) => self.packed_by(main, h, pack, request, write),
            Family::Mla(main) => self.packed_by(main, h, pack, request, write),
        }
    }

    /// One new token a slot: `h` `[B, hidden_size]`; writes its key and value, then attends. Beside the
    /// output the keys attended to, `[B, K]`, where attention is sparse.
    pub(crate) fn cached(
        &self,
        h: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> (Tensor, Option<Tensor>) {
        match &self.family {
            Family::Gqa(main) => self.cached_by(main, h, step, cache, attention),
            Family::Mla(main) => self.cached_by(main, h, step, cache, attention),
        }
    }

    /// Whether [`AttentionLayer::record`] can be used.
    pub(crate) fn can_be_recorded(&self) -> bool {
        match &self.family {
            Family::Gqa(main) => self.indexer.is_none() && main.can_be_recorded(),
            Family::Mla(_) => false,
        }
    }

    /// Puts a decode step on the recorder's queue: `h` to `y`, or with the norm's weight and epsilon `x` to itself.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        cache: &LayerCache,
        norm: Option<(&Tensor, f64)>,
    ) -> Result<(), KernelError> {
        match &self.family {
            Family::Gqa(main) => main.record(step, cache, norm),
            Family::Mla(_) => panic!("latent attention is not recorded"),
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
        request: &AttentionRequest,
        write: Option<CacheWrite>,
    ) -> AttentionOutput {
        let key_rows = write.and_then(|write| Some((write.cache, write.key_rows?)));
        if key_rows.is_none()
            && self.needs_no_indexer(pack, request, write)
            && let Some(head_outputs) = main.attend_pack(h, pack, write)
        {
            let mut record = PackRecord::default();
            for document in &pack.documents {
                self.record_all_in_sight(document, request, &mut record);
            }
            return record.into_output(main.output(&head_outputs));
        }
        let mut states = main.states(h, &pack.rotations.main);
        let mut index = self.indexer_states(h, main.indexer_input(&states), pack, request, write);
        if let Some(write) = write {
            main.write_prompts(&states, write);
            if let (Some(index_k), Some(index)) = (&write.cache.index_k, &index) {
                write_rows(index_k, write.rows, &index.k);
            }
        }
        if let Some((cache, rows)) = key_rows {
            assert!(!request.indexer_loss, "a loss over cached keys");
            states = main.with_cached(states, cache, rows);
            if let (Some(index_k), Some(index)) = (&cache.index_k, &mut index) {
                index.k = index_k.index_select(0, rows);
            }
            if self.needs_no_indexer(pack, request, write)
                && let Some(head_outputs) = main.attend_behind(&states, pack)
            {
                return PackRecord::default().into_output(main.output(&head_outputs));
            }
        }
        let mut outputs = Vec::with_capacity(pack.documents.len());
        let mut record = PackRecord::default();
        for document in &pack.documents {
            let index = index.as_ref().map(|index| index.of_document(document));
            let way = self.way(main, document);
            let selects = |index: &IndexerStates| {
                // Without kernels the loss is that of a selection, of all keys too.
                let has_choice = way != Some(Way::Dense);
                request.attention == Attention::Sparse
                    && (has_choice || request.indexer_loss && !index.has_kernels())
            };
            let (heads, attended) = match (&self.indexer, index) {
                (Some(indexer), Some(index)) if selects(&index) => {
                    let sparse = SparseAttention {
                        indexer,
                        document,
                        request,
                        num_heads: self.num_heads,
                        softmax_scale: self.softmax_scale,
                        way: way.expect("the layer has an indexer"),
                    };
                    let heads = |gathers| main.sparse_heads(&states, document, gathers);
                    sparse.attend(heads, index, &mut record)
                }
                (_, index) => {
                    self.record_all_in_sight(document, request, &mut record);
                    let heads = main.dense_heads(&states, document);
                    if let (true, Some(index)) = (request.indexer_loss, index) {
                        let scale = self.softmax_scale;
                        let loss = indexer_loss::dense_loss(index, document, &heads, scale);
                        record.losses.push(loss);
                    }
                    let attended = attend_dense(&heads, document, self.softmax_scale);
                    (heads, attended)
                }
            };
            outputs.push(main.head_outputs(&attended, &heads));
        }
        record.into_output(main.output(&Tensor::cat(&outputs, 0)))
    }

    /// How a document attends sparsely on a GPU; nothing without an indexer.
    fn way<M: MainAttention>(&self, main: &M, document: &DocumentContext) -> Option<Way> {
        let indexer = self.indexer.as_ref()?;
        let way = choice::choose(&Problem {
            len: document.len,
            most_visible: document.most_visible,
            topk: indexer.topk(),
            learns: autograd::is_enabled(),
            shape: main.head_shape(),
        });
        Some(match way {
            // Masks know documents that begin with their first key.
            Way::Masked if document.past > 0 => Way::Gathered,
            way => way,
        })
    }

    /// Whether this pass neither asks nor trains an indexer, nor writes its keys.
    fn needs_no_indexer(
        &self,
        pack: &PackContext,
        request: &AttentionRequest,
        write: Option<CacheWrite>,
    ) -> bool {
        let Some(indexer) = &self.indexer else {
            return true;
        };
        let selects = request.attention == Attention::Sparse
            && pack
                .documents
                .iter()
                .any(|document| document.most_visible > indexer.topk());
        !selects && !request.indexer_loss && write.is_none()
    }

    /// Records the selection of a document in which every query attends to all it sees.
    fn record_all_in_sight(
        &self,
        document: &DocumentContext,
        request: &AttentionRequest,
        record: &mut PackRecord,
    ) {
        if let (Some(indexer), Attention::Sparse, Selection::Record) =
            (&self.indexer, request.attention, &request.selection)
        {
            let width = indexer.topk().min(document.most_visible);
            let all = selection::all_in_sight(document, document.past, document.len, width);
            record.selected.push(all);
        }
    }

    /// The indexer's states, where this pass needs them; tracked by autograd only for its loss.
    fn indexer_states(
        &self,
        h: &Tensor,
        query_input: Option<&Tensor>,
        pack: &PackContext,
        request: &AttentionRequest,
        write: Option<CacheWrite>,
    ) -> Option<IndexerStates> {
        let (indexer, rotation) = (self.indexer.as_ref()?, pack.rotations.index.as_ref()?);
        let selects = request.attention == Attention::Sparse
            && pack
                .documents
                .iter()
                .any(|d| d.most_visible > indexer.topk());
        let query_input = query_input.unwrap_or(h);
        if request.indexer_loss {
            Some(indexer.states(h, query_input, rotation))
        } else if selects || write.is_some() {
            Some(tch::no_grad(|| indexer.states(h, query_input, rotation)))
        } else {
            None
        }
    }

    fn cached_by<M: MainAttention>(
        &self,
        main: &M,
        h: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> (Tensor, Option<Tensor>) {
        let states = main.states(h, &step.rotations.main);
        main.write_step(&states, step, cache);
        let selected = match (&self.indexer, &step.rotations.index, &cache.index_k) {
            (Some(indexer), Some(rotation), Some(index_k)) => {
                let query_input = main.indexer_input(&states).unwrap_or(h);
                let index = indexer.states(h, query_input, rotation);
                write_rows(index_k, &step.rows, &index.k);
                let selects = attention == Attention::Sparse && step.max_len > indexer.topk();
                selects.then(|| indexer.select_cached(&index, step, index_k))
            }
            _ => None,
        };
        let attended = main.attend_cached(&states, step, cache, selected.as_ref());
        (main.output(&attended), selected)
    }
}

#[cfg(test)]
impl AttentionLayer {
    /// Index scores of a pack of one document, `[T, T]`, -inf where a key is not visible.
    pub(crate) fn index_scores(&self, h: &Tensor, pack: &PackContext) -> Tensor {
        let request = AttentionRequest {
            attention: Attention::Sparse,
            indexer_loss: true,
            selection: Selection::Free,
        };
        let query_input = match &self.family {
            Family::Gqa(_) => None,
            Family::Mla(main) => {
                let states = main.states(h, &pack.rotations.main);
                main.indexer_input(&states).map(Tensor::shallow_clone)
            }
        };
        let states = self.indexer_states(h, query_input.as_ref(), pack, &request, None);
        let states = states.expect("the layer has an indexer");
        crate::indexer::tile_scores(&states, &pack.documents[0], 0)
    }
}

/// Puts `values` `[N, ...]` into the rows `[N]` of a cache `[R, ...]`.
pub(crate) fn write_rows(cache: &Tensor, rows: &Tensor, values: &Tensor) {
    let _ = cache
        .shallow_clone()
        .index_put_(&[Some(rows)], values, false);
}
