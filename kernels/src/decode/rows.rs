//! Row by row: embedding, RMSNorm behind a residual sum, SwiGLU. W is the width, a multiple of 8.

use tch::{Kind, Tensor};

use super::{EIGHT, NONE, expect, grid, int};
use crate::cuda::compile::{Constant, ROWS, Source};
use crate::cuda::{Argument, Queue};
use crate::error::KernelError;

const NO_CONSTANTS: &[Constant] = &[];
const SWIGLU_THREADS: i64 = 256;

fn kernel(name: &str) -> (&'static Source, &'static [Constant], &str) {
    (&ROWS, NO_CONSTANTS, name)
}

/// x_b = table_{token_b}, where a token below zero, -1 - r, stands for `drawn_r`: what the step before drew, which the
/// host has not seen.
///
/// # Shapes
/// `table` `[V, W]`, `tokens` i32 `[B]`, each below V; `drawn` i32 `[R]`, likewise; `x` `[B, W]` is written.
///
/// # Errors
/// Shapes or types that don't fit, or a refusal of the driver; here and below.
pub fn embed(
    queue: &Queue,
    table: &Tensor,
    tokens: &Tensor,
    drawn: &Tensor,
    x: &Tensor,
) -> Result<(), KernelError> {
    let (batch, width) = (x.size()[0], x.size()[1]);
    let fits = table.size()[1] == width && tokens.size() == [batch] && width % EIGHT == 0;
    expect(
        fits,
        "table [V, W], tokens [B], x [B, W]",
        &[table, tokens, x],
    )?;
    let arguments = [
        queue.address(table, Kind::BFloat16)?,
        queue.address(tokens, Kind::Int)?,
        queue.address(drawn, Kind::Int)?,
        int(width)?,
        queue.address(x, Kind::BFloat16)?,
    ];
    // SAFETY: sizes and types were compared.
    unsafe { queue.launch(kernel("embed"), [grid(batch)?, 1], 128, &arguments) }
}

/// [`embed`], the slow way.
pub fn embed_reference(table: &Tensor, tokens: &Tensor, drawn: &Tensor) -> Tensor {
    let is_drawn = tokens.lt(0);
    let rows: Tensor = -1 - tokens;
    let drawn = drawn.index_select(0, &rows.clamp_min(0));
    table.index_select(0, &drawn.where_self(&is_drawn, tokens))
}

/// x += y, where there is y; h = round(x rsqrt(mean(x^2) + eps)) weight, statistics in f32.
///
/// # Shapes
/// `x`, `y` and `h` `[B, W]`, `weight` `[W]`; `x` and `h` are written.
///
/// # Errors
/// As [`embed`].
pub fn add_rms_norm(
    queue: &Queue,
    x: &Tensor,
    y: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
    h: &Tensor,
) -> Result<(), KernelError> {
    let (batch, width) = (x.size()[0], x.size()[1]);
    let fits = y.is_none_or(|y| y.size() == x.size())
        && h.size() == x.size()
        && weight.size() == [width]
        && width % EIGHT == 0;
    expect(fits, "x, y and h [B, W], weight [W]", &[x, weight, h])?;
    let arguments = [
        queue.address(x, Kind::BFloat16)?,
        match y {
            Some(y) => queue.address(y, Kind::BFloat16)?,
            None => NONE,
        },
        queue.address(weight, Kind::BFloat16)?,
        Argument::Float(eps as f32),
        int(width)?,
        queue.address(h, Kind::BFloat16)?,
    ];
    // SAFETY: sizes and types were compared.
    unsafe { queue.launch(kernel("add_rms_norm"), [grid(batch)?, 1], 128, &arguments) }
}

/// [`add_rms_norm`], the slow way: the new `x`, and `h`.
pub fn add_rms_norm_reference(
    x: &Tensor,
    y: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
) -> (Tensor, Tensor) {
    let x = y.map_or_else(|| x.shallow_clone(), |y| x + y);
    let wide = x.to_kind(Kind::Float);
    let mean_square = (&wide * &wide).mean_dim(-1, true, Kind::Float);
    let h = (wide * (mean_square + eps).rsqrt()).to_kind(x.kind()) * weight;
    (x, h)
}

/// out = silu(gate) up, where `both` holds gate and up beside each other.
///
/// # Shapes
/// `both` `[.., 2 W]`, `out` `[.., W]` is written.
///
/// # Errors
/// As [`embed`].
pub fn swiglu(queue: &Queue, both: &Tensor, out: &Tensor) -> Result<(), KernelError> {
    let (size, wide) = (out.size(), both.size());
    let (width, rows) = (size[size.len() - 1], &size[..size.len() - 1]);
    let fits =
        wide[..wide.len() - 1] == *rows && wide[wide.len() - 1] == 2 * width && width % EIGHT == 0;
    expect(fits, "both [.., 2 W], out [.., W]", &[both, out])?;
    let eights = out.numel() as i64 / EIGHT;
    let arguments = [
        queue.address(both, Kind::BFloat16)?,
        int(width)?,
        Argument::Long(eights),
        queue.address(out, Kind::BFloat16)?,
    ];
    let blocks = (eights + SWIGLU_THREADS - 1) / SWIGLU_THREADS;
    // SAFETY: sizes and types were compared.
    unsafe {
        queue.launch(
            kernel("swiglu"),
            [grid(blocks)?, 1],
            SWIGLU_THREADS as u32,
            &arguments,
        )
    }
}

/// [`swiglu`], the slow way.
pub fn swiglu_reference(both: &Tensor) -> Tensor {
    let halves = both.chunk(2, -1);
    halves[0].silu() * &halves[1]
}
