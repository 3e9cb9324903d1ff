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
pub const MOST_ROWS: i64 = 64;
/// Numbers of a row that four lanes read at once.
const CHUNK: i64 = 32;
const MOST_WARPS: i64 = 16;
/// Blocks that are to run at once: an H100 has 132 multiprocessors. Of few rows fewer, larger blocks took less time: those of the next
/// kernel, which wait beside them, have more room.
const BLOCKS_AT_ONCE: i64 = 132;
const BLOCKS_AT_ONCE_OF_FEW_ROWS: i64 = 100;

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

/// A product of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// B.
    pub rows: i64,
    /// I.
    pub inner: i64,
    /// N.
    pub columns: i64,
    /// Whether x is normalised.
    pub is_normed: bool,
    /// What becomes of it.
    pub epilogue: Epilogue,
}

/// How a product is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Share I.
    warps: i64,
    /// Rows of a block.
    rows: i64,
    /// Columns of the weights that a block multiplies.
    columns: i64,
}

impl Shape {
    /// Columns of the weights.
    fn weights(&self) -> i64 {
        match self.epilogue {
            Epilogue::Gated => 2 * self.columns,
            Epilogue::Plain | Epilogue::Added => self.columns,
        }
    }

    /// The cut with which a multiprocessor reads least; `None` where there is none.
    fn cut(&self) -> Option<Cut> {
        if self.rows > MOST_ROWS || self.inner % CHUNK != 0 || self.columns % 8 != 0 {
            return None;
        }
        let chunks = self.inner / CHUNK;
        let warps = (1..=MOST_WARPS).rev().find(|warps| chunks % warps == 0)?;
        let least_columns = match self.epilogue {
            Epilogue::Gated => 16,
            Epilogue::Plain | Epilogue::Added => 8,
        };
        let all = [16, 32, 64].into_iter().flat_map(|rows| {
            [8, 16, 32, 64].map(|columns| Cut {
                warps,
                rows,
                columns,
            })
        });
        let fitting = all
            .filter(|cut| cut.columns >= least_columns && self.registers(*cut) <= cut.registers());
        fitting.min_by_key(|cut| self.read_by_one(*cut))
    }

    /// Blocks along columns and rows.
    fn blocks(&self, cut: Cut) -> [i64; 2] {
        let parts = |all: i64, size: i64| (all + size - 1) / size;
        [
            parts(self.weights(), cut.columns),
            parts(self.rows, cut.rows),
        ]
    }

    /// Rows of x and of weights that a multiprocessor reads.
    fn read_by_one(&self, cut: Cut) -> i64 {
        let at_once = match self.rows {
            ..=16 => BLOCKS_AT_ONCE_OF_FEW_ROWS,
            _ => BLOCKS_AT_ONCE,
        };
        let [columns, rows] = self.blocks(cut);
        ((rows * columns - 1) / at_once + 1) * (cut.rows + cut.columns)
    }

    /// Registers of a thread for x, weights and sums, most of which are needed at once.
    fn registers(&self, cut: Cut) -> i64 {
        let (row_tiles, column_tiles) = (cut.rows / 16, cut.columns / 8);
        let norm = 4 * i64::from(self.is_normed);
        let of_chunk = 8 * row_tiles + 4 * column_tiles + norm;
        let chunks = self.inner / CHUNK / cut.warps;
        chunks * of_chunk + 4 * row_tiles * column_tiles
    }

    /// Whether there is a kernel for it.
    pub fn is_supported(&self) -> bool {
        self.cut().is_some()
    }

    fn constants(&self, cut: Cut) -> [Constant; 6] {
        [
            ("INNER", self.inner),
            ("WARPS", cut.warps),
            ("ROWS", cut.rows),
            ("COLUMNS", cut.columns),
            ("NORMED", i64::from(self.is_normed)),
            ("EPILOGUE", self.epilogue as i64),
        ]
    }

    /// Compiles the kernel, which can't be done while work is recorded.
    ///
    /// # Errors
    /// It does not compile, or a shape that is not supported.
    pub fn prepare(&self, queue: &Queue) -> Result<(), KernelError> {
        let constants = self.constants(self.known_cut()?);
        queue.prepare(&SMALL_PRODUCTS, &constants, "small_product")
    }

    fn known_cut(&self) -> Result<Cut, KernelError> {
        let known = self.cut();
        known.ok_or_else(|| super::mismatch(format!("no product of few rows for {self:?}")))
    }
}

impl Cut {
    /// Registers of a thread: warps lie on the four parts of a multiprocessor.
    fn registers(&self) -> i64 {
        let most = (64 << 10) / (32 * ((self.warps + 3) / 4 * 4));
        most.min(255)
    }

    /// The warps' sums, f32.
    fn shared_bytes(&self) -> i64 {
        4 * self.warps * self.rows * self.columns
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
    let shape = Shape {
        rows: batch,
        inner,
        columns,
        is_normed: norm.is_some(),
        epilogue,
    };
    let fits = weight.size() == [shape.weights(), inner]
        && out.size()[0] == batch
        && norm.is_none_or(|(norm, _)| norm.size() == [inner]);
    expect(
        fits,
        "x [B, I], weight [N, I], out [B, N]",
        &[x, weight, out],
    )?;
    let cut = shape.known_cut()?;
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
    let [across, down] = shape.blocks(cut);
    let blocks = [grid(across)?, grid(down)?];
    let constants = shape.constants(cut);
    let kernel = (&SMALL_PRODUCTS, &constants[..], "small_product");
    let blocks = Grid::from(blocks).with_shared(grid(cut.shared_bytes())?);
    // SAFETY: sizes and types were compared.
    unsafe { queue.launch(kernel, blocks, grid(32 * cut.warps)?, &arguments) }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2-135M's products: those that are normalised first, the residual sums.
    fn layer(rows: i64) -> [Shape; 4] {
        let shape = |inner, columns, is_normed, epilogue| Shape {
            rows,
            inner,
            columns,
            is_normed,
            epilogue,
        };
        [
            shape(576, 960, true, Epilogue::Plain),
            shape(576, 576, false, Epilogue::Added),
            shape(576, 1536, true, Epilogue::Gated),
            shape(1536, 576, false, Epilogue::Added),
        ]
    }

    #[test]
    fn a_layer_of_few_rows_has_a_multiprocessor_for_each_block() {
        for rows in [1, 8, 16, 32, 64] {
            for shape in layer(rows) {
                let cut = shape.cut().unwrap();
                let [across, down] = shape.blocks(cut);
                assert!(across * down <= BLOCKS_AT_ONCE, "{shape:?}: {cut:?}");
                assert!(across * cut.columns >= shape.weights() && down * cut.rows >= rows);
                assert_eq!(shape.inner % (CHUNK * cut.warps), 0, "{cut:?}");
            }
        }
    }

    #[test]
    fn a_product_that_no_block_has_room_for_is_refused() {
        let [.., down] = layer(32);
        let refused = |shape: Shape| !shape.is_supported();
        assert!(refused(Shape { rows: 65, ..down }));
        assert!(refused(Shape {
            columns: 100,
            ..down
        }));
        // A prime number of chunks leaves them all to one warp.
        assert!(refused(Shape {
            inner: 32 * 97,
            ..down
        }));
    }
}
