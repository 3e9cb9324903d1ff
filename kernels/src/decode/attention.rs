//! RoPE, the cache's write and grouped-query attention of one new token a sequence over its cache.
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

/// Most query heads of a key head: columns of a product of the tensor cores.
const MAX_GROUP: i64 = 8;
/// Most shared memory for what the warps of a block have attended to, f32.
const MERGED_BYTES: i64 = 32 << 10;
/// An H100's multiprocessors, each of which has room for a block of 16 warps or two of 8.
const MULTIPROCESSORS: i64 = 132;

impl Heads {
    /// Whether the kernel is made for these heads.
    pub fn are_supported(&self) -> bool {
        let is_power = self.dim > 0 && self.dim & (self.dim - 1) == 0;
        is_power
            && (16..=256).contains(&self.dim)
            && self.queries % self.keys == 0
            && self.group() <= MAX_GROUP
    }

    fn group(&self) -> i64 {
        self.queries / self.keys
    }

    /// Warps that share the keys of a sequence and key head: many where there are few of those, so that keys are read sooner.
    fn warps(&self, batch: i64) -> i64 {
        let wanted = match (batch * self.keys - 1) / MULTIPROCESSORS {
            0 => 16,
            1 => 8,
            _ => 4,
        };
        let room = MERGED_BYTES / (4 * self.group() * self.dim);
        let most = [16, 8, 4].into_iter().find(|&warps| warps <= room);
        wanted.min(most.unwrap_or(4))
    }

    fn constants(&self, batch: i64) -> [Constant; 3] {
        [
            ("HEAD_DIM", self.dim),
            ("GROUP", self.group()),
            ("WARPS", self.warps(batch)),
        ]
    }

    /// Width of queries, keys and values beside each other.
    pub fn qkv_width(&self) -> i64 {
        (self.queries + 2 * self.keys) * self.dim
    }

    /// Compiles the kernel for `batch` rows, which can't be done while work is recorded.
    ///
    /// # Errors
    /// It does not compile.
    pub fn prepare(&self, queue: &Queue, batch: i64) -> Result<(), KernelError> {
        queue.prepare(&ATTENTION, &self.constants(batch), "attend")
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

/// What the new tokens bring.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// Queries, keys and values, `[B, (H + 2 K) D]`.
    pub qkv: &'a Tensor,
    /// Is added to them, `[(H + 2 K) D]`.
    pub bias: Option<&'a Tensor>,
    /// Turns queries and keys.
    pub rope: &'a Rope,
    /// i32 `[B]`, on pages of the table; negative for padding.
    pub positions: &'a Tensor,
}

/// Adds the bias, turns queries and keys (half-split RoPE) and writes keys and values to the cache at each sequence's position; then
/// out_h = softmax(scale q_h k^T) v over the keys `0..=position` of the cache. Padding writes nothing to the cache and gets 0.
///
/// # Shapes
/// `out` `[B, H D]` is written, and the cache.
///
/// # Errors
/// Shapes or types that don't fit, or a refusal of the driver.
pub fn attend(
    queue: &Queue,
    heads: Heads,
    new: NewTokens,
    cache: Cache,
    scale: f64,
    out: &Tensor,
) -> Result<(), KernelError> {
    check(heads, new.qkv, new.positions, cache)?;
    let batch = new.qkv.size()[0];
    let fits = new.rope.frequencies.size() == [heads.dim / 2]
        && new
            .bias
            .is_none_or(|bias| bias.size() == [heads.qkv_width()])
        && out.size() == [batch, heads.queries * heads.dim];
    expect(
        fits,
        "frequencies [D / 2], bias [(H + 2 K) D], out [B, H D]",
        &[&new.rope.frequencies, out],
    )?;
    let [table, width, page_bits] = cache.table_arguments(queue)?;
    let arguments = [
        queue.address(new.qkv, Kind::BFloat16)?,
        match new.bias {
            Some(bias) => queue.address(bias, Kind::BFloat16)?,
            None => NONE,
        },
        queue.address(&new.rope.frequencies, Kind::Float)?,
        Argument::Float(new.rope.factor as f32),
        queue.address(new.positions, Kind::Int)?,
        table,
        width,
        page_bits,
        Argument::Float(scale as f32),
        queue.address(cache.k, Kind::BFloat16)?,
        queue.address(cache.v, Kind::BFloat16)?,
        queue.address(out, Kind::BFloat16)?,
    ];
    let constants = heads.constants(batch);
    let kernel = (&ATTENTION, &constants[..], "attend");
    let threads = grid(32 * heads.warps(batch))?;
    let blocks = [grid(heads.keys)?, grid(batch)?];
    // SAFETY: sizes, strides and types were compared; positions are the caller's contract.
    unsafe { queue.launch(kernel, blocks, threads, &arguments) }
}

/// [`attend`], the slow way, in f32; the cache is written.
pub fn attend_reference(heads: Heads, new: NewTokens, cache: Cache, scale: f64) -> Tensor {
    let kind = new.qkv.kind();
    let positions = Vec::<i64>::try_from(new.positions.to_kind(Kind::Int64));
    let positions = positions.expect("positions are a row");
    let q = rope_and_cache(heads, new, &positions, cache);
    let rows = positions.iter().enumerate().map(|(sequence, &position)| {
        let q = q.get(sequence as i64).to_kind(Kind::Float);
        if position < 0 {
            return q.zeros_like().view([-1]);
        }
        let own = cache.rows(sequence as i64, position + 1);
        let of_cache = |cache: &Tensor| {
            let rows = cache.index_select(0, &own).transpose(0, 1);
            let rows = rows.to_kind(Kind::Float);
            rows.repeat_interleave_self_int(heads.group(), 0, None::<i64>)
        };
        let scores = of_cache(cache.k).matmul(&q.unsqueeze(2)).squeeze_dim(2) * scale;
        let weights = scores.softmax(-1, Kind::Float).unsqueeze(1);
        weights.matmul(&of_cache(cache.v)).view([-1])
    });
    Tensor::stack(&rows.collect::<Vec<_>>(), 0).to_kind(kind)
}

/// The turned queries `[B, H, D]`; turned keys and values go to the cache.
fn rope_and_cache(heads: Heads, new: NewTokens, positions: &[i64], cache: Cache) -> Tensor {
    let (qkv, rope, kind) = (new.qkv, new.rope, new.qkv.kind());
    let qkv = new
        .bias
        .map_or_else(|| qkv.shallow_clone(), |bias| qkv + bias);
    let all = qkv.view([-1, heads.queries + 2 * heads.keys, heads.dim]);
    let angles = new.positions.to_kind(Kind::Float).unsqueeze(1) * rope.frequencies.unsqueeze(0);
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
    let live = positions.iter().enumerate();
    for (sequence, &position) in live.filter(|(_, position)| **position >= 0) {
        let sequence = sequence as i64;
        let row = cache.rows(sequence, position + 1).int64_value(&[position]);
        for (cache, rows) in [(cache.k, &k), (cache.v, &v)] {
            cache.get(row).copy_(&rows.get(sequence));
        }
    }
    q
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
        && cache.page.count_ones() == 1;
    let wanted = "qkv [B, (H + 2 K) D], positions [B], caches [rows, K, D], a table [B, width] of pages of 2^n";
    expect(
        fits,
        wanted,
        &[qkv, positions, cache.k, cache.v, cache.table],
    )
}
