//! Attention within the sequences of a pack, all at once.
//!
//! A [`VarlenPlan`] says which rows of a pack are the queries of a sequence, and which rows its keys: for a branch of
//! a document those of the trunk, then its own. Query i of n sees the first m - n + i + 1 of m keys:
//!   out = softmax(q k^T scale) v   over those.
//! Keys and values are gathered row by row, so that each sequence's lie beside each other; no [T, T] exists.
//! T rows of a pack, R gathered rows, S sequences.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::KernelError;
use crate::{ffi, upload};

/// The widest head that flash attention knows.
const WIDEST_HEAD: i64 = 256;

/// One sequence: consecutive rows are queries, rows of some ranges their keys, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VarlenSequence {
    /// Rows of the queries.
    pub queries: Range<i64>,
    /// Rows of the keys, which end with those of the queries.
    pub keys: Vec<Range<i64>>,
}

/// Where everything lies, on the device.
#[derive(Debug)]
pub struct VarlenPlan {
    sequences: Vec<[i64; 2]>,
    longest: [i64; 2],
    /// Ends of the sequences' queries, i32 `[S + 1]` from 0.
    cum_q: Tensor,
    /// The same of gathered keys.
    cum_k: Tensor,
    /// Row of the pack of each gathered row, i32 `[R]`.
    pub(super) rows: Tensor,
    /// Row t was gathered to `copies[starts[t]..starts[t + 1]]`; i32 `[T + 1]` and `[R]`.
    pub(super) starts: Tensor,
    pub(super) copies: Tensor,
}

impl VarlenPlan {
    /// The plan of a pack of `num_rows` rows.
    ///
    /// # Panics
    /// Queries that don't cover the pack in order, or keys that don't end with the queries.
    pub fn new(sequences: &[VarlenSequence], num_rows: i64, device: Device) -> VarlenPlan {
        let (mut cum_q, mut cum_k) = (vec![0_i64], vec![0_i64]);
        let (mut rows, mut sizes) = (Vec::new(), Vec::new());
        for VarlenSequence { queries, keys } in sequences {
            assert_eq!(cum_q.last(), Some(&queries.start), "queries in order");
            for range in keys {
                rows.extend(range.clone());
            }
            let num_own = (queries.end - queries.start) as usize;
            let own = rows.len().checked_sub(num_own).map(|first| &rows[first..]);
            assert!(
                own.is_some_and(|own| own.iter().copied().eq(queries.clone())),
                "keys end with the queries"
            );
            cum_q.push(queries.end);
            let num_keys = rows.len() as i64 - cum_k[cum_k.len() - 1];
            sizes.push([queries.end - queries.start, num_keys]);
            cum_k.push(rows.len() as i64);
        }
        assert_eq!(cum_q.last(), Some(&num_rows), "queries cover the pack");
        let mut starts = vec![0_i64; num_rows as usize + 1];
        for &row in &rows {
            starts[row as usize + 1] += 1;
        }
        for row in 0..num_rows as usize {
            starts[row + 1] += starts[row];
        }
        let (mut next, mut copies) = (starts.clone(), vec![0_i64; rows.len()]);
        for (copy, &row) in rows.iter().enumerate() {
            let place = &mut next[row as usize];
            copies[*place as usize] = copy as i64;
            *place += 1;
        }
        let longest = |side: usize| sizes.iter().map(|size: &[i64; 2]| size[side]).max();
        let longest = [0, 1].map(|side| longest(side).unwrap_or(0));
        // One copy to the device.
        let lists = [cum_q, cum_k, rows, starts, copies];
        let lens = lists.each_ref().map(|list| list.len() as i64);
        let all: Vec<i32> = lists
            .iter()
            .flatten()
            .map(|&number| number as i32)
            .collect();
        let all = upload(&all, device);
        let mut parts = all.split_with_sizes(lens, 0).into_iter();
        let mut next = || parts.next().expect("five lists");
        VarlenPlan {
            sequences: sizes,
            longest,
            cum_q: next(),
            cum_k: next(),
            rows: next(),
            starts: next(),
            copies: next(),
        }
    }

    /// The plan of sequences of (queries, keys) whose keys lie beside each other already: for [`attend`] alone, since
    /// it gathers nothing.
    ///
    /// # Panics
    /// More queries than keys.
    pub fn of_gathered(sequences: &[[i64; 2]], device: Device) -> VarlenPlan {
        assert!(
            sequences.iter().all(|[queries, keys]| queries <= keys),
            "keys end with the queries"
        );
        let ends = |side: usize| {
            let mut ends = vec![0_i32];
            for sizes in sequences {
                ends.push(ends[ends.len() - 1] + sizes[side] as i32);
            }
            upload(&ends, device)
        };
        let longest = |side: usize| sequences.iter().map(|sizes| sizes[side]).max();
        let nothing = || Tensor::zeros([0], (Kind::Int, device));
        VarlenPlan {
            sequences: sequences.to_vec(),
            longest: [0, 1].map(|side| longest(side).unwrap_or(0)),
            cum_q: ends(0),
            cum_k: ends(1),
            rows: nothing(),
            starts: nothing(),
            copies: nothing(),
        }
    }

    /// Row of the pack of each gathered row, i64 `[R]`.
    pub fn gathered_rows(&self) -> Tensor {
        self.rows.to_kind(Kind::Int64)
    }
}

/// Whether [`attend`] can be used on queries `[T, heads, d]` and values `[R, kv_heads, d]`, as wide as they are: in bf16 on
/// a GPU, for widths that flash attention knows.
pub fn serves(q: &Tensor, v: &Tensor) -> bool {
    let width = q.size()[2];
    super::runs_on(q) && v.size()[2] == width && width % 8 == 0 && width <= WIDEST_HEAD
}

/// Attention within each sequence, on a GPU in half precision: flash attention, differentiable.
///
/// # Shapes
/// `q` `[T, heads, d]`, `k` and `v` `[R, kv_heads, d]` with d a multiple of 8, 256 at most, and heads a multiple of
/// kv_heads; result `[T, heads, d]`.
///
/// # Errors
/// [`KernelError::Libtorch`] for what flash attention does not know.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &VarlenPlan,
    scale: f64,
) -> Result<Tensor, KernelError> {
    let lent = ffi::lend([q, k, v, &plan.cum_q, &plan.cum_k]);
    let [longest_q, longest_k] = plan.longest;
    let mut result = std::ptr::null_mut();
    // SAFETY: pointers borrowed from live tensors; the shim fills the result where it succeeds.
    let code = unsafe {
        ffi::baleen_varlen_attention(
            lent[0],
            lent[1],
            lent[2],
            lent[3],
            lent[4],
            longest_q,
            longest_k,
            scale,
            &mut result,
        )
    };
    ffi::check("varlen::attend", code)?;
    // SAFETY: handed out just now.
    Ok(unsafe { ffi::take(result) }.expect("attention is a defined tensor"))
}

/// [`attend`], the slow way, on any device.
pub fn attend_reference(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &VarlenPlan,
    scale: f64,
) -> Tensor {
    let group = q.size()[1] / k.size()[1];
    let (mut first_q, mut first_k) = (0, 0);
    let outputs = plan.sequences.iter().map(|&[num_queries, num_keys]| {
        let heads = |x: &Tensor, first, len, group: i64| {
            let x = x.narrow(0, first, len).to_kind(Kind::Float);
            x.repeat_interleave_self_int(group, Some(1), None)
                .transpose(0, 1)
        };
        let query = heads(q, first_q, num_queries, 1);
        let (key, value) = (
            heads(k, first_k, num_keys, group),
            heads(v, first_k, num_keys, group),
        );
        let options = (Kind::Bool, q.device());
        let hidden =
            Tensor::ones([num_queries, num_keys], options).triu(num_keys - num_queries + 1);
        let scores = query.matmul(&key.transpose(1, 2)) * scale;
        let probs = scores
            .masked_fill(&hidden, f64::NEG_INFINITY)
            .softmax(-1, Kind::Float);
        first_q += num_queries;
        first_k += num_keys;
        probs.matmul(&value).transpose(0, 1).to_kind(q.kind())
    });
    let outputs: Vec<Tensor> = outputs.collect();
    Tensor::cat(&outputs, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.to_kind(Kind::Int64)).unwrap()
    }

    /// A trunk of two rows with branches of one and two.
    fn branched() -> [VarlenSequence; 3] {
        [
            (0..2, vec![0..1, 1..2]),
            (2..3, vec![0..2, 2..3]),
            (3..5, vec![0..2, 3..5]),
        ]
        .map(|(queries, keys)| VarlenSequence { queries, keys })
    }

    #[test]
    fn branches_gather_the_trunk_and_themselves() {
        let plan = VarlenPlan::new(&branched(), 5, Device::Cpu);
        assert_eq!(list(&plan.cum_q), [0, 2, 3, 5]);
        assert_eq!(list(&plan.cum_k), [0, 2, 5, 9]);
        assert_eq!(list(&plan.rows), [0, 1, 0, 1, 2, 0, 1, 3, 4]);
        assert_eq!(list(&plan.starts), [0, 3, 6, 7, 8, 9]);
        assert_eq!(list(&plan.copies), [0, 2, 5, 1, 3, 6, 4, 7, 8]);
        assert_eq!(plan.longest, [2, 4]);
    }

    #[test]
    #[should_panic(expected = "keys end with the queries")]
    fn keys_that_do_not_end_with_the_queries_are_refused() {
        let sequence = VarlenSequence {
            queries: 0..2,
            keys: vec![1..2, 0..1],
        };
        VarlenPlan::new(&[sequence], 2, Device::Cpu);
    }

    #[test]
    fn gathered_keys_end_with_the_queries() {
        let plan = VarlenPlan::of_gathered(&[[2, 3], [1, 1]], Device::Cpu);
        assert_eq!(
            (list(&plan.cum_q), list(&plan.cum_k)),
            (vec![0, 2, 3], vec![0, 3, 4])
        );
        assert_eq!(plan.longest, [2, 3]);
        let zeros = |rows| Tensor::zeros([rows, 1, 1], (Kind::Float, Device::Cpu));
        let values = Tensor::arange(4, (Kind::Float, Device::Cpu)).view([4, 1, 1]);
        let out = attend_reference(&zeros(3), &zeros(4), &values, &plan, 1.0);
        let found = Vec::<f32>::try_from(out.view([3])).unwrap();
        assert_eq!(found, [0.5, 1.0, 3.0]);
    }

    #[test]
    fn a_query_sees_keys_up_to_itself() {
        let plan = VarlenPlan::new(&branched(), 5, Device::Cpu);
        let zeros = Tensor::zeros([5, 1, 1], (Kind::Float, Device::Cpu));
        // Equal scores: the mean of what is seen. Values are the rows' numbers.
        let values = Tensor::arange(5, (Kind::Float, Device::Cpu)).view([5, 1, 1]);
        let values = values.index_select(0, &plan.gathered_rows());
        let keys = values.zeros_like();
        let out = attend_reference(&zeros, &keys, &values, &plan, 1.0);
        let found = Vec::<f32>::try_from(out.view([5])).unwrap();
        assert_eq!(found, [0.0, 0.5, 1.0, 4.0 / 3.0, 2.0]);
    }
}
