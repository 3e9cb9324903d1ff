//! Grouped-query attention of one new token a sequence over its cache.
//!
//! H query heads and K key heads of width D; query head h uses key head h / (H / K). D is a power of two from 16
//! to 256. The caches are `[rows, K, D]`; token t of sequence b lies in row table[b, t / page] page + t mod page.

use tch::{Kind, Tensor};

use super::{NONE, expect, grid, int};
use crate::cuda::compile::{ATTENTION, Constant};
use crate::cuda::{Argument, Queue};
use crate::error::KernelError;

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: i64,
    /// Key heads.
    pub keys: i64,
    /// Width of a head.
    pub dim: i64,
}

/// Most query heads of a key head: each thread keeps that many softmaxes in registers.
const MAX_GROUP: i64 = 8;
const ATTEND_THREADS: u32 = 256;

impl Heads {
    /// Whether the kernels are made for these heads.
    pub fn are_supported(&self) -> bool {
        let is_power = self.dim > 0 && self.dim & (self.dim - 1) == 0;
        is_power
            && (16..=256).contains(&self.dim)
            && self.queries % self.keys == 0
            && self.queries / self.keys <= MAX_GROUP
    }

    fn constants(&self) -> [Constant; 2] {
        [("HEAD_DIM", self.dim), ("GROUP", self.queries / self.keys)]
    }

    /// Width of queries, keys and values beside each other.
    pub fn qkv_width(&self) -> i64 {
        (self.queries + 2 * self.keys) * self.dim
    }

    /// Compiles the kernels, which can't be done while work is recorded.
    ///
    /// # Errors
    /// They don't compile.
    pub fn prepare(&self, queue: &Queue) -> Result<(), KernelError> {
        let constants = self.constants();
        queue.prepare(&ATTENTION, &constants, "rope_and_cache")?;
        queue.prepare(&ATTENTION, &constants, "attend")
    }
}

/// RoPE's angles: position times `frequencies` f32 `[D / 2]`; `factor` multiplies cosine and sine.
#[derive(Debug)]
pub struct Rope {
    /// Radians per position of each pair of dimensions i and i + D/2.
    pub frequencies: Tensor,
    /// YaRN's factor, 1 without.
    pub factor: f64,
}

/// Keys and values of the sequences, `[rows, K, D]` each, and where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// Pages of each sequence, i32 `[B, width]`; what lies behind a sequence's last page is never read.
    pub table: &'a Tensor,
    /// Rows of a page, a power of two.
    pub page: i64,
}

impl Cache<'_> {
    /// Table, its width, and the bits of a position that say where in its page a token lies.
    fn table_arguments(&self, queue: &Queue) -> Result<[Argument; 3], KernelError> {
        Ok([
            queue.address(self.table, Kind::Int)?,
            int(self.table.size()[1])?,
            int(i64::from(self.page.trailing_zeros()))?,
        ])
    }

    /// The rows of the first `len` tokens of a sequence, for the references.
    fn rows(&self, sequence: i64, len: i64) -> Tensor {
        let pages = self.table.get(sequence).to_kind(Kind::Int64);
        let tokens = Tensor::arange(len, (Kind::Int64, pages.device()));
        let of_page = tokens.divide_scalar_mode(self.page, "floor");
        pages.index_select(0, &of_page) * self.page + tokens.remainder(self.page)
    }
}

/// Adds `bias`, turns queries (in place) and keys (half-split RoPE), and writes keys and values to the cache at
/// each sequence's position; nothing where that is negative.
///
/// # Shapes
/// `qkv` `[B, (H + 2 K) D]`, `bias` `[(H + 2 K) D]`, `positions` i32 `[B]` on pages of the table.
///
/// # Errors
/// Shapes or types that don't fit, or a refusal of the driver; here and below.
pub fn rope_and_cache(
    queue: &Queue,
    heads: Heads,
    qkv: &Tensor,
    bias: Option<&Tensor>,
    rope: &Rope,
    positions: &Tensor,
    cache: Cache,
) -> Result<(), KernelError> {
    check(heads, qkv, positions, cache)?;
    let [table, width, page_bits] = cache.table_arguments(queue)?;
    let fits = rope.frequencies.size() == [heads.dim / 2]
        && bias.is_none_or(|bias| bias.size() == [heads.qkv_width()]);
    expect(
        fits,
        "frequencies [D / 2], bias [(H + 2 K) D]",
        &[&rope.frequencies],
    )?;
    let arguments = [
        queue.address(qkv, Kind::BFloat16)?,
        match bias {
            Some(bias) => queue.address(bias, Kind::BFloat16)?,
            None => NONE,
        },
        queue.address(&rope.frequencies, Kind::Float)?,
        Argument::Float(rope.factor as f32),
        queue.address(positions, Kind::Int)?,
        int(heads.queries)?,
        int(heads.keys)?,
        queue.address(cache.k, Kind::BFloat16)?,
        queue.address(cache.v, Kind::BFloat16)?,
        table,
        width,
        page_bits,
    ];
    let pairs = heads.qkv_width() / 2;
    let threads = (pairs.min(512) as u32).next_multiple_of(32);
    let kernel = (&ATTENTION, &heads.constants()[..], "rope_and_cache");
    // SAFETY: sizes, strides and types were compared; positions are the caller's contract.
    unsafe { queue.launch(kernel, [grid(qkv.size()[0])?, 1], threads, &arguments) }
}

/// [`rope_and_cache`], the slow way: the turned queries `[B, H, D]`; the cache is written.
pub fn rope_and_cache_reference(
    heads: Heads,
    qkv: &Tensor,
    bias: Option<&Tensor>,
    rope: &Rope,
    positions: &Tensor,
    cache: Cache,
) -> Tensor {
    let kind = qkv.kind();
    let qkv = bias.map_or_else(|| qkv.shallow_clone(), |bias| qkv + bias);
    let all = qkv.view([-1, heads.queries + 2 * heads.keys, heads.dim]);
    let angles = positions.to_kind(Kind::Float).unsqueeze(1) * rope.frequencies.unsqueeze(0);
    let both = Tensor::cat(&[&angles, &angles], 1).unsqueeze(1);
    let (cos, sin) = (both.cos() * rope.factor, both.sin() * rope.factor);
    let (cos, sin) = (cos.to_kind(kind), sin.to_kind(kind));
    let turned = |x: &Tensor| {
        let halves = x.chunk(2, -1);
        let swapped = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
        x * &cos + swapped * &sin
    };
    let q = turned(&all.narrow(1, 0, heads.queries));
    let k = turned(&all.narrow(1, heads.queries, heads.keys));
    let v = all.narrow(1, heads.queries + heads.keys, heads.keys);
    let positions =
        Vec::<i64>::try_from(positions.to_kind(Kind::Int64)).expect("positions are a row");
    for (sequence, position) in positions
        .into_iter()
        .enumerate()
        .filter(|(_, position)| *position >= 0)
    {
        let sequence = sequence as i64;
        let row = cache.rows(sequence, position + 1).int64_value(&[position]);
        for (cache, rows) in [(cache.k, &k), (cache.v, &v)] {
            cache.get(row).copy_(&rows.get(sequence));
        }
    }
    q
}

/// out_h = softmax(scale q_h k^T) v over the keys `0..=position` of the cache; 0 where that is negative.
///
/// # Shapes
/// `qkv` as [`rope_and_cache`] left it, `positions` i32 `[B]`; `out` `[B, H D]` is written.
///
/// # Errors
/// As [`rope_and_cache`].
pub fn attend(
    queue: &Queue,
    heads: Heads,
    qkv: &Tensor,
    positions: &Tensor,
    cache: Cache,
    scale: f64,
    out: &Tensor,
) -> Result<(), KernelError> {
    check(heads, qkv, positions, cache)?;
    let [table, width, page_bits] = cache.table_arguments(queue)?;
    let batch = qkv.size()[0];
    let fits = out.size() == [batch, heads.queries * heads.dim];
    expect(fits, "out [B, H D]", &[out])?;
    let arguments = [
        queue.address(qkv, Kind::BFloat16)?,
        Argument::Long(heads.qkv_width()),
        queue.address(cache.k, Kind::BFloat16)?,
        queue.address(cache.v, Kind::BFloat16)?,
        table,
        width,
        page_bits,
        queue.address(positions, Kind::Int)?,
        Argument::Float(scale as f32),
        queue.address(out, Kind::BFloat16)?,
    ];
    let kernel = (&ATTENTION, &heads.constants()[..], "attend");
    let blocks = [grid(heads.keys)?, grid(batch)?];
    // SAFETY: sizes, strides and types were compared; positions are the caller's contract.
    unsafe { queue.launch(kernel, blocks, ATTEND_THREADS, &arguments) }
}

/// [`attend`], the slow way, in f32: `q` `[B, H, D]` to `[B, H D]`.
pub fn attend_reference(
    heads: Heads,
    q: &Tensor,
    positions: &Tensor,
    cache: Cache,
    scale: f64,
) -> Tensor {
    let positions =
        Vec::<i64>::try_from(positions.to_kind(Kind::Int64)).expect("positions are a row");
    let rows = positions.iter().enumerate().map(|(sequence, &position)| {
        let q = q.get(sequence as i64).to_kind(Kind::Float);
        if position < 0 {
            return q.zeros_like().view([-1]);
        }
        let own = cache.rows(sequence as i64, position + 1);
        let of_cache = |cache: &Tensor| {
            let rows = cache.index_select(0, &own).transpose(0, 1);
            let rows = rows.to_kind(Kind::Float);
            rows.repeat_interleave_self_int(heads.queries / heads.keys, 0, None::<i64>)
        };
        let scores = of_cache(cache.k).matmul(&q.unsqueeze(2)).squeeze_dim(2) * scale;
        let weights = scores.softmax(-1, Kind::Float).unsqueeze(1);
        weights.matmul(&of_cache(cache.v)).view([-1])
    });
    Tensor::stack(&rows.collect::<Vec<_>>(), 0).to_kind(q.kind())
}

fn check(heads: Heads, qkv: &Tensor, positions: &Tensor, cache: Cache) -> Result<(), KernelError> {
    let (batch, size, table) = (qkv.size()[0], cache.k.size(), cache.table.size());
    let fits = heads.are_supported()
        && qkv.size() == [batch, heads.qkv_width()]
        && positions.size() == [batch]
        && size.len() == 3
        && size[1..] == [heads.keys, heads.dim]
        && cache.v.size() == size
        && table.len() == 2
        && table[0] >= batch
        && cache.page.count_ones() == 1
        // The kernels count eights of a layer's keys in 32 bits.
        && cache.k.numel() / 8 < u32::MAX as usize;
    let wanted = "qkv [B, (H + 2 K) D], positions [B], caches [rows, K, D] of at most 2^35 numbers, a table \
                  [B, width] of pages of 2^n";
    expect(
        fits,
        wanted,
        &[qkv, positions, cache.k, cache.v, cache.table],
    )
}
