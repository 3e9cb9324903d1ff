//! DSA's indexer losses (report 2.1.1, eq. 3 and 4).
//!
//! target p[t, s] = (1/H) sum_h P_h[t, s], the head-summed main attention, L1-normalised, detached;
//! L_I = sum_t KL( p[t, .] || softmax(I[t, .]) ).
//! Dense warm-up: over all visible keys. Sparse stage: P_h is the softmax restricted to the selected
//! set, and so is the softmax of I. Sums over tokens; the learner divides by the tokens of the step.
//! Gradients are taken tile by tile ([`TiledLoss`]), so that no [L, L] is ever held.

use kernels::autograd;
use kernels::dsa::gpu::dense::head_probs_sum;
use kernels::dsa::gpu::indexer::{IndexerGradients, IndexerKernels};
use kernels::tch::{self, Kind, Tensor};

use crate::attention::Heads;
use crate::context::DocumentContext;
use crate::indexer::{IndexerStates, tile_scores};

/// Elements of the `[heads, rows, L]` dense probabilities that are alive at once (64 MB of f32).
const DENSE_ELEMENTS: i64 = 1 << 24;
/// Index scores that are alive at once on a GPU (256 MB of f32).
pub(crate) const GPU_SCORES: i64 = 1 << 26;
/// Query rows of a dense tile, at most.
const DENSE_TILE: i64 = 256;

/// `sum_t KL(target || softmax(scores))` over entries with finite `scores`.
///
/// # Shapes
/// `target` `[Q, K]` f32, rows sum to 1 over the finite entries; `scores` `[Q, K]` f32. Scalar.
pub fn kl_to_target(target: &Tensor, scores: &Tensor) -> Tensor {
    let absent = scores.eq(f64::NEG_INFINITY);
    let log_q = scores
        .log_softmax(-1, scores.kind())
        .masked_fill(&absent, 0.0);
    let log_p = target.clamp_min(1e-10).log();
    (target * (log_p - log_q)).sum(scores.kind())
}

/// Loss on the selected sets.
///
/// # Shapes
/// `scores` `[Q, K]` f32 of the selected keys, -inf at absent entries; `head_probs_sum` `[Q, K]`, the main
/// heads' softmax over the selected keys, summed over heads. Scalar.
pub fn sparse_loss(scores: &Tensor, head_probs_sum: &Tensor, num_heads: i64) -> Tensor {
    kl_to_target(&(head_probs_sum.detach() / num_heads as f64), scores)
}

/// A loss of a document's indexer states that is added up over tiles of queries.
///
/// The gradient of a tile's loss is computed with the tile and its graph freed: what is kept until the
/// backward pass are gradients of the size of the states, in f32.
#[derive(Debug)]
pub(crate) struct TiledLoss {
    states: IndexerStates,
    /// The keys as every tile sees them: a leaf where the loss has a gradient.
    k: Tensor,
    /// Gradients of the queries and weights, where the loss has one: made before the first tile, since
    /// what outlives a tile but is allocated during it leaves holes in the heap that no larger tile fits.
    grads: Option<[Tensor; 2]>,
    /// That of the keys, where kernels computed it: elsewhere autograd adds it up in `k`.
    k_grad: Option<Tensor>,
    /// Queries that have been added.
    num_added: i64,
    total: Tensor,
}

impl TiledLoss {
    /// `has_gradient`: losses will be added, whose gradient shall reach `states` where those have a
    /// history.
    pub(crate) fn new(states: IndexerStates, has_gradient: bool) -> TiledLoss {
        let tracked = [&states.q, &states.k, &states.weights]
            .iter()
            .any(|x| x.requires_grad());
        let learns = has_gradient && tracked && autograd::is_enabled();
        let zeros = |x: &Tensor| Tensor::zeros(x.size(), (Kind::Float, x.device()));
        TiledLoss {
            k: leaf(&states.k, learns),
            grads: learns.then(|| [&states.q, &states.weights].map(zeros)),
            k_grad: None,
            num_added: 0,
            total: Tensor::zeros([] as [i64; 0], (Kind::Float, states.k.device())),
            states,
        }
    }

    fn learns(&self) -> bool {
        self.grads.is_some()
    }

    /// Queries `first..first + rows` with all keys, cut from the history of the states.
    pub(crate) fn tile(&self, first: i64, rows: i64) -> IndexerStates {
        IndexerStates {
            q: leaf(&self.states.q.narrow(0, first, rows), self.learns()),
            k: self.k.shallow_clone(),
            weights: leaf(&self.states.weights.narrow(0, first, rows), self.learns()),
        }
    }

    /// Queries `first..first + rows` as they are, with the keys up to the last one, for [`TiledLoss::add_by_kernel`].
    pub(crate) fn rows(&self, first: i64, rows: i64) -> IndexerStates {
        // Keys end with those of the queries.
        let past = self.states.k.size()[0] - self.states.q.size()[0];
        IndexerStates {
            q: self.states.q.detach().narrow(0, first, rows),
            k: self.states.k.detach().narrow(0, 0, past + first + rows),
            weights: self.states.weights.detach().narrow(0, first, rows),
        }
    }

    /// Adds the loss of the next tile, as [`TiledLoss::rows`] gave it, on its keys `selected` `[rows, K]` i32, or on all it sees,
    /// which had `scores` `[rows, S]`; `head_sums`, as wide, are the main heads' probabilities summed over that many heads.
    pub(crate) fn add_by_kernel(
        &mut self,
        kernels: &IndexerKernels,
        tile: &IndexerStates,
        selected: Option<&Tensor>,
        scores: &Tensor,
        head_sums: (&Tensor, i64),
    ) {
        let rows = tile.q.size()[0];
        let of_tile = self.grads.as_ref().map(|grads| {
            grads
                .each_ref()
                .map(|all| all.narrow(0, self.num_added, rows))
        });
        let gradients = of_tile.as_ref().map(|[q, weights]| {
            let zeros = || Tensor::zeros(self.k.size(), (Kind::Float, self.k.device()));
            let k = &*self.k_grad.get_or_insert_with(zeros);
            IndexerGradients { q, weights, k }
        });
        let tile = (tile.for_kernels(), self.num_added);
        let losses = kernels.loss(tile, selected, scores, head_sums, gradients);
        self.num_added += rows;
        self.total += losses.sum(Kind::Float);
    }

    /// Adds the loss of the next tile, computed from what [`TiledLoss::tile`] gave; tiles come in order.
    pub(crate) fn add(&mut self, tile: IndexerStates, loss: &Tensor) {
        let rows = tile.q.size()[0];
        if let Some(grads) = &self.grads {
            autograd::backward(&[loss.shallow_clone()], &[])
                .expect("the loss of a tile derives from its leaves");
            for (all, leaf) in grads.iter().zip([&tile.q, &tile.weights]) {
                all.narrow(0, self.num_added, rows).copy_(&leaf.grad());
            }
        }
        self.num_added += rows;
        self.total += loss.detach();
    }

    /// The sum, with the gradient of the states.
    pub(crate) fn sum(self) -> Tensor {
        let Some([q_grad, weight_grad]) = self.grads else {
            return self.total;
        };
        let inputs = [&self.states.q, &self.states.k, &self.states.weights];
        let k_grad = self.k_grad.unwrap_or_else(|| self.k.grad());
        let grads = [q_grad, k_grad, weight_grad];
        let kinds = inputs.map(Tensor::kind);
        autograd::custom(vec![self.total], &inputs, move |outer| {
            let outer = outer[0].as_ref();
            let scaled = |(grad, kind): (&Tensor, Kind)| Some((grad * outer?).to_kind(kind));
            grads.iter().zip(kinds).map(scaled).collect()
        })
        .expect("a scalar can be given a history")
        .remove(0)
    }
}

/// `x` without its history; with `learns` a leaf in f32, whose gradient adds up in f32.
fn leaf(x: &Tensor, learns: bool) -> Tensor {
    match learns {
        true => x.detach().to_kind(Kind::Float).set_requires_grad(true),
        false => x.detach(),
    }
}

/// Loss of one document under dense attention to `heads`, which have values of their own.
pub(crate) fn dense_loss(
    states: IndexerStates,
    document: &DocumentContext,
    heads: &Heads,
    softmax_scale: f64,
) -> Tensor {
    if let Some(kernels) = IndexerKernels::of(&states.q, &states.k)
        && let Some(loss) = dense_loss_by_kernels(kernels, &states, document, heads, softmax_scale)
    {
        return loss;
    }
    let per_row = heads.q.size()[1] * document.len;
    let tile_rows = (DENSE_ELEMENTS / per_row).clamp(1, DENSE_TILE);
    let k = tch::no_grad(|| heads.k.to_kind(Kind::Float).permute([1, 2, 0]));
    let mut loss = TiledLoss::new(states, true);
    let mut first = 0;
    while first < document.len {
        let rows = tile_rows.min(document.len - first);
        let tile = loss.tile(first, rows);
        let scores = tile_scores(&tile, document, first);
        let target = tch::no_grad(|| {
            let invisible = scores.eq(f64::NEG_INFINITY);
            let q = heads.q.narrow(0, first, rows);
            mean_head_probs(&q, &k.narrow(2, 0, first + rows), &invisible, softmax_scale)
        });
        loss.add(tile, &kl_to_target(&target, &scores));
        first += rows;
    }
    loss.sum()
}

/// [`dense_loss`] on a GPU; `None` for heads that its kernels don't know.
fn dense_loss_by_kernels(
    kernels: IndexerKernels,
    states: &IndexerStates,
    document: &DocumentContext,
    heads: &Heads,
    softmax_scale: f64,
) -> Option<Tensor> {
    let num_heads = heads.q.size()[1];
    let rows_at_once = (GPU_SCORES / document.len).max(DENSE_TILE);
    let mut loss = TiledLoss::new(states.shallow_clone(), true);
    let mut first = 0;
    while first < document.len {
        let rows = rows_at_once.min(document.len - first);
        let tile = loss.rows(first, rows);
        let visibility = document.visibility(first, rows);
        let (q, k) = (
            heads.q.narrow(0, first, rows),
            heads.k.narrow(0, 0, first + rows),
        );
        let sums = head_probs_sum(&q, &k, visibility.as_kernels_take_it(), softmax_scale)?;
        let scores = kernels.scores(tile.for_kernels(), visibility.as_kernels_take_it());
        loss.add_by_kernel(&kernels, &tile, None, &scores, (&sums, num_heads));
        first += rows;
    }
    Some(loss.sum())
}

/// Softmax attention averaged over heads: q `[Q, heads, d]`, k `[kv_heads, d, S]` f32 -> `[Q, S]` f32.
fn mean_head_probs(q: &Tensor, k: &Tensor, invisible: &Tensor, softmax_scale: f64) -> Tensor {
    let (rows, heads, dim) = q.size3().expect("q is [Q, heads, d]");
    let (kv_heads, _, num_keys) = k.size3().expect("k is [kv_heads, d, S]");
    let group = heads / kv_heads;
    // The queries of one key head as rows of one product.
    let q = q
        .to_kind(Kind::Float)
        .reshape([rows, kv_heads, group, dim])
        .permute([1, 2, 0, 3])
        .reshape([kv_heads, group * rows, dim]);
    let scores = q.bmm(k).view([heads, rows, num_keys]) * softmax_scale;
    scores
        .masked_fill(invisible, f64::NEG_INFINITY)
        .softmax(-1, Kind::Float)
        .mean_dim(0, false, Kind::Float)
}

#[cfg(test)]
mod tests;
