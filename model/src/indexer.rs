//! DSA's lightning indexer: which keys a query attends to.
//!
//! q_I = wq h [T, H_I, d],  k_I = LayerNorm(wk h) [T, d],  both rotated (half-split RoPE);
//! w = (weights_proj h) * H_I^-0.5 * d^-0.5 in f32;   I[t, s] = sum_j w[t, j] relu(q_I[t, j] . k_I[s]).
//! The queries come from the hidden state, since grouped-query attention has no query latent
//! (report 2.1, eq. 1). Inputs are detached: the indexer learns only from its own loss. The
//! Hadamard rotation is left out: without quantisation it changes no score.

use kernels::tch::{self, Kind, Tensor};

use crate::config::{DsaConfig, ModelConfig};
use crate::context::DocumentContext;
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
    /// `[T, d]`.
    pub(crate) k: Tensor,
    /// Head weights with both scale factors, `[T, H_I]` f32.
    pub(crate) weights: Tensor,
}

impl Indexer {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        prefix: &str,
        config: &ModelConfig,
        dsa: &DsaConfig,
    ) -> Result<Indexer, WeightError> {
        let (heads, dim, hidden) = (dsa.index_n_heads, dsa.index_head_dim, config.hidden_size);
        let mut load = |name: &str, shape: &[usize]| {
            loader.load(&format!("{prefix}.{name}"), ParameterGroup::Indexer, shape)
        };
        Ok(Indexer {
            wq: load("wq.weight", &[heads * dim, hidden])?,
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

    /// Queries, keys and head weights of hidden states `h` `[T, hidden_size]`, rotated by `rotation`.
    pub(crate) fn states(&self, h: &Tensor, rotation: &Rotation) -> IndexerStates {
        let h = h.detach();
        let (heads, dim) = (
            self.config.index_n_heads as i64,
            self.config.index_head_dim as i64,
        );
        let q = rotation.apply(&self.wq.project(&h).view([-1, heads, dim]));
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
        IndexerStates { q, k, weights }
    }

    /// The selected keys of a document's queries `first..first + rows`, and the scores they were
    /// selected by: (`[rows, min(topk, len)]` i64 ascending with -1 for absent, `[rows, len]` f32).
    pub(crate) fn select(
        &self,
        states: &IndexerStates,
        document: &DocumentContext,
        first: i64,
        rows: i64,
    ) -> (Tensor, Tensor) {
        let scores = document_scores(states, document, first, rows);
        let selected = tch::no_grad(|| kernels::dsa::select_topk(&scores, self.topk()));
        (selected, scores)
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

/// Index scores of a document's queries `first..first + rows` over all its keys, `[rows, len]` f32,
/// -inf where the query does not see the key.
pub(crate) fn document_scores(
    states: &IndexerStates,
    document: &DocumentContext,
    first: i64,
    rows: i64,
) -> Tensor {
    let q = document.rows(&states.q).narrow(0, first, rows);
    let weights = document.rows(&states.weights).narrow(0, first, rows);
    let mut scores = kernels::dsa::index_scores(&q, &weights, &document.rows(&states.k));
    let branch_starts = document.branch_starts.narrow(0, first, rows);
    kernels::dsa::mask_invisible_(&mut scores, first, document.trunk_len, &branch_starts);
    scores
}
