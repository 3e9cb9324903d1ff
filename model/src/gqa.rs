//! Grouped-query attention with RoPE, dense or over the keys a lightning indexer selects.
//!
//! q [T, heads, head_dim], k and v [T, kv_heads, head_dim]; query head j uses key head j / (heads / kv_heads).
//! out = softmax(q k^T head_dim^-0.5) v over the visible (dense) or selected (sparse) keys.
//! Where a document is no longer than `index_topk` both are the same and the dense kernel runs.

use kernels::tch::{self, Kind, Tensor};

use crate::config::ModelConfig;
use crate::context::{DecodeContext, DocumentContext, PackContext};
use crate::indexer::{Indexer, IndexerStates};
use crate::indexer_loss;
use crate::kv_cache::LayerCache;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::rope::Rotation;
use crate::transformer::Attention;
use crate::weights::WeightError;

/// Query rows of the sparse path alive at once: bounds its memory to O(tile * (L + topk)).
const SPARSE_TILE: i64 = 256;

/// Attention of one layer.
#[derive(Debug)]
pub struct GroupedQueryAttention {
    num_heads: i64,
    num_kv_heads: i64,
    head_dim: i64,
    softmax_scale: f64,
    q_proj: Parameter,
    k_proj: Parameter,
    v_proj: Parameter,
    o_proj: Parameter,
    indexer: Option<Indexer>,
}

/// What a packed pass wants of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionRequest {
    pub(crate) attention: Attention,
    pub(crate) indexer_loss: bool,
    pub(crate) record_selected: bool,
}

/// Where prefill puts keys and values.
#[derive(Debug)]
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

/// q, k, v of one document or pack, after RoPE.
#[derive(Debug)]
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl GroupedQueryAttention {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
    ) -> Result<Self, WeightError> {
        let hidden = config.hidden_size;
        let (q_dim, kv_dim) = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        );
        let mut load = |name: &str, shape: [usize; 2]| {
            loader.load(
                &format!("{prefix}.{name}.weight"),
                ParameterGroup::Main,
                &shape,
            )
        };
        let (q_proj, k_proj) = (
            load("q_proj", [q_dim, hidden])?,
            load("k_proj", [kv_dim, hidden])?,
        );
        let (v_proj, o_proj) = (
            load("v_proj", [kv_dim, hidden])?,
            load("o_proj", [hidden, q_dim])?,
        );
        let indexer = match &config.dsa {
            Some(dsa) => Some(Indexer::load(
                loader,
                &format!("{prefix}.indexer"),
                config,
                dsa,
            )?),
            None => None,
        };
        Ok(GroupedQueryAttention {
            num_heads: config.num_attention_heads as i64,
            num_kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
            softmax_scale: config.softmax_scale(),
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            indexer,
        })
    }

    fn heads(&self, h: &Tensor, rotation: &Rotation) -> Heads {
        let split =
            |projection: &Parameter, heads| projection.project(h).view([-1, heads, self.head_dim]);
        Heads {
            q: rotation.apply(&split(&self.q_proj, self.num_heads)),
            k: rotation.apply(&split(&self.k_proj, self.num_kv_heads)),
            v: split(&self.v_proj, self.num_kv_heads),
        }
    }

    /// Attention within each document of a pack. `h` `[T, hidden_size]` is the normalised input.
    pub(crate) fn packed(
        &self,
        h: &Tensor,
        pack: &PackContext,
        request: AttentionRequest,
        write: Option<CacheWrite>,
    ) -> AttentionOutput {
        let heads = self.heads(h, &pack.rotations.main);
        let states = self.indexer_states(h, pack, request, write.is_some());
        if let Some(write) = write {
            write_prompts(&write, pack, &heads, states.as_ref());
        }
        let mut outputs = Vec::with_capacity(pack.documents.len());
        let mut losses = Vec::new();
        let mut selected = Vec::new();
        for document in &pack.documents {
            let heads = Heads {
                q: document.rows(&heads.q),
                k: document.rows(&heads.k),
                v: document.rows(&heads.v),
            };
            let sparse = match (&self.indexer, &states) {
                (Some(indexer), Some(states))
                    if request.attention == Attention::Sparse
                        && (document.most_visible > indexer.topk()
                            || request.indexer_loss
                            || request.record_selected) =>
                {
                    Some((indexer, states))
                }
                _ => None,
            };
            outputs.push(match sparse {
                Some((indexer, states)) => self.attend_sparse(
                    &heads,
                    indexer,
                    states,
                    document,
                    request,
                    &mut losses,
                    &mut selected,
                ),
                None => {
                    if let (true, Some(states)) = (request.indexer_loss, &states) {
                        losses.push(indexer_loss::dense_loss(
                            states,
                            document,
                            &heads.q,
                            &heads.k,
                            self.softmax_scale,
                        ));
                    }
                    self.attend_dense(&heads, document)
                }
            });
        }
        let out = Tensor::cat(&outputs, 0).view([pack.num_tokens, self.num_heads * self.head_dim]);
        AttentionOutput {
            y: self.o_proj.project(&out),
            indexer_loss: (!losses.is_empty()).then(|| Tensor::stack(&losses, 0).sum(Kind::Float)),
            selected: request.record_selected.then_some(selected),
        }
    }

    /// The indexer's states, where this pass needs them; tracked by autograd only for its loss.
    fn indexer_states(
        &self,
        h: &Tensor,
        pack: &PackContext,
        request: AttentionRequest,
        writes_cache: bool,
    ) -> Option<IndexerStates> {
        let (indexer, rotation) = (self.indexer.as_ref()?, pack.rotations.index.as_ref()?);
        let selects = request.attention == Attention::Sparse
            && (request.record_selected
                || pack
                    .documents
                    .iter()
                    .any(|d| d.most_visible > indexer.topk()));
        if request.indexer_loss {
            Some(indexer.states(h, rotation))
        } else if selects || writes_cache {
            Some(tch::no_grad(|| indexer.states(h, rotation)))
        } else {
            None
        }
    }

    fn attend_dense(&self, heads: &Heads, document: &DocumentContext) -> Tensor {
        let batch = |x: &Tensor| x.transpose(0, 1).unsqueeze(0);
        Tensor::scaled_dot_product_attention(
            &batch(&heads.q),
            &batch(&heads.k),
            &batch(&heads.v),
            document.visible.as_ref(),
            0.0,
            document.visible.is_none(),
            self.softmax_scale,
            self.num_kv_heads != self.num_heads,
        )
        .squeeze_dim(0)
        .transpose(0, 1)
    }

    #[allow(clippy::too_many_arguments)]
    fn attend_sparse(
        &self,
        heads: &Heads,
        indexer: &Indexer,
        states: &IndexerStates,
        document: &DocumentContext,
        request: AttentionRequest,
        losses: &mut Vec<Tensor>,
        selected_keys: &mut Vec<Vec<i64>>,
    ) -> Tensor {
        let mut tiles = Vec::new();
        let mut first = 0;
        while first < document.len {
            let rows = SPARSE_TILE.min(document.len - first);
            let (selected, scores) = indexer.select(states, document, first, rows);
            let q = heads.q.narrow(0, first, rows);
            let attended = kernels::dsa::attend_selected(
                &q,
                &heads.k,
                &heads.v,
                &selected,
                self.softmax_scale,
                SPARSE_TILE as usize,
            );
            if request.indexer_loss {
                losses.push(indexer_loss::sparse_loss(
                    &scores,
                    &selected,
                    &attended.head_probs_sum,
                    self.num_heads,
                ));
            }
            if request.record_selected {
                let rows = Vec::<Vec<i64>>::try_from(&selected).expect("selected is [rows, k] i64");
                selected_keys.extend(
                    rows.into_iter()
                        .map(|row| row.into_iter().filter(|&s| s >= 0).collect()),
                );
            }
            tiles.push(attended.output);
            first += rows;
        }
        Tensor::cat(&tiles, 0)
    }

    /// One new token a slot: `h` `[B, hidden_size]`; writes its key and value, then attends.
    pub(crate) fn cached(
        &self,
        h: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> Tensor {
        let heads = self.heads(h, &step.rotations.main);
        let (batch, len) = (h.size()[0], step.max_len);
        let at = [Some(&step.slots), None, Some(&step.positions)];
        let _ = cache.k.shallow_clone().index_put_(&at, &heads.k, false);
        let _ = cache.v.shallow_clone().index_put_(&at, &heads.v, false);
        let k = cache.k.narrow(0, 0, batch).narrow(2, 0, len);
        let v = cache.v.narrow(0, 0, batch).narrow(2, 0, len);
        let out = match (&self.indexer, &step.rotations.index, &cache.index_k) {
            (Some(indexer), Some(rotation), Some(index_k)) => {
                let states = indexer.states(h, rotation);
                let at = [Some(&step.slots), Some(&step.positions)];
                let _ = index_k.shallow_clone().index_put_(&at, &states.k, false);
                (attention == Attention::Sparse && len > indexer.topk()).then(|| {
                    let keys = index_k.narrow(0, 0, batch).narrow(1, 0, len);
                    let scores = kernels::dsa::index_scores(
                        &states.q.unsqueeze(1),
                        &states.weights.unsqueeze(1),
                        &keys,
                    )
                    .squeeze_dim(1)
                    .masked_fill(&step.visible.logical_not(), f64::NEG_INFINITY);
                    let selected = kernels::dsa::select_topk(&scores, indexer.topk());
                    kernels::dsa::attend_selected_cached(
                        &heads.q,
                        &k,
                        &v,
                        &selected,
                        self.softmax_scale,
                    )
                })
            }
            _ => None,
        };
        let out = out.unwrap_or_else(|| {
            Tensor::scaled_dot_product_attention(
                &heads.q.unsqueeze(2),
                &k,
                &v,
                Some(&step.visible.view([batch, 1, 1, len])),
                0.0,
                false,
                self.softmax_scale,
                self.num_kv_heads != self.num_heads,
            )
        });
        self.o_proj
            .project(&out.reshape([batch, self.num_heads * self.head_dim]))
    }

    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let own = [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj];
        own.into_iter()
            .chain(self.indexer.iter().flat_map(Indexer::parameters))
            .collect()
    }
}

fn write_prompts(
    write: &CacheWrite,
    pack: &PackContext,
    heads: &Heads,
    states: Option<&IndexerStates>,
) {
    for (document, &slot) in pack.documents.iter().zip(write.slots) {
        let put = |cache: &Tensor, rows: Tensor, dim: i64| {
            cache
                .select(0, slot as i64)
                .narrow(dim, 0, document.len)
                .copy_(&rows);
        };
        put(&write.cache.k, document.rows(&heads.k).transpose(0, 1), 1);
        put(&write.cache.v, document.rows(&heads.v).transpose(0, 1), 1);
        if let (Some(index_k), Some(states)) = (&write.cache.index_k, states) {
            put(index_k, document.rows(&states.k), 0);
        }
    }
}
