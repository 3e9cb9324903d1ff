//! Attention over selected keys as dense attention in which all others are masked: a second way to [`super::attention`]'s result.
//!
//! bias[t,s] = 0 for s in S_t, else -inf;  P[t,h,.] = softmax_s(scale q[t,h] . k[s,h] + bias[t,s]);  o[t,h] = sum_s P[t,h,s] v[s,h].
//! cuDNN multiplies every key it is given. Queries are worked on some rows at a time, and given the keys up to the last of them,
//! so that about half of an L x L matrix is left out. A document is padded, since cuDNN plans anew for each size it meets.
//! The masks are kept for the backward pass.
//! Shapes: Q queries, S keys, K selected ones a query.

use tch::{Kind, Tensor};

use super::dense;
use super::indexer::Visibility;
use super::stream;
use crate::error::KernelError;
use crate::{autograd, ffi};

/// Rows of a mask begin at multiples of so many numbers.
const ALIGNMENT: i64 = 16;

/// Documents are padded to multiples of so many tokens.
const PADDING: i64 = 256;
/// The widest heads that were tested.
const LARGEST_DIM: i64 = 192;

/// Rows that are worked on at once: more of them leave less out, and add gradients of keys up less often.
pub(super) fn rows_at_once(len: i64, learns: bool) -> i64 {
    match learns && len > 4096 {
        true => 2048,
        false => 1024,
    }
}

fn padded(tokens: i64) -> i64 {
    (tokens + PADDING - 1) / PADDING * PADDING
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

/// Attention of a document's queries to their selected keys, given rows at a time: as [`super::attention::SelectedAttention`].
#[derive(Debug)]
pub struct MaskedAttention {
    /// `[Q,heads,d]`.
    q: Tensor,
    /// `[Q,kv_heads,d]`.
    k: Tensor,
    /// As libtorch takes them, padded: `[1,heads,..,d]`, values `[1,heads,..,dv]`.
    batch: [Tensor; 3],
    scale: f64,
    rows_at_once: i64,
    /// `[rows,heads,dv]` each, with their history.
    outputs: Vec<Tensor>,
    /// log sum_s exp(scale q . k) over selected keys, `[Q,heads]` f32.
    lse: Tensor,
}

impl MaskedAttention {
    /// `None` where it was not tested: on cards other than Hopper, in types other than bf16, for widths above 192 or that are no
    /// multiples of 16.
    ///
    /// # Shapes
    /// q `[Q,n_heads,d]`, k `[Q,n_kv,d]`, v `[Q,n_kv,dv]`, all of one document.
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Option<MaskedAttention> {
        let (len, heads, dim) = q.size3().expect("q is [Q, n_heads, d]");
        let is_known = [dim, v.size()[2]]
            .iter()
            .all(|width| width % 16 == 0 && *width <= LARGEST_DIM)
            && [k, v].iter().all(|x| x.kind() == Kind::BFloat16);
        stream(q).filter(|stream| is_known && stream.is_hopper() && dense::fits(dim, stream))?;
        let missing = padded(len) - len;
        let batch = [q, k, v].map(|x| {
            let x = match missing {
                0 => x.shallow_clone(),
                _ => x.constant_pad_nd([0, 0, 0, 0, 0, missing]),
            };
            let x = x.transpose(0, 1).unsqueeze(0);
            match heads / x.size()[1] {
                1 => x,
                group => x.repeat_interleave_self_int(group, 1, None),
            }
        });
        Some(MaskedAttention {
            q: q.shallow_clone(),
            k: k.shallow_clone(),
            batch,
            scale,
            rows_at_once: rows_at_once(len, autograd::is_enabled()),
            outputs: Vec::new(),
            lse: Tensor::empty([len, heads], (Kind::Float, q.device())),
        })
    }

    /// Attends with the queries from `first` on, those behind the ones that attended before, to the keys of `selected` `[rows,K]`: i32
    /// or i64, -1 for absent, at least one. `first` is a multiple of 256.
    ///
    /// # Errors
    /// [`KernelError::Libtorch`] where cuDNN is missing.
    pub fn attend(&mut self, first: i64, selected: &Tensor) -> Result<(), KernelError> {
        let end = first + selected.size()[0];
        let mut from = first;
        while from < end {
            let rows = self.rows_at_once.min(end - from);
            let selected = selected.narrow(0, from - first, rows);
            let output = self.attend_rows(from, rows, &selected)?;
            self.outputs.push(output);
            from += rows;
        }
        Ok(())
    }

    fn attend_rows(&self, first: i64, rows: i64, selected: &Tensor) -> Result<Tensor, KernelError> {
        let (padded_rows, num_keys) = (padded(rows), padded(first + rows));
        let [q, k, v] = &self.batch;
        let heads = q.size()[1];
        // Rows without a key would be NaN.
        let selected = selected.pad([0, 0, 0, padded_rows - rows], "constant", 0.0);
        let lent = [
            q.narrow(2, first, padded_rows),
            k.narrow(2, 0, num_keys),
            v.narrow(2, 0, num_keys),
            bias(&selected, num_keys),
        ];
        let lent = ffi::lend(&lent);
        let (mut output, mut lse) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: pointers borrowed from live tensors; the shim fills both results where it succeeds.
        let code = unsafe {
            ffi::baleen_masked_attention(
                lent[0],
                lent[1],
                lent[2],
                lent[3],
                self.scale,
                &mut output,
                &mut lse,
            )
        };
        ffi::check("masked attention", code)?;
        // SAFETY: handed out just now.
        let [output, lse] =
            [output, lse].map(|x| unsafe { ffi::take(x) }.expect("a defined tensor"));
        // The sums have a last side of 1.
        let lse = lse.detach().reshape([heads, -1]).narrow(1, 0, rows);
        let own = self.lse.narrow(0, first, rows);
        own.shallow_clone().copy_(&lse.transpose(0, 1));
        Ok(output.narrow(2, 0, rows).squeeze_dim(0).transpose(0, 1))
    }

    /// sum_h P[t,h,j] of the queries from `visibility.first` on, which have attended to the keys of `selected` `[rows,K]`: as large, f32,
    /// 0 at absent entries.
    pub fn head_probs_sum(&self, selected: &Tensor, visibility: Visibility) -> Tensor {
        let (first, rows) = (visibility.first, selected.size()[0]);
        let (q, lse) = (
            self.q.narrow(0, first, rows),
            self.lse.narrow(0, first, rows),
        );
        let k = self.k.narrow(0, 0, first + rows);
        let all = dense::head_probs_sum_of(&q, &k, visibility, self.scale, Some(&lse))
            .expect("sizes were checked");
        let columns = selected.to_kind(Kind::Int64);
        let is_absent = columns.lt(0);
        let sums = all.gather(1, &columns.clamp_min(0), false);
        sums.masked_fill(&is_absent, 0.0)
    }

    /// The attended values `[Q,heads,dv]` in bf16, once all queries have attended.
    pub fn into_output(self) -> Tensor {
        Tensor::cat(&self.outputs, 0)
    }
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
