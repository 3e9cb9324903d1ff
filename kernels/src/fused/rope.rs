//! Half-split RoPE of queries and keys, with keys and values gathered for [`super::varlen`].
//!
//! With rotate(x)_i = x_i cos_i - x_{i+d/2} sin_i and rotate(x)_{i+d/2} = x_{i+d/2} cos_{i+d/2} + x_i sin_{i+d/2}:
//!   q_t = rotate_t(x_t), k_r = rotate_{row(r)}(x_{row(r)}), v_r = x_{row(r)}, each of its own columns of x.
//! The gradient of a row is the sum over its copies, rotated back. T rows, R gathered rows, H and K heads of width d.

use tch::{Kind, Tensor};

use super::varlen::VarlenPlan;
use super::{address, int, launch, stream};
use crate::autograd::custom;
use crate::cuda::Argument;

const THREADS: u32 = 256;
/// Numbers of a head that a thread rotates.
const PART: i64 = 16;

/// Queries, keys and values side by side in one row, and how they turn.
#[derive(Clone, Copy, Debug)]
pub struct RotatedHeads<'a> {
    /// H.
    pub heads: i64,
    /// K.
    pub kv_heads: i64,
    /// `[T, d]`, both halves filled.
    pub cos: &'a Tensor,
    /// Likewise.
    pub sin: &'a Tensor,
}

/// Rotated queries `[T, H, d]`, rotated keys and values `[R, K, d]`.
///
/// # Shapes
/// `qkv` `[T, (H + 2 K) d]`.
pub fn rope_and_gather(qkv: &Tensor, heads: &RotatedHeads, plan: &VarlenPlan) -> [Tensor; 3] {
    let dim = heads.cos.size()[1];
    let Some(stream) = stream(qkv).filter(|_| dim % PART == 0) else {
        return rope_and_gather_reference(qkv, heads, plan);
    };
    let (num_rows, width) = qkv.size2().expect("qkv is [T, (H + 2 K) d]");
    let &RotatedHeads {
        heads: num_heads,
        kv_heads,
        cos,
        sin,
    } = heads;
    let per_row = num_heads + 2 * kv_heads;
    assert_eq!(width, per_row * dim, "qkv is [T, (H + 2 K) d]");
    assert_eq!(plan.starts.size(), [num_rows + 1], "a plan of this pack");
    for table in [cos, sin] {
        assert_eq!(table.size(), [num_rows, dim], "a rotation of this pack");
        assert_eq!(
            table.kind(),
            Kind::BFloat16,
            "a rotation in the compute type"
        );
    }
    let constants = [("HEAD_DIM", dim)];
    let num_gathered = plan.rows.size()[0];
    let options = (Kind::BFloat16, qkv.device());
    let q = Tensor::empty([num_rows, num_heads, dim], options);
    let [k, v] = [(); 2].map(|()| Tensor::empty([num_gathered, kv_heads, dim], options));
    let source = qkv.detach().contiguous();
    let [cos, sin] = [cos, sin].map(Tensor::contiguous);
    let parts = dim / PART;
    let (num_q, num_kv) = (num_rows * num_heads, num_gathered * kv_heads);
    let arguments = [
        address(&source),
        address(&cos),
        address(&sin),
        address(&plan.rows),
        int(num_heads),
        int(kv_heads),
        Argument::Long(num_q),
        Argument::Long(num_kv),
        address(&q),
        address(&k),
        address(&v),
    ];
    let items = [(num_q + num_kv) * parts, i64::from(THREADS)];
    // SAFETY: sizes were compared or made here; the plan's rows are those of the pack.
    unsafe {
        launch(
            stream,
            ("rope_and_gather", &constants),
            items,
            THREADS,
            &arguments,
        )
    };

    let (starts, copies) = (plan.starts.shallow_clone(), plan.copies.shallow_clone());
    let shapes = [q.size(), k.size(), v.size()];
    let outputs = custom(vec![q, k, v], &[qkv], move |grads| {
        let grads = grads
            .into_iter()
            .zip(&shapes)
            .map(|(grad, shape)| match grad {
                Some(grad) => grad.contiguous(),
                None => Tensor::zeros(shape.as_slice(), options),
            });
        let grads: Vec<Tensor> = grads.collect();
        let grad = Tensor::empty([num_rows, width], options);
        let arguments = [
            address(&grads[0]),
            address(&grads[1]),
            address(&grads[2]),
            address(&cos),
            address(&sin),
            address(&starts),
            address(&copies),
            int(num_heads),
            int(kv_heads),
            Argument::Long(num_rows * per_row),
            address(&grad),
        ];
        let items = [num_rows * per_row * parts, i64::from(THREADS)];
        let kernel = ("rope_and_gather_backward", &constants[..]);
        // SAFETY: as above; gradients are like what they are gradients of.
        unsafe { launch(stream, kernel, items, THREADS, &arguments) };
        vec![Some(grad)]
    });
    let outputs = outputs.expect("outputs in a floating type can be given a history");
    outputs.try_into().expect("three outputs")
}

/// [`rope_and_gather`], the slow way, on any device.
pub fn rope_and_gather_reference(
    qkv: &Tensor,
    heads: &RotatedHeads,
    plan: &VarlenPlan,
) -> [Tensor; 3] {
    let dim = heads.cos.size()[1];
    let parts = [heads.heads, heads.kv_heads, heads.kv_heads];
    let columns = qkv.split_with_sizes(parts.map(|heads| heads * dim), 1);
    let heads_of = |part: usize| columns[part].reshape([-1, parts[part], dim]);
    let (cos, sin) = (heads.cos.unsqueeze(1), heads.sin.unsqueeze(1));
    let turned = |x: &Tensor| {
        let halves = x.chunk(2, 2);
        let swapped = Tensor::cat(&[&halves[1].neg(), &halves[0]], 2);
        x * &cos + swapped * &sin
    };
    let rows = plan.gathered_rows();
    [
        turned(&heads_of(0)),
        turned(&heads_of(1)).index_select(0, &rows),
        heads_of(2).index_select(0, &rows),
    ]
}
