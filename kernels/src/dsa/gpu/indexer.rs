//! The lightning indexer: scores, selection, and the loss on the selected keys with its gradient.
//!
//! I[t,s] = sum_j w[t,j] relu(q[t,j] . k[s]), -inf where t does not see s;  S_t = the topk highest, equal ones by the lower index.
//! Loss: sum_t KL(p[t,.] || softmax(I[t,S_t])), p = head sums / heads (the report's eq. 4). With g = softmax(I) - p:
//! dw[t,j] = sum_s g relu(q . k);  dq[t,j] = sum_s g w 1[q . k > 0] k[s];  dk[s] += sum_tj g w 1[q . k > 0] q[t,j].
//! Shapes: R rows (queries of a document from `first` on), S keys, H heads, D their width, K selected keys.

use tch::{Kind, Tensor};

use super::{THREADS, address, address_of, int, launch, padded, stream};
use crate::cuda::compile::{Constant, DSA_INDEXER};
use crate::cuda::{Argument, DefaultStream};

/// Keys and rows of a block of scores.
const SCORE_BLOCK: [i64; 2] = [256, 32];
const SELECT_THREADS: u32 = 512;
/// Keys of the loss that are in shared memory at once.
const LOSS_KEYS: i64 = 64;
/// Heads that the kernels know, and their largest width.
const MOST_HEADS: i64 = 64;
const LARGEST_DIM: i64 = 128;

/// Which keys the rows see: t those s with s <= t and (s < trunk_len or s >= branch_starts[t]).
#[derive(Clone, Copy, Debug)]
pub struct Visibility<'a> {
    /// Index of the first row in its document.
    pub first: i64,
    /// Tokens that all behind them see.
    pub trunk_len: i64,
    /// Where the branch of each row begins, `[R]` i64.
    pub branch_starts: &'a Tensor,
}

/// What the indexer made of tokens: queries `[R,H,D]` and keys `[S,D]` in bf16, head weights `[R,H]` in f32.
#[derive(Clone, Copy, Debug)]
pub struct IndexerTile<'a> {
    /// Queries.
    pub q: &'a Tensor,
    /// Head weights.
    pub weights: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
}

/// Where gradients of the loss go, all f32: rows' queries `[R,H,D]` and weights `[R,H]` are written, keys `[S,D]` added to.
#[derive(Clone, Copy, Debug)]
pub struct IndexerGradients<'a> {
    /// Of the queries.
    pub q: &'a Tensor,
    /// Of the head weights.
    pub weights: &'a Tensor,
    /// Of the keys.
    pub k: &'a Tensor,
}

/// The kernels for an indexer's sizes.
#[derive(Clone, Copy, Debug)]
pub struct IndexerKernels {
    stream: &'static DefaultStream,
    heads: i64,
    dim: i64,
}

impl IndexerKernels {
    /// For queries like `q` `[..,H,D]` and keys like `k`; `None` where the kernels can't: on CPUs, in types other than bf16, for
    /// more than 64 heads, and for widths above 128 or that are no multiples of 16.
    pub fn of(q: &Tensor, k: &Tensor) -> Option<IndexerKernels> {
        let stream = stream(q).filter(|_| k.kind() == q.kind())?;
        let (heads, dim) = (q.size()[q.dim() - 2], q.size()[q.dim() - 1]);
        let kernels = IndexerKernels { stream, heads, dim };
        let fits = heads <= MOST_HEADS && dim % 16 == 0 && dim <= LARGEST_DIM;
        let bytes = kernels.scores_bytes().max(kernels.backward_bytes());
        let has_room = bytes <= stream.most_shared_bytes();
        (fits && has_room).then_some(kernels)
    }

    fn constants(&self) -> [Constant; 2] {
        [("INDEX_HEADS", self.heads), ("DIM", self.dim)]
    }

    /// Rows that the heads' products have.
    fn rows(&self) -> i64 {
        match self.heads {
            ..=16 => 16,
            17..=32 => 32,
            _ => 64,
        }
    }

    /// Bytes of shared memory, as the kernel divides them up; the same below.
    fn scores_bytes(&self) -> i64 {
        let tiles = (SCORE_BLOCK[0] + 2 * self.rows()) * padded(self.dim);
        2 * tiles + 4 * SCORE_BLOCK[1] * self.rows()
    }

    fn backward_bytes(&self) -> i64 {
        let slices = 8 / (self.rows() / 16);
        let tiles = (self.rows() + 2 * LOSS_KEYS) * padded(self.dim) + self.rows() * LOSS_KEYS;
        2 * tiles + 4 * (self.rows() + slices * self.rows())
    }

    /// I `[R,S]` f32, where the tile's keys are those up to the last row.
    pub fn scores(&self, tile: IndexerTile, visibility: Visibility) -> Tensor {
        let (rows, num_keys) = (tile.q.size()[0], tile.k.size()[0]);
        let scores = Tensor::empty([rows, num_keys], (Kind::Float, tile.q.device()));
        let (q, weights, k) = whole(tile);
        let arguments = [
            address(&q, Kind::BFloat16),
            address(&weights, Kind::Float),
            address(&k, Kind::BFloat16),
            address(visibility.branch_starts, Kind::Int64),
            int(rows),
            int(num_keys),
            int(visibility.first),
            int(visibility.trunk_len),
            address(&scores, Kind::Float),
        ];
        let blocks = |items: i64, side: usize| (items + SCORE_BLOCK[side] - 1) / SCORE_BLOCK[side];
        // SAFETY: q is [R, H, D], weights [R, H], k [S, D], branch_starts [R], scores [R, S].
        unsafe {
            launch(
                self.stream,
                (&DSA_INDEXER, &self.constants(), "index_scores"),
                [blocks(num_keys, 0), blocks(rows, 1)],
                (THREADS, self.scores_bytes()),
                &arguments,
            );
        }
        scores
    }

    /// S_t of `scores` `[R,S]`, rows from `first` on: `[R,topk]` i32, ascending, -1 last.
    pub fn select(&self, scores: &Tensor, topk: i64, first: i64) -> Tensor {
        let (rows, num_keys) = scores.size2().expect("scores are [R, S]");
        let selected = Tensor::empty([rows, topk], (Kind::Int, scores.device()));
        let arguments = [
            address(scores, Kind::Float),
            int(num_keys),
            int(topk),
            int(first),
            address(&selected, Kind::Int),
        ];
        // SAFETY: scores are [R, S], selected [R, topk].
        unsafe {
            launch(
                self.stream,
                (&DSA_INDEXER, &self.constants(), "select_topk"),
                [rows, 1],
                (SELECT_THREADS, 0),
                &arguments,
            );
        }
        selected
    }

    /// The loss of each row, `[R]` f32, which had `scores` `[R,S]`, over its keys `selected` `[R,K]` (i32, those that are present first), or
    /// over all that it sees. `head_sums` `[R,K]` or `[R,S]` f32, the main heads' probabilities summed over `num_heads`. Row 0 is
    /// the document's token `first`.
    pub fn loss(
        &self,
        (tile, first): (IndexerTile, i64),
        selected: Option<&Tensor>,
        scores: &Tensor,
        (head_sums, num_heads): (&Tensor, i64),
        gradients: Option<IndexerGradients>,
    ) -> Tensor {
        let (rows, num_keys) = scores.size2().expect("scores are [R, S]");
        let width = head_sums.size()[1];
        let options = (Kind::Float, scores.device());
        let losses = Tensor::empty([rows], options);
        let by_scores = Tensor::empty([rows, width], options);
        let arguments = [
            address(scores, Kind::Float),
            address_of(selected, Kind::Int),
            address(head_sums, Kind::Float),
            int(num_keys),
            int(width),
            Argument::Float(num_heads as f32),
            address(&losses, Kind::Float),
            address(&by_scores, Kind::Float),
        ];
        // SAFETY: scores are [R, S]; selected, head_sums and by_scores [R, K] (K = S where nothing is selected); losses [R].
        unsafe {
            let kernel = (&DSA_INDEXER, &self.constants()[..], "index_loss");
            launch(self.stream, kernel, [rows, 1], (THREADS, 0), &arguments);
        }
        let Some(gradients) = gradients else {
            return losses;
        };
        let (q, weights, k) = whole(tile);
        let arguments = [
            address(&q, Kind::BFloat16),
            address(&weights, Kind::Float),
            address(&k, Kind::BFloat16),
            address_of(selected, Kind::Int),
            address(&by_scores, Kind::Float),
            int(width),
            int(first),
            address(gradients.q, Kind::Float),
            address(gradients.weights, Kind::Float),
            address(gradients.k, Kind::Float),
        ];
        // SAFETY: sizes as above; gradients like their tensors.
        unsafe {
            let kernel = (&DSA_INDEXER, &self.constants()[..], "index_loss_backward");
            let resources = (THREADS, self.backward_bytes());
            launch(self.stream, kernel, [rows, 1], resources, &arguments);
        }
        losses
    }
}

/// The parts of a tile without history and gaps.
fn whole(tile: IndexerTile) -> (Tensor, Tensor, Tensor) {
    let whole = |x: &Tensor| x.detach().contiguous();
    (whole(tile.q), whole(tile.weights), whole(tile.k))
}
