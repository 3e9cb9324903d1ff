//! Products of few rows with what stands before and behind them: out = epilogue(prologue(x) weight^T).
//!
//! Prologue: nothing, or RMSNorm: round(x rsqrt(mean(x^2) + eps)) norm. Epilogue, of y = round(product): y itself; out + y, the residual
//! sum; or silu(gate) up, where y is gate and up beside each other. Sums in f32; every step rounds where the separate operations of
//! [`super::rows`] and [`Queue::product`] do. I is the width summed over, B the rows, N the columns of the result.

use tch::{Kind, Tensor};

use super::{NONE, expect, grid, int, rows};
use crate::cuda::compile::{Constant, SMALL_PRODUCTS};
use crate::cuda::{Argument, Grid, Queue};
use crate::error::KernelError;

/// Up to this many rows these products take less time than cuBLAS's with the operations around them.
pub const MOST_ROWS: i64 = 32;
const THREADS: u32 = 256;
const WARPS: i64 = 8;

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is the result.
    Plain,
    /// It is added to what `out` holds.
    Added,
    /// `weight` holds the rows of gates, then those of ups: silu(gate) up is the result.
    Gated,
}

/// What a product is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// B.
    pub rows: i64,
    /// I.
    pub inner: i64,
    /// Whether x is normalised.
    pub is_normed: bool,
    /// What becomes of it.
    pub epilogue: Epilogue,
}

impl Shape {
    /// Columns of the product that a block computes.
    fn columns(&self) -> i64 {
        match self.epilogue {
            Epilogue::Gated => 32,
            Epilogue::Plain | Epilogue::Added => 16,
        }
    }

    fn shared_bytes(&self, block_rows: i64) -> i64 {
        let tiles = 2 * (block_rows + self.columns()) * self.inner;
        tiles.max(4 * WARPS * block_rows * self.columns())
    }

    /// Rows of a block; `None` where the kernel can't.
    fn block_rows(&self, queue: &Queue) -> Option<i64> {
        let most = queue.cuda().most_shared_bytes();
        // Of 16 rows a block takes the least time; of 32, fewer blocks read the weights.
        let rows = if self.rows > 16 && self.inner <= 1024 {
            32
        } else {
            16
        };
        Some(rows)
            .filter(|&rows| self.shared_bytes(rows) <= most)
            .filter(|_| self.rows <= MOST_ROWS && self.inner % 64 == 0)
    }

    /// Whether there is a kernel for it.
    pub fn is_supported(&self, queue: &Queue) -> bool {
        self.block_rows(queue).is_some()
    }

    fn constants(&self, block_rows: i64) -> [Constant; 5] {
        [
            ("INNER", self.inner),
            ("ROWS", block_rows),
            ("COLUMNS", self.columns()),
            ("NORMED", i64::from(self.is_normed)),
            ("EPILOGUE", self.epilogue as i64),
        ]
    }

    /// Compiles the kernel, which can't be done while work is recorded.
    ///
    /// # Errors
    /// It does not compile, or a shape that is not supported.
    pub fn prepare(&self, queue: &Queue) -> Result<(), KernelError> {
        let block_rows = self.known_block_rows(queue)?;
        queue.prepare(
            &SMALL_PRODUCTS,
            &self.constants(block_rows),
            "small_product",
        )
    }

    fn known_block_rows(&self, queue: &Queue) -> Result<i64, KernelError> {
        let known = self.block_rows(queue);
        known.ok_or_else(|| super::mismatch(format!("no product of few rows for {self:?}")))
    }
}

/// out = epilogue(prologue(x) weight^T), where `norm` is the norm's weight and epsilon.
///
/// # Shapes
/// `x` `[B, I]`, `weight` `[N, I]` (`[2 N, I]` for a gated product), the norm's weight `[I]`; `out` `[B, N]` is written.
///
/// # Errors
/// Shapes or types that don't fit or are not supported, or a refusal of the driver.
pub fn small_product(
    queue: &Queue,
    x: &Tensor,
    weight: &Tensor,
    norm: Option<(&Tensor, f64)>,
    epilogue: Epilogue,
    out: &Tensor,
) -> Result<(), KernelError> {
    let (batch, inner, columns) = (x.size()[0], x.size()[1], out.size()[1]);
    let weights = match epilogue {
        Epilogue::Gated => 2 * columns,
        Epilogue::Plain | Epilogue::Added => columns,
    };
    let fits = weight.size() == [weights, inner]
        && out.size()[0] == batch
        && norm.is_none_or(|(norm, _)| norm.size() == [inner]);
    expect(
        fits,
        "x [B, I], weight [N, I], out [B, N]",
        &[x, weight, out],
    )?;
    let shape = Shape {
        rows: batch,
        inner,
        is_normed: norm.is_some(),
        epilogue,
    };
    let block_rows = shape.known_block_rows(queue)?;
    let out_columns = match epilogue {
        Epilogue::Gated => shape.columns() / 2,
        Epilogue::Plain | Epilogue::Added => shape.columns(),
    };
    let arguments = [
        queue.address(x, Kind::BFloat16)?,
        queue.address(weight, Kind::BFloat16)?,
        match norm {
            Some((norm, _)) => queue.address(norm, Kind::BFloat16)?,
            None => NONE,
        },
        Argument::Float(norm.map_or(0.0, |(_, eps)| eps) as f32),
        int(batch)?,
        int(columns)?,
        queue.address(out, Kind::BFloat16)?,
    ];
    let blocks = |items: i64, size: i64| grid((items + size - 1) / size);
    let shared = grid(shape.shared_bytes(block_rows))?;
    let grid = [blocks(columns, out_columns)?, blocks(batch, block_rows)?];
    let constants = shape.constants(block_rows);
    // SAFETY: sizes and types were compared.
    unsafe {
        queue.launch(
            (&SMALL_PRODUCTS, &constants, "small_product"),
            Grid::from(grid).with_shared(shared),
            THREADS,
            &arguments,
        )
    }
}

/// [`small_product`], the slow way; `out` is what was there before.
pub fn small_product_reference(
    x: &Tensor,
    weight: &Tensor,
    norm: Option<(&Tensor, f64)>,
    epilogue: Epilogue,
    out: &Tensor,
) -> Tensor {
    let x = match norm {
        Some((norm, eps)) => rows::add_rms_norm_reference(x, None, norm, eps).1,
        None => x.shallow_clone(),
    };
    let wide = |x: &Tensor| x.to_kind(Kind::Float);
    let product = wide(&x).matmul(&wide(weight).tr()).to_kind(x.kind());
    match epilogue {
        Epilogue::Plain => product,
        Epilogue::Added => out + product,
        Epilogue::Gated => rows::swiglu_reference(&product),
    }
}
