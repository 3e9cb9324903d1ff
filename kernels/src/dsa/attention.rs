//! Attention over the selected keys only.
//!
//! P[t,h,j] = softmax_j(scale q[t,h] . k[S_t[j], h / group]);  o[t,h] = sum_j P[t,h,j] v[S_t[j], h / group].
//! Products and softmax in f32 (f64 from f64), output in the type of q. Shapes: q [Q,n_heads,head_dim],
//! k [S,n_kv,head_dim], v [S,n_kv,v_dim], n_heads = n_kv group, S_t = selected [Q,K], -1 for absent entries.
//! Latent attention is the case n_kv = 1 with v the leading columns of k: every head of a query shares
//! its selected entries, which are gathered once.
//! Every query must have at least one selected key (it sees itself); a row of nothing but -1 gives NaN.

use tch::{Kind, Tensor};

use super::accumulation_kind;
use crate::autograd;

/// Up to this many keys for each selected one, masking beats gathering: copying a key and a value
/// per selection, and adding up their gradients, costs more than scores that are thrown away.
/// (One CPU thread, 9 heads of 64, K = 64, forward and backward: 4 ms against 20 ms at S = 200,
/// 8 against 10 at S = 500, 13 against 12 at S = 1000.) So bounded, the masked scores of a tile
/// take less memory than the copies would.
const MASKED_KEYS_PER_SELECTED: i64 = 8;

/// Elements of gathered keys and values, and of scores, that are alive at once (128 MB of f32).
const TILE_ELEMENTS: i64 = 1 << 25;

/// Where values come from.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// A tensor beside the keys.
    Own(&'a Tensor),
    /// The leading columns of the keys, that many.
    KeyPrefix(i64),
}

impl<'a> From<&'a Tensor> for Values<'a> {
    fn from(values: &'a Tensor) -> Values<'a> {
        Values::Own(values)
    }
}

/// Whether attention over `num_selected` of `num_keys` keys gathers them, rather than masking the
/// others.
pub fn gathers(num_keys: i64, num_selected: i64) -> bool {
    num_keys > MASKED_KEYS_PER_SELECTED * num_selected
}

/// What [`attend_selected`] returns.
#[derive(Debug)]
pub struct Attended {
    /// Attention output, `[Q,n_heads,v_dim]`, in the type of q.
    pub output: Tensor,
    /// sum_h P[t,h,j], `[Q,K]` f32, detached; 0 at absent entries. Sums to n_heads along K.
    pub head_probs_sum: Tensor,
}

/// Attention of each query over its selected keys, for training. Differentiable in q, k and v.
///
/// Works at most `tile` queries at a time, fewer where their intermediates would be large; with more
/// than one tile, each is computed again in the backward pass. Memory beyond the inputs grows with
/// tile K, never with Q S.
///
/// # Shapes
/// q `[Q,n_heads,head_dim]`, k `[S,n_kv,head_dim]`, v `[S,n_kv,v_dim]` or a number of columns of k,
/// selected `[Q,K]` i64, -1 for absent.
pub fn attend_selected<'a>(
    q: &Tensor,
    k: &Tensor,
    v: impl Into<Values<'a>>,
    selected: &Tensor,
    scale: f64,
    tile: usize,
) -> Attended {
    let gathers = gathers(k.size()[0], selected.size()[1]);
    attend_in_tiles(q, k, v.into(), (selected, gathers), scale, tile)
}

/// [`attend_selected`] by gathering, whatever would be the cheaper way.
pub fn attend_gathered<'a>(
    q: &Tensor,
    k: &Tensor,
    v: impl Into<Values<'a>>,
    selected: &Tensor,
    scale: f64,
    tile: usize,
) -> Attended {
    attend_in_tiles(q, k, v.into(), (selected, true), scale, tile)
}

fn attend_in_tiles(
    q: &Tensor,
    k: &Tensor,
    v: Values,
    (selected, gathers): (&Tensor, bool),
    scale: f64,
    tile: usize,
) -> Attended {
    let num_queries = q.size()[0];
    let kind = accumulation_kind(q);
    let k = k.to_kind(kind);
    let (own, prefix) = match v {
        Values::Own(v) => (Some(v.to_kind(kind)), 0),
        Values::KeyPrefix(columns) => (None, columns),
    };
    let tile = tile.clamp(1, tile_rows(q, &k, own.as_ref(), (selected, gathers))) as i64;
    if num_queries <= tile {
        let v = values_of(own.as_ref(), prefix);
        return attend_tile(q, &k, v, (selected, gathers), scale);
    }
    let (outputs, sums): (Vec<Tensor>, Vec<Tensor>) = (0..num_queries)
        .step_by(tile as usize)
        .map(|start| {
            let rows = tile.min(num_queries - start);
            let selected = selected.narrow(0, start, rows);
            let mut inputs = vec![q.narrow(0, start, rows), k.shallow_clone()];
            inputs.extend(own.as_ref().map(Tensor::shallow_clone));
            let mut attended = autograd::checkpoint(&inputs, move |x| {
                let v = values_of(x.get(2), prefix);
                let tile = attend_tile(&x[0], &x[1], v, (&selected, gathers), scale);
                vec![tile.output, tile.head_probs_sum]
            })
            .into_iter();
            let output = attended.next().expect("the first of two outputs");
            let sum = attended.next().expect("the second of two outputs");
            (output, sum.detach())
        })
        .unzip();
    Attended {
        output: Tensor::cat(&outputs, 0),
        head_probs_sum: Tensor::cat(&sums, 0),
    }
}

fn values_of(own: Option<&Tensor>, prefix: i64) -> Values<'_> {
    own.map_or(Values::KeyPrefix(prefix), Values::Own)
}

/// Queries whose intermediates stay within [`TILE_ELEMENTS`], at least 1.
fn tile_rows(
    q: &Tensor,
    k: &Tensor,
    own_values: Option<&Tensor>,
    (selected, gathers): (&Tensor, bool),
) -> usize {
    let (num_heads, num_selected) = (q.size()[1], selected.size()[1]);
    let (num_keys, num_kv, head_dim) = k.size3().expect("k is [S, n_kv, head_dim]");
    let elements = match gathers {
        true => {
            let width = head_dim + own_values.map_or(0, |v| v.size()[2]);
            num_selected * (num_kv * width + num_heads)
        }
        false => num_keys * num_heads,
    };
    (TILE_ELEMENTS / elements.max(1)).max(1) as usize
}

/// One tile. Both ways compute the same.
fn attend_tile(
    q: &Tensor,
    k: &Tensor,
    v: Values,
    (selected, gathers): (&Tensor, bool),
    scale: f64,
) -> Attended {
    match gathers {
        true => gathered_tile(q, k, v, selected, scale),
        false => masked_tile(q, k, v, selected, scale),
    }
}

/// One tile by gathering the selected keys and values of each query.
fn gathered_tile(q: &Tensor, k: &Tensor, v: Values, selected: &Tensor, scale: f64) -> Attended {
    let (num_queries, num_heads, _) = q.size3().expect("q is [Q, n_heads, head_dim]");
    let (num_keys, num_kv, _) = k.size3().expect("k is [S, n_kv, head_dim]");
    let num_selected = selected.size()[1];
    let kind = k.kind();

    // Row s n_kv + h of [S n_kv, head_dim] is key head h of token s: one gather gives
    // [Q,n_kv,K,head_dim] without a transpose. Absent entries read token 0 and are masked below.
    let heads = Tensor::arange(num_kv, (Kind::Int64, q.device())).unsqueeze(1);
    let rows = (selected.clamp_min(0) * num_kv).unsqueeze(1) + heads;
    let rows = rows.view([-1]);
    let gather = |x: &Tensor| {
        x.reshape([num_keys * num_kv, -1])
            .index_select(0, &rows)
            .view([num_queries * num_kv, num_selected, -1])
    };
    let keys = gather(k);
    let probs = gathered_probs(&q.to_kind(kind), &keys, num_kv, selected, scale);
    let values = match v {
        Values::Own(v) => gather(v),
        Values::KeyPrefix(columns) => keys.narrow(2, 0, columns),
    };
    let output = probs.bmm(&values).view([num_queries, num_heads, -1]);
    let head_probs_sum = probs
        .detach()
        .view([num_queries, num_heads, num_selected])
        .sum_dim_intlist(1, false, kind);
    Attended {
        output: output.to_kind(q.kind()),
        head_probs_sum,
    }
}

/// Softmax of each query head over its gathered keys: q `[Q,n_heads,head_dim]`, keys
/// `[Q n_kv,K,head_dim]` -> `[Q n_kv,group,K]`, 0 at absent entries.
fn gathered_probs(q: &Tensor, keys: &Tensor, num_kv: i64, selected: &Tensor, scale: f64) -> Tensor {
    let (num_queries, num_heads, head_dim) = q.size3().expect("q is [Q, n_heads, head_dim]");
    let q_rows = q.reshape([num_queries * num_kv, num_heads / num_kv, head_dim]);
    absent_bias(selected, num_kv, keys.kind())
        .baddbmm(&q_rows, &keys.transpose(1, 2), 1.0, scale)
        .softmax(-1, keys.kind())
}

/// One tile by attending to all keys, with those outside the selection at -inf.
fn masked_tile(q: &Tensor, k: &Tensor, v: Values, selected: &Tensor, scale: f64) -> Attended {
    let (num_queries, num_heads, head_dim) = q.size3().expect("q is [Q, n_heads, head_dim]");
    let (num_keys, num_kv, _) = k.size3().expect("k is [S, n_kv, head_dim]");
    let group = num_heads / num_kv;
    let kind = k.kind();

    // Column `num_keys` takes what absent entries write.
    let absent = selected.lt(0);
    let bias = Tensor::full(
        [num_queries, num_keys + 1],
        f64::NEG_INFINITY,
        (kind, q.device()),
    )
    .scatter_value_(1, &selected.masked_fill(&absent, num_keys), 0.0)
    .narrow(1, 0, num_keys);
    // The queries of one key head as rows of one product: [n_kv, Q group, head_dim].
    let q_rows = (q.to_kind(kind) * scale)
        .reshape([num_queries, num_kv, group, head_dim])
        .transpose(0, 1)
        .reshape([num_kv, num_queries * group, head_dim]);
    let mut scores = q_rows
        .bmm(&k.permute([1, 2, 0]))
        .view([num_kv, num_queries, group, num_keys]);
    scores += bias.unsqueeze(1);
    let probs = scores.softmax(-1, kind);
    let values = match v {
        Values::Own(v) => v.shallow_clone(),
        Values::KeyPrefix(columns) => k.narrow(2, 0, columns),
    };
    let output = probs
        .view([num_kv, num_queries * group, num_keys])
        .bmm(&values.transpose(0, 1))
        .view([num_kv, num_queries, group, -1])
        .transpose(0, 1)
        .reshape([num_queries, num_heads, -1]);
    let head_probs_sum = probs
        .detach()
        // One dim at a time: over both at once libtorch is ten times slower.
        .sum_dim_intlist(0, false, kind)
        .sum_dim_intlist(1, false, kind)
        .gather(1, &selected.clamp_min(0), false)
        .masked_fill(&absent, 0.0);
    Attended {
        output: output.to_kind(q.kind()),
        head_probs_sum,
    }
}

/// 0 where an entry is present and -inf where it is absent: `[rows,K]` -> `[rows num_kv,1,K]`.
fn absent_bias(selected: &Tensor, num_kv: i64, kind: Kind) -> Tensor {
    let (num_rows, num_selected) = selected.size2().expect("selected is [rows, K]");
    Tensor::zeros([num_rows, 1, 1, num_selected], (kind, selected.device()))
        .masked_fill(
            &selected.lt(0).view([num_rows, 1, 1, num_selected]),
            f64::NEG_INFINITY,
        )
        .expand([num_rows, num_kv, 1, num_selected], false)
        .reshape([num_rows * num_kv, 1, num_selected])
}

/// Attention of one new query per sequence over the selected entries of its cache, for decoding.
///
/// # Shapes
/// q `[B,n_heads,head_dim]`, caches `[R,n_kv,head_dim]` and `[R,n_kv,v_dim]` (or a number of columns of the
/// former), R rows for all sequences; rows `[B,K]` i64 of the selected tokens, -1 for absent ->
/// `[B,n_heads,v_dim]`.
pub fn attend_selected_cached<'a>(
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: impl Into<Values<'a>>,
    rows: &Tensor,
    scale: f64,
) -> Tensor {
    let (batch, num_heads, _) = q.size3().expect("q is [B, n_heads, head_dim]");
    let (num_rows, num_kv, _) = k_cache.size3().expect("caches are [R, n_kv, head_dim]");
    let num_selected = rows.size()[1];
    let kind = accumulation_kind(q);

    // As in `attend_gathered`: one gather gives [B,n_kv,K,head_dim] without a transpose.
    let heads = Tensor::arange(num_kv, (Kind::Int64, q.device())).unsqueeze(1);
    let head_rows = (rows.clamp_min(0) * num_kv).unsqueeze(1) + heads;
    let head_rows = head_rows.view([-1]);
    let gather = |cache: &Tensor| {
        cache
            .reshape([num_rows * num_kv, -1])
            .index_select(0, &head_rows)
            .view([batch * num_kv, num_selected, -1])
            .to_kind(kind)
    };
    let keys = gather(k_cache);
    let probs = gathered_probs(&q.to_kind(kind), &keys, num_kv, rows, scale);
    let values = match v_cache.into() {
        Values::Own(v_cache) => gather(v_cache),
        Values::KeyPrefix(columns) => keys.narrow(2, 0, columns),
    };
    let output = probs.bmm(&values).view([batch, num_heads, -1]);
    output.to_kind(q.kind())
}

#[cfg(test)]
mod tests;
