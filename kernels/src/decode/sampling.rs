//! One token a row of logits, without truncation.
//!
//! z = logits / temperature. With p = softmax(z) over the allowed ids, the token is the first, by ascending id, whose
//! cumulative p exceeds the row's draw; its log-prob is z - log sum exp z over all ids, the entropy that of p.

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
    let arguments = [
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
    ];
    let kernel = (&SAMPLING, &[][..], "sample");
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
