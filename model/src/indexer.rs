//! DSA's lightning indexer: which keys a query attends to.
//!
//! q_I = W_q x [T, H_I, d],  k_I = LayerNorm(W_k h) [T, d],  both rotated by RoPE;
//! w = (weights_proj h) * H_I^-0.5 * d^-0.5 in f32;   I[t, s] = sum_j w[t, j] relu(q_I[t, j] . k_I[s]).
//! x is the query latent of latent attention (`wq_b`; RoPE turns the leading qk_rope_head_dim dimensions)
//! or else the hidden state h (`wq`; all dimensions turn) (report 2.1, eq. 1). Inputs are detached: the
//! indexer learns only from its own loss. The Hadamard transform is part of the simulated
//! quantisation; without it, it changes no score.

use kernels::dsa::gpu::indexer::{IndexerKernels, IndexerTile};
use kernels::dsa::{self, ScaleFormat};
use kernels::tch::{self, Kind, Tensor};

use crate::config::{self, DsaConfig, ModelConfig};
use crate::context::{DecodeContext, DocumentContext};
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::rope::Rotation;
use crate::weights::WeightError;

const K_NORM_EPS: f64 = 1e-6;

/// The indexer of one layer.
#[derive(Debug)]
pub struct Indexer {
    config: DsaConfig,
    wq: Parameter,
    wk: Parameter,
    k_norm_weight: Parameter,
    k_norm_bias: Parameter,
    weights_proj: Parameter,
}

/// What the indexer computes of T tokens before any scoring.
#[derive(Debug)]
pub(crate) struct IndexerStates {
    /// `[T, H_I, d]`.
    pub(crate) q: Tensor,
    /// `[T, d]`; a tile of queries has the keys of its whole document, those of cached tokens before it included.
    pub(crate) k: Tensor,
    /// Head weights with both scale factors, `[T, H_I]` f32.
    pub(crate) weights: Tensor,
}

impl IndexerStates {
    /// The rows of one document of the pack.
    pub(crate) fn of_document(&self, document: &DocumentContext) -> IndexerStates {
        IndexerStates {
            q: document.rows(&self.q),
            k: document.keys(&self.k),
            weights: document.rows(&self.weights),
        }
    }

    pub(crate) fn shallow_clone(&self) -> IndexerStates {
        IndexerStates {
            q: self.q.shallow_clone(),
            k: self.k.shallow_clone(),
            weights: self.weights.shallow_clone(),
        }
    }

    /// Whether kernels of a GPU take them.
    pub(crate) fn has_kernels(&self) -> bool {
        IndexerKernels::of(&self.q, &self.k).is_some()
    }

    /// As the kernels of a GPU take them.
    pub(crate) fn for_kernels(&self) -> IndexerTile<'_> {
        IndexerTile {
            q: &self.q,
            weights: &self.weights,
            k: &self.k,
        }
    }
}

/// Index scores of a tile of queries over all keys of their document.
#[derive(Debug)]
pub(crate) struct TileScores(Tensor);

impl TileScores {
    /// The scores of `selected` `[rows, K]`, -inf at absent entries, with the gradient of `tile`.
    pub(crate) fn of_selected(&self, tile: &IndexerStates, selected: &Tensor) -> Tensor {
        if dsa::gathers(self.0.size()[1], selected.size()[1]) {
            return dsa::selected_index_scores(&tile.q, &tile.weights, &tile.k, selected);
        }
        let chosen = self.0.gather(-1, &selected.clamp_min(0), false);
        chosen.masked_fill(&selected.lt(0), f64::NEG_INFINITY)
    }
}

impl Indexer {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
        dsa: &DsaConfig,
    ) -> Result<Indexer, WeightError> {
        let (heads, dim, hidden) = (dsa.index_n_heads, dsa.index_head_dim, config.hidden_size);
        let (wq, query_width) = match config.mla.as_ref().and_then(|mla| mla.q_lora_rank) {
            Some(rank) => ("wq_b.weight", rank),
            None => ("wq.weight", hidden),
        };
        let mut load = |name: &str, shape: &[usize]| {
            loader.load(&format!("{prefix}.{name}"), ParameterGroup::Indexer, shape)
        };
        Ok(Indexer {
            wq: load(wq, &[heads * dim, query_width])?,
            wk: load("wk.weight", &[dim, hidden])?,
            k_norm_weight: load("k_norm.weight", &[dim])?,
            k_norm_bias: load("k_norm.bias", &[dim])?,
            weights_proj: load("weights_proj.weight", &[heads, hidden])?,
            config: dsa.clone(),
        })
    }

    /// Keys selected per query, at most.
    pub(crate) fn topk(&self) -> i64 {
        self.config.index_topk as i64
    }

    /// Queries of `query_input` `[T, query width]`, keys and head weights of hidden states `h`
    /// `[T, hidden_size]`, rotated by `rotation`.
    pub(crate) fn states(
        &self,
        h: &Tensor,
        query_input: &Tensor,
        rotation: &Rotation,
    ) -> IndexerStates {
        let (h, query_input) = (h.detach(), query_input.detach());
        let (heads, dim) = (
            self.config.index_n_heads as i64,
            self.config.index_head_dim as i64,
        );
        let q = rotation.apply(&self.wq.project(&query_input).view([-1, heads, dim]));
        let k = self.wk.project(&h).to_kind(Kind::Float).layer_norm(
            [dim],
            Some(&self.k_norm_weight.weight_f32()),
            Some(&self.k_norm_bias.weight_f32()),
            K_NORM_EPS,
            false,
        );
        let k = rotation
            .apply(&k.to_kind(h.kind()).unsqueeze(1))
            .squeeze_dim(1);
        let scale = ((heads * dim) as f64).powf(-0.5);
        let weights = h
            .to_kind(Kind::Float)
            .linear(&self.weights_proj.weight_f32(), None::<&Tensor>)
            * scale;
        IndexerStates {
            q: self.quantized(q),
            k: self.quantized(k),
            weights,
        }
    }

    /// `x` after the simulated quantisation, where one is asked for.
    fn quantized(&self, x: Tensor) -> Tensor {
        let Some(quantization) = &self.config.quantization else {
            return x;
        };
        let format = match quantization.scale_format {
            config::ScaleFormat::Ue8m0 => ScaleFormat::Ue8m0,
            config::ScaleFormat::F32 => ScaleFormat::F32,
        };
        dsa::fp8_round_trip(&dsa::hadamard(&x), format)
    }

    /// The selected keys of the queries of `tile`, of which the document's `first` is the first, and
    /// the scores they were selected by: `[rows, min(topk, len)]` i64 ascending, -1 for absent.
    pub(crate) fn select(
        &self,
        tile: &IndexerStates,
        document: &DocumentContext,
        first: i64,
    ) -> (Tensor, TileScores) {
        let num_keys = first + tile.q.size()[0];
        // Where selected keys are gathered, their scores are computed again with a gradient: the
        // graph of all scores would outlive the selection.
        let scores = match dsa::gathers(num_keys, self.topk().min(num_keys)) {
            true => tch::no_grad(|| tile_scores(tile, document, first)),
            false => tile_scores(tile, document, first),
        };
        let selected = tch::no_grad(|| dsa::select_topk(&scores, self.topk()));
        (selected, TileScores(scores))
    }

    /// The selected cache entries of one new token a slot, `[B, min(topk, max_len)]` i64 ascending, -1
    /// for absent; `index_k` `[R, d]`.
    pub(crate) fn select_cached(
        &self,
        states: &IndexerStates,
        step: &DecodeContext,
        index_k: &Tensor,
    ) -> Tensor {
        let keys = step.gathered(index_k);
        let (q, weights) = (states.q.unsqueeze(1), states.weights.unsqueeze(1));
        let scores = dsa::index_scores(&q, &weights, &keys)
            .squeeze_dim(1)
            .masked_fill(&step.visible().logical_not(), f64::NEG_INFINITY);
        dsa::select_topk(&scores, self.topk())
    }

    pub(crate) fn parameters(&self) -> [&Parameter; 5] {
        [
            &self.wq,
            &self.wk,
            &self.k_norm_weight,
            &self.k_norm_bias,
            &self.weights_proj,
        ]
    }
}

/// Index scores of the queries of `tile`, of which the document's `first` is the first, over all keys
/// up to the last query, `[rows, first + rows]` f32, -inf where the query does not see the key.
pub(crate) fn tile_scores(tile: &IndexerStates, document: &DocumentContext, first: i64) -> Tensor {
    let keys_in_sight = tile.k.narrow(0, 0, first + tile.q.size()[0]);
    let mut scores = dsa::index_scores(&tile.q, &tile.weights, &keys_in_sight);
    let branch_starts = document.branch_starts().narrow(0, first, scores.size()[0]);
    dsa::mask_invisible_(&mut scores, first, document.trunk_len, &branch_starts);
    scores
}
