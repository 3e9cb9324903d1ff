//! One token a row of logits.
//!
//! z = logits / temperature. With p = softmax(z) over the allowed ids, the token is the first, by ascending id, whose
//! cumulative p exceeds the row's draw; its log-prob is z - log sum exp z over all ids, the entropy that of p.
//!
//! Truncated, only a set K of the allowed ids is drawn from, and the log-prob is z - log sum exp z over K. With ids in
//! the order of p, ties by ascending id, top-k keeps the first k, top-p the shortest prefix whose sum is at least
//! `top_p`, min-p those with p at least `min_p` times the largest; K is the shortest of the three. Sums of f32 weights
//! are rounded in another order than libtorch's, so that a top-p prefix may end one id earlier or later where its sum
//! comes within 1e-7 of `top_p` (several ids where `top_p` is so close to 1 that these weigh less than that).

use tch::{Kind, Tensor};

use super::{EIGHT, NONE, expect, grid, int};
use crate::cuda::compile::SAMPLING;
use crate::cuda::{Argument, Queue};
use crate::error::KernelError;

const THREADS: u32 = 1024;

/// What is drawn from, and where results go.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// bf16 `[B, V]`, V a multiple of 8.
    pub logits: &'a Tensor,
    /// Uniform numbers in [0, 1), f64 `[B]`.
    pub draws: &'a Tensor,
    /// Written: the token, i32 `[B]`.
    pub tokens: &'a Tensor,
    /// Written: its log-prob, NaN where the logits are not finite, f32 `[B]`.
    pub logprobs: &'a Tensor,
    /// Written: the entropy of the row in nats, f32 `[B]`.
    pub entropies: &'a Tensor,
}

/// Draws a token a row. `allowed` is one bit an id, i32 `[V / 32, rounded up]`, the lowest bit first; `None` allows all.
///
/// # Errors
/// Shapes or types that don't fit, a temperature that is not positive, or a refusal of the driver.
pub fn sample(
    queue: &Queue,
    rows: Rows,
    allowed: Option<&Tensor>,
    temperature: f64,
) -> Result<(), KernelError> {
    let batch = rows.logits.size()[0];
    let arguments = arguments(queue, rows, allowed, temperature)?;
    let kernel = (&SAMPLING, &[][..], "sample");
    // SAFETY: sizes and types were compared.
    unsafe { queue.launch(kernel, [grid(batch)?, 1], THREADS, &arguments) }
}

/// What both kernels take: logits, ids, temperature, and rows.
fn arguments(
    queue: &Queue,
    rows: Rows,
    allowed: Option<&Tensor>,
    temperature: f64,
) -> Result<[Argument; 8], KernelError> {
    let Rows {
        logits,
        draws,
        tokens,
        logprobs,
        entropies,
    } = rows;
    let (batch, vocab) = (logits.size()[0], logits.size()[1]);
    let fits = [draws, tokens, logprobs, entropies]
        .iter()
        .all(|row| row.size() == [batch])
        && allowed.is_none_or(|allowed| allowed.size() == [(vocab + 31) / 32])
        && vocab % EIGHT == 0
        && temperature > 0.0;
    expect(
        fits,
        "logits [B, V], rows [B], temperature above 0",
        &[logits, draws, tokens],
    )?;
    Ok([
        queue.address(logits, Kind::BFloat16)?,
        int(vocab)?,
        match allowed {
            Some(allowed) => queue.address(allowed, Kind::Int)?,
            None => NONE,
        },
        Argument::Float(temperature as f32),
        queue.address(draws, Kind::Double)?,
        queue.address(tokens, Kind::Int)?,
        queue.address(logprobs, Kind::Float)?,
        queue.address(entropies, Kind::Float)?,
    ])
}

/// What K is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncation {
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f64,
    /// 0 keeps all.
    pub min_p: f64,
}

/// The same from a truncated distribution. `kept` i32 `[B, V / 32, rounded up]` is written: one bit an id of K, the lowest bit first.
///
/// # Errors
/// As [`sample`].
pub fn sample_truncated(
    queue: &Queue,
    rows: Rows,
    allowed: Option<&Tensor>,
    temperature: f64,
    truncation: Truncation,
    kept: &Tensor,
) -> Result<(), KernelError> {
    let (batch, words) = (rows.logits.size()[0], (rows.logits.size()[1] + 31) / 32);
    expect(
        kept.size() == [batch, words],
        "kept [B, V / 32]",
        &[rows.logits, kept],
    )?;
    let [logits, vocab, allowed, temperature, results @ ..] =
        arguments(queue, rows, allowed, temperature)?;
    let [draws, tokens, logprobs, entropies] = results;
    let arguments = [
        logits,
        vocab,
        allowed,
        temperature,
        int(truncation.top_k as i64)?,
        Argument::Double(truncation.top_p),
        Argument::Float(truncation.min_p.ln() as f32),
        draws,
        tokens,
        logprobs,
        entropies,
        queue.address(kept, Kind::Int)?,
    ];
    let kernel = (&SAMPLING, &[][..], "sample_truncated");
    // SAFETY: sizes and types were compared.
    unsafe { queue.launch(kernel, [grid(batch)?, 1], THREADS, &arguments) }
}

/// One bit an id below `vocab`, for [`sample`], on the CPU.
pub fn allowed_bits(vocab: usize, is_allowed: impl Fn(usize) -> bool) -> Tensor {
    let mut words = vec![0_u32; vocab.div_ceil(32)];
    for id in (0..vocab).filter(|&id| is_allowed(id)) {
        words[id / 32] |= 1 << (id % 32);
    }
    let words: Vec<i32> = words.into_iter().map(u32::cast_signed).collect();
    Tensor::from_slice(&words)
}

/// Ids of the bits of a row of `kept`, ascending.
pub fn kept_ids(words: &[i32]) -> Vec<u32> {
    let mut ids = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let mut bits = word.cast_unsigned();
        while bits != 0 {
            ids.push(32 * index as u32 + bits.trailing_zeros());
            bits &= bits - 1;
        }
    }
    ids
}

/// A row of [`sample`], the slow way: token, log-prob, entropy.
pub fn sample_reference(
    logits: &[f32],
    is_allowed: impl Fn(usize) -> bool,
    temperature: f64,
    draw: f64,
) -> (usize, f64, f64) {
    let z: Vec<f64> = logits
        .iter()
        .map(|&x| f64::from(x / temperature as f32))
        .collect();
    let allowed: Vec<usize> = (0..z.len()).filter(|&id| is_allowed(id)).collect();
    let max = allowed
        .iter()
        .map(|&id| z[id])
        .fold(f64::NEG_INFINITY, f64::max);
    let weight = |id: usize| (z[id] - max).exp();
    let total: f64 = allowed.iter().map(|&id| weight(id)).sum();
    let surplus: f64 = (0..z.len()).filter(|&id| !is_allowed(id)).map(weight).sum();
    let (target, mut cumulative) = (draw * total, 0.0);
    let mut is_reached = |id: usize| {
        cumulative += weight(id);
        cumulative > target
    };
    let token = allowed
        .iter()
        .copied()
        .find(|&id| is_reached(id))
        .unwrap_or(0);
    let entropy = allowed
        .iter()
        .map(|&id| weight(id) / total)
        .filter(|&p| p > 0.0)
        .map(|p| -p * p.ln())
        .sum();
    (token, z[token] - max - (total + surplus).ln(), entropy)
}

/// K of a row, ascending, the slow way.
pub fn kept_reference(
    logits: &[f32],
    is_allowed: impl Fn(usize) -> bool,
    temperature: f64,
    truncation: Truncation,
) -> Vec<u32> {
    let z = |id: usize| f64::from(logits[id] / temperature as f32);
    let mut ids: Vec<usize> = (0..logits.len()).filter(|&id| is_allowed(id)).collect();
    // Stable: ties stay in ascending order.
    ids.sort_by(|&a, &b| z(b).total_cmp(&z(a)));
    let max = z(ids[0]);
    let weights: Vec<f64> = ids.iter().map(|&id| (z(id) - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut len = ids.len();
    if truncation.top_p < 1.0 {
        let mut sum = 0.0;
        let is_short = |weight: &&f64| {
            let is_short = sum < truncation.top_p * total;
            sum += **weight;
            is_short
        };
        len = weights.iter().take_while(is_short).count();
    }
    if truncation.top_k > 0 {
        len = len.min(truncation.top_k);
    }
    let is_likely = |id: &usize| z(*id) >= max + truncation.min_p.ln();
    let mut kept: Vec<u32> = ids[..len]
        .iter()
        .filter(|id| is_likely(id))
        .map(|&id| id as u32)
        .collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Truncation = Truncation {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };

    #[test]
    fn each_filter_keeps_a_prefix_of_the_likely_ids() {
        // Probabilities 0.1, 0.4, 0.1, 0.3, 0.1.
        let logits = [0.1_f32, 0.4, 0.1, 0.3, 0.1].map(f32::ln);
        let kept = |truncation| kept_reference(&logits, |_| true, 1.0, truncation);
        assert_eq!(kept(ALL), [0, 1, 2, 3, 4]);
        assert_eq!(kept(Truncation { top_k: 3, ..ALL }), [0, 1, 3]);
        assert_eq!(kept(Truncation { top_p: 0.75, ..ALL }), [0, 1, 3]);
        assert_eq!(kept(Truncation { top_p: 0.65, ..ALL }), [1, 3]);
        assert_eq!(kept(Truncation { min_p: 0.5, ..ALL }), [1, 3]);
        let few = Truncation {
            top_k: 4,
            top_p: 0.85,
            min_p: 0.1,
        };
        assert_eq!(kept(few), [0, 1, 2, 3]);
    }

    #[test]
    fn bits_are_ids() {
        assert_eq!(kept_ids(&[0b101, 0, i32::MIN, 1]), [0, 2, 95, 96]);
        let ids = [3, 31, 32, 70];
        let bits = allowed_bits(71, |id| ids.contains(&(id as u32)));
        assert_eq!(kept_ids(&Vec::<i32>::try_from(bits).unwrap()), ids);
    }
}
