//! Attention of one new token a sequence over a cache of pages, on the CPU and as a reference.
//!
//! out[b,h] = softmax_t(scale q[b,h] . k[row(b,t), h / group]) v[row(b,t), h / group], t in 0..lengths[b], with
//! row(b,t) = table[b, t / page] page + t mod page. Products and softmax in f32, output in the type of q.
//! Shapes: q [B,n_heads,d], k [R,n_kv,d], v [R,n_kv,dv] or the leading dv columns of k; R rows in pages of `page`.
//!
//! [`attend`] reads the rows where they lie, on the CPU: nothing is gathered, and what a sequence gets does not
//! depend on its neighbours. [`gather`] copies whole pages side by side for libtorch's attention.

use std::sync::Mutex;

use tch::{Device, Kind, Tensor};

use crate::dsa::Values;

mod lanes;

/// Query heads that read a key head together: their scores are alive at once.
const HEADS_AT_ONCE: usize = 8;
/// Multiplications worth another thread: starting one takes some 20 microseconds.
const THREAD_WORK: usize = 1 << 20;

/// Where the tokens of sequences lie.
#[derive(Clone, Copy, Debug)]
pub struct PageTable<'a> {
    /// Pages of each sequence, `[B, width]` flat; what lies behind a sequence's last page is never read.
    pub pages: &'a [i32],
    /// Entries of a sequence.
    pub width: usize,
    /// Rows of a page.
    pub page: usize,
}

impl PageTable<'_> {
    /// Runs of rows that hold the first `len` tokens of sequence `b`: (first row, tokens).
    fn runs(&self, b: usize, len: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let pages = &self.pages[b * self.width..(b + 1) * self.width];
        pages[..len.div_ceil(self.page)]
            .iter()
            .enumerate()
            .map(move |(index, &page)| {
                let tokens = self.page.min(len - index * self.page);
                (page as usize * self.page, tokens)
            })
    }
}

/// Whether [`attend`] takes these: f32 or bf16 on the CPU, and few query heads a key head. With many, products of
/// matrices of gathered rows are faster.
pub fn serves(q: &Tensor, num_kv: i64) -> bool {
    q.device() == Device::Cpu
        && matches!(q.kind(), Kind::Float | Kind::BFloat16)
        && q.size()[1] / num_kv <= HEADS_AT_ONCE as i64
}

/// Attention over the cached rows of each sequence.
///
/// # Shapes
/// As above; `lengths` `[B]`, each at least 1.
///
/// # Panics
/// Where [`serves`] is false, on a cache with gaps or of another type, and on pages outside it.
pub fn attend<'a>(
    q: &Tensor,
    k: &'a Tensor,
    v: impl Into<Values<'a>>,
    table: PageTable,
    lengths: &[i64],
    scale: f64,
) -> Tensor {
    assert!(serves(q, k.size()[1]), "asked before");
    match q.kind() {
        Kind::Float => attend_in::<f32>(q, k, v.into(), table, lengths, scale),
        _ => attend_in::<lanes::Bf16>(q, k, v.into(), table, lengths, scale),
    }
}

/// Columns of one head of a row of the cache.
#[derive(Clone, Copy)]
struct Columns<'a, T> {
    rows: &'a [T],
    /// Numbers of a row.
    stride: usize,
    /// Of a head.
    head: usize,
    width: usize,
}

impl<'a, T> Columns<'a, T> {
    /// A head of `tokens` rows from `first` on.
    fn of(
        &self,
        first: usize,
        tokens: usize,
        head: usize,
    ) -> impl Iterator<Item = &'a [T]> + Clone {
        let rows = &self.rows[first * self.stride..(first + tokens) * self.stride];
        let columns = head * self.head..head * self.head + self.width;
        rows.chunks_exact(self.stride)
            .map(move |row| &row[columns.clone()])
    }
}

/// Query heads of one sequence.
struct Item<'a> {
    sequence: usize,
    /// The first key head that they read.
    kv_head: usize,
    /// Query heads of a key head.
    group: usize,
    q: &'a [f32],
    out: &'a mut [f32],
}

fn attend_in<T: lanes::Number>(
    q: &Tensor,
    k: &Tensor,
    v: Values,
    table: PageTable,
    lengths: &[i64],
    scale: f64,
) -> Tensor {
    let (batch, num_heads, dim) = q.size3().expect("q is [B, n_heads, d]");
    let num_kv = k.size()[1];
    let group = (num_heads / num_kv) as usize;
    let keys = columns::<T>(k);
    let values = match v {
        Values::Own(v) => columns::<T>(v),
        Values::KeyPrefix(width) => Columns {
            width: width as usize,
            ..keys
        },
    };
    // Scores in powers of two; in f32, since scaled queries in bf16 would be rounded once more.
    let queries = q.to_kind(Kind::Float) * (scale * std::f64::consts::LOG2_E);
    let queries = Vec::<f32>::try_from(queries.reshape([-1])).expect("a row of f32");
    let mut out = vec![0.0_f32; (batch * num_heads) as usize * values.width];
    let held: i64 = lengths.iter().sum();
    let multiplications = (held * num_heads) as usize * (dim as usize + values.width);
    let threads = (multiplications / THREAD_WORK + 1).min(tch::get_num_threads().max(1) as usize);
    // Whole sequences, whose rows are read in a stream, where there are enough for all threads.
    let parts = match batch as usize >= 2 * threads || threads == 1 {
        true => 1,
        false => num_kv as usize,
    };
    let heads = num_heads as usize / parts;
    let items = queries
        .chunks(heads * dim as usize)
        .zip(out.chunks_mut(heads * values.width))
        .enumerate()
        .map(|(index, (q, out))| Item {
            sequence: index / parts,
            kv_head: index % parts,
            group,
            q,
            out,
        });
    let items = Mutex::new(items);
    let work = || {
        let mut scores = Vec::new();
        loop {
            let Some(item) = items.lock().expect("nobody panics with it").next() else {
                return;
            };
            let len = lengths[item.sequence] as usize;
            lanes::attend(item, &keys, &values, table, len, &mut scores);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    Tensor::from_slice(&out)
        .view([batch, num_heads, values.width as i64])
        .to_kind(q.kind())
}

/// A cache's numbers.
fn columns<T: lanes::Number>(cache: &Tensor) -> Columns<'_, T> {
    let (num_rows, num_kv, width) = cache.size3().expect("caches are [R, n_kv, d]");
    assert!(
        cache.kind() == T::KIND && cache.device() == Device::Cpu && cache.is_contiguous(),
        "a cache of {:?} on {:?}, or with gaps",
        cache.kind(),
        cache.device()
    );
    let len = (num_rows * num_kv * width) as usize;
    let rows = match len {
        0 => &[],
        // SAFETY: a contiguous CPU tensor of this kind owns `len` numbers from its data pointer on, as long as the
        // borrow of it lives; nothing writes to the cache while its attention runs.
        _ => unsafe { std::slice::from_raw_parts(cache.data_ptr().cast::<T>(), len) },
    };
    Columns {
        rows,
        stride: (num_kv * width) as usize,
        head: width as usize,
        width: width as usize,
    }
}

/// The pages of sequences beside each other: `cache` `[R, ...]` and `pages` i64 `[B n]` to `[B, n page, ...]`.
pub fn gather(cache: &Tensor, pages: &Tensor, batch: i64, page: i64) -> Tensor {
    let size = cache.size();
    let row = &size[1..];
    let whole = cache.view([&[size[0] / page, page], row].concat().as_slice());
    let gathered = whole.index_select(0, pages);
    let tokens = pages.size()[0] / batch * page;
    gathered.view([&[batch, tokens], row].concat().as_slice())
}

#[cfg(test)]
mod tests;
