//! Attention over selected keys, forward and backward: what [`crate::dsa::attend_selected`] computes.
//!
//! P[t,h,j] = softmax_j(scale q[t,h] . k[S_t[j]]);  o[t,h] = sum_j P[t,h,j] v[S_t[j]];  lse[t,h] = log sum_j exp(scale q.k).
//! Backward, from do: delta[t,h] = do . o;  dS = scale P (do . v - delta);  dq = sum_j dS k;  dk[S_t[j]] += sum_h dS q;
//! dv[S_t[j]] += sum_h P do. With latent attention's values, the leading columns of the keys, dv is part of dk.
//! The scores are computed again from lse. Shapes: Q queries, S keys, K selected ones a query.

use tch::{Kind, Tensor};

use super::{THREADS, address, address_of, int, launch, padded, stream};
use crate::autograd;
use crate::cuda::compile::{Constant, DSA_ATTENTION, DSA_LATENT_SM90, Source};
use crate::cuda::{Argument, DefaultStream};
use crate::dsa::Values;

/// Selected keys that are in shared memory at once, in the forward pass.
const FORWARD_KEYS: i64 = 64;

/// The sizes that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    heads: i64,
    kv_heads: i64,
    dim: i64,
    v_dim: i64,
    owns_values: bool,
    /// Heads that a block works for, some of which may be absent.
    rows: i64,
    /// By the kernels of `dsa_latent_sm90.cu`.
    by_wgmma: bool,
}

/// Widths that `dsa_latent_sm90.cu` is written for.
const LATENT: [i64; 2] = [576, 512];

impl Shape {
    fn source(&self) -> (&'static Source, Vec<Constant>) {
        if self.by_wgmma {
            return (&DSA_LATENT_SM90, Vec::new());
        }
        let constants = vec![
            ("DIM", self.dim),
            ("V_DIM", self.v_dim),
            ("ROWS", self.rows),
            ("OWN_VALUES", i64::from(self.owns_values)),
        ];
        (&DSA_ATTENTION, constants)
    }

    /// Blocks that the heads of a query are divided among.
    fn parts(&self) -> i64 {
        let group = self.heads / self.kv_heads;
        self.kv_heads * ((group + self.rows - 1) / self.rows)
    }

    fn value_width(&self) -> i64 {
        i64::from(self.owns_values) * padded(self.v_dim)
    }

    /// Warps that share 16 rows.
    fn slices(&self) -> i64 {
        8 / (self.rows / 16)
    }

    /// Bytes of shared memory, as the kernel of the forward pass divides them up; the same for those below.
    fn forward_bytes(&self) -> i64 {
        let stage = FORWARD_KEYS * (padded(self.dim) + self.value_width());
        let probs = self.rows * FORWARD_KEYS;
        2 * (self.rows * padded(self.dim) + 2 * stage + probs) + 4 * 2 * self.slices() * self.rows
    }

    fn head_sums_bytes(&self, num_selected: i64) -> i64 {
        let tiles = (self.rows + 2 * FORWARD_KEYS) * padded(self.dim);
        2 * tiles + 4 * (self.rows / 16 * FORWARD_KEYS + self.rows + num_selected)
    }

    fn backward_bytes(&self) -> i64 {
        let (keys, stages) = match (self.by_wgmma, self.rows) {
            (true, _) => (64, 1),
            (false, 16) => (64, 2),
            (false, _) => (32, 2),
        };
        let stage = keys * (padded(self.dim) + self.value_width());
        let rows = self.rows * (padded(self.dim) + padded(self.v_dim) + 2 * 64);
        2 * (rows + stages * stage) + 4 * 2 * self.rows
    }

    fn most_bytes(&self, num_selected: i64) -> i64 {
        self.forward_bytes()
            .max(self.backward_bytes())
            .max(self.head_sums_bytes(num_selected))
    }
}

/// Attention of a document's queries to their selected keys, given rows at a time.
#[derive(Debug)]
pub struct SelectedAttention {
    stream: &'static DefaultStream,
    shape: Shape,
    scale: f32,
    /// With their history.
    inputs: Vec<Tensor>,
    /// Without it, and without gaps.
    q: Tensor,
    k: Tensor,
    v: Option<Tensor>,
    /// `[Q,K]` i32.
    selected: Tensor,
    /// `[Q,heads,v_dim]` bf16.
    output: Tensor,
    /// `[Q,heads]` f32.
    lse: Tensor,
}

impl SelectedAttention {
    /// For `num_selected` keys a query; `None` where the kernels can't: on CPUs, in types other than bf16, for widths that are no
    /// multiples of 16, and on cards with too little shared memory for the widths.
    ///
    /// # Shapes
    /// q `[Q,n_heads,head_dim]`, k `[S,n_kv,head_dim]`, v `[S,n_kv,v_dim]` or a number of columns of k.
    pub fn new(
        q: &Tensor,
        k: &Tensor,
        v: Values,
        num_selected: i64,
        scale: f64,
    ) -> Option<SelectedAttention> {
        let stream = stream(q)?;
        let (num_queries, heads, dim) = q.size3().expect("q is [Q, n_heads, head_dim]");
        let kv_heads = k.size()[1];
        let (own, v_dim) = match v {
            Values::Own(v) => (Some(v), v.size()[2]),
            Values::KeyPrefix(columns) => (None, columns),
        };
        let by_wgmma = stream.is_hopper()
            && [dim, v_dim] == LATENT
            && kv_heads == 1
            && own.is_none()
            && heads > 32;
        let is_known = k.kind() == Kind::BFloat16
            && own.is_none_or(|v| v.kind() == Kind::BFloat16)
            && dim % 16 == 0
            && v_dim % 16 == 0;
        let group = heads / kv_heads;
        let shape = [64, 32, 16]
            .into_iter()
            .filter(|&rows| rows == 16 || group > rows / 2)
            .map(|rows| Shape {
                heads,
                kv_heads,
                dim,
                v_dim,
                owns_values: own.is_some(),
                rows,
                by_wgmma: by_wgmma && rows == 64,
            })
            .find(|shape| shape.most_bytes(num_selected) <= stream.most_shared_bytes())
            .filter(|_| is_known)?;
        let mut inputs = vec![q.shallow_clone(), k.shallow_clone()];
        inputs.extend(own.map(Tensor::shallow_clone));
        let device = q.device();
        Some(SelectedAttention {
            stream,
            shape,
            scale: scale as f32,
            inputs,
            q: q.detach().contiguous(),
            k: k.detach().contiguous(),
            v: own.map(|v| v.detach().contiguous()),
            selected: Tensor::empty([num_queries, num_selected], (Kind::Int, device)),
            output: Tensor::empty([num_queries, heads, v_dim], (Kind::BFloat16, device)),
            lse: Tensor::empty([num_queries, heads], (Kind::Float, device)),
        })
    }

    /// The arguments that all kernels begin with, for `rows` queries from `first` on.
    fn problem(&self, first: i64, rows: i64) -> [Argument; 8] {
        let of_rows = |x: &Tensor| x.narrow(0, first, rows);
        [
            address(&of_rows(&self.q), Kind::BFloat16),
            address(&self.k, Kind::BFloat16),
            address_of(self.v.as_ref(), Kind::BFloat16),
            address(&of_rows(&self.selected), Kind::Int),
            int(self.shape.heads),
            int(self.shape.kv_heads),
            int(self.selected.size()[1]),
            Argument::Float(self.scale),
        ]
    }

    /// Attends with the queries from `first` on, to the keys of `selected` `[rows,K]`: ascending or not, i32 or i64, those that
    /// are present before those that are -1, at least one.
    ///
    /// # Panics
    /// Rows beyond the queries, or another K.
    pub fn attend(&self, first: i64, selected: &Tensor) {
        let rows = selected.size()[0];
        self.selected.narrow(0, first, rows).copy_(selected);
        let arguments = [
            address(&self.output.narrow(0, first, rows), Kind::BFloat16),
            address(&self.lse.narrow(0, first, rows), Kind::Float),
        ];
        let arguments = [&self.problem(first, rows)[..], &arguments].concat();
        let (source, constants) = self.shape.source();
        // SAFETY: q, selected, output and lse are of `rows` queries; selected keys lie below S, as the caller says.
        unsafe {
            launch(
                self.stream,
                (source, &constants, "dsa_attention"),
                [rows, self.shape.parts()],
                (THREADS, self.shape.forward_bytes()),
                &arguments,
            );
        }
    }

    /// sum_h P[t,h,j] of `rows` queries from `first` on, which have attended: `[rows,K]` f32, 0 at absent entries.
    pub fn head_probs_sum(&self, first: i64, rows: i64) -> Tensor {
        let num_selected = self.selected.size()[1];
        let sums = Tensor::empty([rows, num_selected], (Kind::Float, self.q.device()));
        let arguments = [
            address(&self.lse.narrow(0, first, rows), Kind::Float),
            address(&sums, Kind::Float),
        ];
        let arguments = [&self.problem(first, rows)[..], &arguments].concat();
        let (source, constants) = self.shape.source();
        // SAFETY: as above.
        unsafe {
            launch(
                self.stream,
                (source, &constants, "dsa_head_sums"),
                [rows, 1],
                (THREADS, self.shape.head_sums_bytes(num_selected)),
                &arguments,
            );
        }
        sums
    }

    /// The attended values `[Q,heads,v_dim]` in bf16, once all queries have attended, with the gradient of the inputs.
    pub fn into_output(mut self) -> Tensor {
        let output = self.output.shallow_clone();
        // Not kept by the closure: they hold the graph that leads here.
        let inputs = std::mem::take(&mut self.inputs);
        let num_inputs = inputs.len();
        let backward = move |grads: Vec<Option<Tensor>>| match &grads[0] {
            Some(grad) => self.backward(grad),
            None => (0..num_inputs).map(|_| None).collect(),
        };
        autograd::custom(vec![output], &Vec::from_iter(&inputs), backward)
            .expect("a fresh floating tensor can be given a history")
            .remove(0)
    }

    /// Gradients of the inputs, in bf16.
    fn backward(&self, grad: &Tensor) -> Vec<Option<Tensor>> {
        let rows = self.q.size()[0];
        let grad = grad.to_kind(Kind::BFloat16).contiguous();
        let sums = |x: &Tensor| Tensor::zeros(x.size(), (Kind::Float, x.device()));
        let dq = self.q.empty_like();
        let (dk, dv) = (sums(&self.k), self.v.as_ref().map(sums));
        let arguments = [
            address(&self.output, Kind::BFloat16),
            address(&self.lse, Kind::Float),
            address(&grad, Kind::BFloat16),
            address(&dq, Kind::BFloat16),
            address(&dk, Kind::Float),
            address_of(dv.as_ref(), Kind::Float),
        ];
        let arguments = [&self.problem(0, rows)[..], &arguments].concat();
        let (source, constants) = self.shape.source();
        // SAFETY: output and grad are [Q, heads, v_dim], lse [Q, heads], and gradients like their tensors.
        unsafe {
            launch(
                self.stream,
                (source, &constants, "dsa_attention_backward"),
                [rows, self.shape.parts()],
                (THREADS, self.shape.backward_bytes()),
                &arguments,
            );
        }
        let narrow = |x: Tensor| Some(x.to_kind(Kind::BFloat16));
        let mut all = vec![Some(dq), narrow(dk)];
        all.extend(dv.map(narrow));
        all
    }
}
