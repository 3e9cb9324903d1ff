//! Routing of one token a sequence, and the sum of what its experts make of it. E experts, k of them a token.

use tch::{Kind, Tensor};

use super::{EIGHT, NONE, expect, grid, int};
use crate::cuda::compile::{Constant, EXPERTS, Source};
use crate::cuda::{Argument, Queue};
use crate::error::KernelError;

/// Most experts that the router's kernel has room for.
pub const MAX_EXPERTS: i64 = 256;

/// How gates follow from scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gating {
    /// Experts of a token.
    pub top_k: i64,
    /// Scores are sigmoids of the logits instead of their softmax.
    pub is_sigmoid: bool,
    /// Gates of a token are divided by their sum.
    pub normalise: bool,
    /// Factor on the gates.
    pub scaling: f64,
}

fn kernel(name: &str) -> (&'static Source, &'static [Constant], &str) {
    (&EXPERTS, &[], name)
}

/// scores = softmax(x gate^T) or its sigmoid, in f32; the k highest of scores + bias are chosen, ties to
/// the lower expert; `gates` get factor s_e / (sum over chosen + 1e-20) for those (undivided without `normalise`) and 0
/// for the others, `ids` the chosen experts, best first.
///
/// # Shapes
/// `x` `[B, W]`, `gate` f32 `[E, W]`, `bias` f32 `[E]`; written: `gates` f32 `[B, E]`, `ids` i16 `[B, k]`, whose rows may lie
/// apart.
///
/// # Errors
/// Shapes or types that don't fit, or a refusal of the driver; here and below.
pub fn route(
    queue: &Queue,
    gating: Gating,
    x: &Tensor,
    gate: &Tensor,
    bias: Option<&Tensor>,
    gates: &Tensor,
    ids: &Tensor,
) -> Result<(), KernelError> {
    let ([batch, width], [experts, _]) = (two(x), two(gate));
    let fits = gate.size() == [experts, width]
        && bias.is_none_or(|bias| bias.size() == [experts])
        && gates.size() == [batch, experts]
        && ids.size() == [batch, gating.top_k]
        && ids.stride()[1] == 1
        && gating.top_k <= experts
        && experts <= MAX_EXPERTS;
    expect(
        fits,
        "x [B, W], gate [E, W], gates [B, E], ids [B, k]",
        &[x, gate, gates, ids],
    )?;
    let arguments = [
        queue.address(x, Kind::BFloat16)?,
        queue.address(gate, Kind::Float)?,
        match bias {
            Some(bias) => queue.address(bias, Kind::Float)?,
            None => NONE,
        },
        int(width)?,
        int(experts)?,
        int(gating.top_k)?,
        Argument::Int(i32::from(gating.is_sigmoid)),
        Argument::Int(i32::from(gating.normalise)),
        Argument::Float(gating.scaling as f32),
        queue.address(gates, Kind::Float)?,
        queue.strided_address(ids, Kind::Int16)?,
        Argument::Long(ids.stride()[0]),
    ];
    // SAFETY: sizes, strides and types were compared.
    unsafe { queue.launch(kernel("route"), [grid(batch)?, 1], 32, &arguments) }
}

/// [`route`], the slow way: gates and ids (i64).
pub fn route_reference(
    gating: Gating,
    x: &Tensor,
    gate: &Tensor,
    bias: Option<&Tensor>,
) -> (Tensor, Tensor) {
    let logits = x.to_kind(Kind::Float).matmul(&gate.transpose(0, 1));
    let scores = match gating.is_sigmoid {
        true => logits.sigmoid(),
        false => logits.softmax(-1, Kind::Float),
    };
    let choice = bias.map_or_else(|| scores.shallow_clone(), |bias| &scores + bias);
    let ids = choice
        .sort_stable(true, -1, true)
        .1
        .narrow(1, 0, gating.top_k);
    let chosen = scores.gather(1, &ids, false);
    let chosen = match gating.normalise {
        true => &chosen / (chosen.sum_dim_intlist(-1, true, Kind::Float) + 1e-20),
        false => chosen,
    };
    let gates = scores
        .zeros_like()
        .scatter(1, &ids, &(chosen * gating.scaling));
    (gates, ids)
}

/// y_b = sum over experts, in their order and in f32, of gates_{b, e} outputs_{e, b}.
///
/// # Shapes
/// `outputs` `[E, B, W]`, `gates` f32 `[B, E]`; `y` `[B, W]` is written.
///
/// # Errors
/// As [`route`].
pub fn combine(
    queue: &Queue,
    outputs: &Tensor,
    gates: &Tensor,
    y: &Tensor,
) -> Result<(), KernelError> {
    let ([batch, width], [_, experts]) = (two(y), two(gates));
    let fits = outputs.size() == [experts, batch, width]
        && gates.size() == [batch, experts]
        && width % EIGHT == 0;
    expect(
        fits,
        "outputs [E, B, W], gates [B, E], y [B, W]",
        &[outputs, gates, y],
    )?;
    let arguments = [
        queue.address(outputs, Kind::BFloat16)?,
        queue.address(gates, Kind::Float)?,
        int(experts)?,
        int(width)?,
        queue.address(y, Kind::BFloat16)?,
    ];
    // SAFETY: sizes and types were compared.
    unsafe {
        queue.launch(
            kernel("combine_experts"),
            [grid(batch)?, 1],
            128,
            &arguments,
        )
    }
}

/// [`combine`], the slow way.
pub fn combine_reference(outputs: &Tensor, gates: &Tensor) -> Tensor {
    let weighted = outputs.to_kind(Kind::Float) * gates.transpose(0, 1).unsqueeze(2);
    weighted
        .sum_dim_intlist(0, false, Kind::Float)
        .to_kind(outputs.kind())
}

fn two(tensor: &Tensor) -> [i64; 2] {
    match tensor.size2() {
        Ok((a, b)) => [a, b],
        Err(_) => [-1, -1],
    }
}
