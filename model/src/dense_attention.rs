//! Attention of one document to every visible key.
//!
//! out = softmax(q k^T scale) v  over the keys up to each query, those of cached tokens before the document included.
//! A whole document is in causal order from its first key on, which libtorch knows. Behind cached tokens query i sees the
//! first past + i + 1 keys: flash attention takes that on a GPU in bf16; elsewhere a mask says it, for some queries at once.
//! L queries, S = past + L keys.

use kernels::fused;
use kernels::fused::varlen::{self, VarlenPlan};
use kernels::tch::{Kind, Tensor};

use crate::attention::Heads;
use crate::context::DocumentContext;

/// Elements of a mask (16 MB, and 64 MB once libtorch has made f32 of it).
const MASK_ELEMENTS: i64 = 1 << 24;

/// Attention of one document to every visible key, `[L, heads, dv]`.
pub(crate) fn attend_dense(
    heads: &Heads,
    document: &DocumentContext,
    softmax_scale: f64,
) -> Tensor {
    let v = heads.own_values();
    let (width, v_width) = (heads.q.size()[2], v.size()[2]);
    if document.past == 0 && document.is_branched() && knows_sequences(&heads.q, width, v_width) {
        return attend_sequences(heads, document.varlen_plan(), softmax_scale);
    }
    let [q, k, v] = [&heads.q, &heads.k, v].map(|x| of_width(x, width.max(v_width)));
    let attended = match document.past {
        0 => attend([&q, &k, &v], document.visible(), softmax_scale),
        past => attend_behind([&q, &k, &v], past, softmax_scale),
    };
    attended.narrow(2, 0, v_width)
}

/// Queries `[L, heads, d]` over keys and values `[S, kv_heads, d]`, by a mask or in causal order.
fn attend([q, k, v]: [&Tensor; 3], visible: Option<&Tensor>, softmax_scale: f64) -> Tensor {
    let batch = |x: &Tensor| x.transpose(0, 1).unsqueeze(0);
    Tensor::scaled_dot_product_attention(
        &batch(q),
        &batch(k),
        &batch(v),
        visible,
        0.0,
        visible.is_none(),
        softmax_scale,
        q.size()[1] != k.size()[1],
    )
    .squeeze_dim(0)
    .transpose(0, 1)
}

/// The same of queries behind `past` keys.
fn attend_behind([q, k, v]: [&Tensor; 3], past: i64, softmax_scale: f64) -> Tensor {
    let len = q.size()[0];
    if varlen::serves(q, v) {
        let plan = VarlenPlan::of_gathered(&[[len, past + len]], q.device());
        let attended = varlen::attend(q, k, v, &plan, softmax_scale);
        return attended.expect("flash attention knows bf16 heads of up to 256");
    }
    let rows_at_once = (MASK_ELEMENTS / (past + len)).clamp(1, len);
    let tiles = (0..len).step_by(rows_at_once as usize).map(|first| {
        let rows = rows_at_once.min(len - first);
        let num_keys = past + first + rows;
        let visible = Tensor::ones([rows, num_keys], (Kind::Bool, q.device())).tril(past + first);
        let in_sight = |x: &Tensor| x.narrow(0, 0, num_keys);
        let tile = [&q.narrow(0, first, rows), &in_sight(k), &in_sight(v)];
        attend(tile, Some(&visible), softmax_scale)
    });
    Tensor::cat(&tiles.collect::<Vec<Tensor>>(), 0)
}

/// Whether [`attend_sequences`] takes heads of these widths, of the type and on the device of `x`.
pub(crate) fn knows_sequences(x: &Tensor, width: i64, v_width: i64) -> bool {
    fused::runs_on(x) && width % 16 == 0 && v_width <= width && width <= 256
}

/// Attention of all sequences of `plan` at once to every key they see, on a GPU in half precision: `heads` and the result
/// `[T, heads, dv]` over the plan's rows.
pub(crate) fn attend_sequences(heads: &Heads, plan: &VarlenPlan, softmax_scale: f64) -> Tensor {
    let v = heads.own_values();
    let (width, v_width) = (heads.q.size()[2], v.size()[2]);
    let rows = plan.gathered_rows();
    let gathered = |x: &Tensor| match rows.size()[0] == x.size()[0] {
        // Without branches rows are gathered in their own order.
        true => x.shallow_clone(),
        false => x.index_select(0, &rows),
    };
    let (k, v) = (gathered(&heads.k), of_width(&gathered(v), width));
    varlen::attend(&heads.q, &k, &v, plan, softmax_scale)
        .expect("flash attention knows bf16 heads of up to 256")
        .narrow(2, 0, v_width)
}

/// `x` `[.., width]`, zeros added: they change no product, and kernels that keep no [L, L] want one width for all three.
fn of_width(x: &Tensor, width: i64) -> Tensor {
    match width - x.size()[x.dim() - 1] {
        0 => x.shallow_clone(),
        missing => x.constant_pad_nd([0, missing]),
    }
}
