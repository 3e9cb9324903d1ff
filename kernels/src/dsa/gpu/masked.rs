//! Attention over selected keys as dense attention in which all others are masked: a second way to [`super::attention`]'s result.
//!
//! bias[t,s] = 0 for s in S_t, else -inf;  P[t,h,.] = softmax_s(scale q[t,h] . k[s,h] + bias[t,s]);  o[t,h] = sum_s P[t,h,s] v[s,h].
//! libtorch's kernels multiply every key they are given. Queries are worked on some rows at a time, and given the keys up to the
//! last of them, so that about half of an L x L matrix is left out, and the mask of all rows never exists.
//! Shapes: Q queries, S keys, K selected ones a query.

use tch::{Kind, Tensor};

use super::dense;
use super::indexer::Visibility;
use crate::error::KernelError;
use crate::ffi;

/// Rows of a mask begin at multiples of so many numbers.
const ALIGNMENT: i64 = 16;

/// Whose kernels compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// cuDNN's.
    Cudnn,
    /// Those that come with libtorch ("memory-efficient").
    Libtorch,
}

/// 0 at the keys `selected` `[Q,K]` (i32 or i64, -1 for absent) of `num_keys`, -inf elsewhere: `[Q,S]` bf16.
fn bias(selected: &Tensor, num_keys: i64) -> Tensor {
    // Absent entries go to a column behind the last key.
    let width = (num_keys / ALIGNMENT + 1) * ALIGNMENT;
    let columns = selected.to_kind(Kind::Int64);
    let columns = columns.masked_fill(&columns.lt(0), num_keys);
    let options = (Kind::BFloat16, selected.device());
    Tensor::full([selected.size()[0], width], f64::NEG_INFINITY, options)
        .scatter_value_(1, &columns, 0.0)
        .narrow(1, 0, num_keys)
}

/// What [`attend`] makes of some rows.
#[derive(Debug)]
pub struct MaskedRows {
    /// `[Q,heads,dv]` bf16, differentiable.
    pub output: Tensor,
    /// log sum_s exp(scale q . k) over selected keys, `[Q,heads]` f32.
    pub lse: Tensor,
}

/// Attention of `rows` queries to the keys of `selected`, those of one document up to the last row.
///
/// # Shapes
/// q `[Q,heads,d]`, k `[S,kv_heads,d]`, v `[S,kv_heads,dv]`, bf16, widths multiples of 8; selected `[Q,K]`.
///
/// # Errors
/// [`KernelError::Libtorch`] for what the library's kernels don't know.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    selected: &Tensor,
    scale: f64,
    library: Library,
) -> Result<MaskedRows, KernelError> {
    let (rows, heads, _) = q.size3().expect("q is [Q, heads, d]");
    let group = heads / k.size()[1];
    let of_heads = |x: &Tensor| match group {
        1 => x.transpose(0, 1).unsqueeze(0),
        _ => x
            .transpose(0, 1)
            .repeat_interleave_self_int(group, 0, None)
            .unsqueeze(0),
    };
    let bias = bias(selected, k.size()[0]);
    let inputs = [
        q.transpose(0, 1).unsqueeze(0),
        of_heads(k),
        of_heads(v),
        bias,
    ];
    let lent = ffi::lend(&inputs);
    let (mut output, mut lse) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: pointers borrowed from live tensors; the shim fills both results where it succeeds.
    let code = unsafe {
        ffi::baleen_masked_attention(
            lent[0],
            lent[1],
            lent[2],
            lent[3],
            scale,
            (library == Library::Cudnn).into(),
            &mut output,
            &mut lse,
        )
    };
    ffi::check("masked::attend", code)?;
    // SAFETY: handed out just now.
    let [output, lse] = [output, lse].map(|x| unsafe { ffi::take(x) }.expect("a defined tensor"));
    // Rows of the sums are padded, or have a last side of 1.
    let lse = lse.detach().reshape([heads, -1]).narrow(1, 0, rows);
    Ok(MaskedRows {
        output: output.squeeze_dim(0).transpose(0, 1),
        lse: lse.transpose(0, 1),
    })
}

/// sum_h P[t,h,j] of rows that attended with `lse` `[Q,heads]`: `[Q,K]` f32, 0 at absent entries; `None` where
/// [`dense::head_probs_sum_of`] can't.
pub fn head_probs_sum(
    q: &Tensor,
    k: &Tensor,
    selected: &Tensor,
    visibility: Visibility,
    (lse, scale): (&Tensor, f64),
) -> Option<Tensor> {
    let all = dense::head_probs_sum_of(q, k, visibility, scale, Some(lse))?;
    let columns = selected.to_kind(Kind::Int64);
    let is_absent = columns.lt(0);
    let sums = all.gather(1, &columns.clamp_min(0), false);
    Some(sums.masked_fill(&is_absent, 0.0))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_mask_is_zero_at_selected_keys_alone() {
        let selected = Tensor::from_slice(&[0_i64, -1, 1, 2])
            .view([2, 2])
            .to_device(Device::Cpu);
        let mask = bias(&selected, 3);
        assert_eq!(mask.stride(), [16, 1]);
        let mask = Vec::<f32>::try_from(mask.to_kind(Kind::Float).reshape([6])).unwrap();
        let hidden = f32::NEG_INFINITY;
        assert_eq!(mask, [0.0, hidden, hidden, hidden, 0.0, 0.0]);
    }
}
