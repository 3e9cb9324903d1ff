//! The inner loops of [`super::attend`]: written over rows of lanes, so that the compiler makes vectors of them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps,
    _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_extractf128_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_slli_epi32,
};

use tch::Kind;

use super::{Columns, Item, PageTable};

/// Lanes that add up beside each other.
const LANES: usize = 16;
/// Columns of the values whose sums stay in registers.
const BLOCK: usize = 16;
/// Queries whose sums stay there together.
const MOST_QUERIES: usize = 4;

/// A type that caches are kept in.
pub(super) trait Number: Copy + Sync {
    const KIND: Kind;
    fn f32(self) -> f32;

    /// Eight of them.
    #[cfg(target_arch = "x86_64")]
    fn eight(numbers: &[Self; 8]) -> __m256;
}

impl Number for f32 {
    const KIND: Kind = Kind::Float;

    #[inline(always)]
    fn f32(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(numbers: &[f32; 8]) -> __m256 {
        // SAFETY: eight numbers of any alignment; called from functions compiled for AVX2 alone.
        unsafe { _mm256_loadu_ps(numbers.as_ptr()) }
    }
}

/// The upper half of an f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

impl Number for Bf16 {
    const KIND: Kind = Kind::BFloat16;

    #[inline(always)]
    fn f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(numbers: &[Bf16; 8]) -> __m256 {
        // SAFETY: sixteen bytes of any alignment; called from functions compiled for AVX2 alone.
        unsafe {
            let halves = _mm_loadu_si128(numbers.as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        }
    }
}

/// One item, with what vectors the processor has. Queries are scaled by log2(e) besides the softmax's own scale.
pub(super) fn attend<T: Number>(
    item: Item,
    keys: &Columns<T>,
    values: &Columns<T>,
    table: PageTable,
    len: usize,
    scores: &mut Vec<f32>,
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { attend_avx2(item, keys, values, table, len, scores) };
    }
    attend_by::<T, false>(item, keys, values, table, len, scores);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn attend_avx2<T: Number>(
    item: Item,
    keys: &Columns<T>,
    values: &Columns<T>,
    table: PageTable,
    len: usize,
    scores: &mut Vec<f32>,
) {
    attend_by::<T, true>(item, keys, values, table, len, scores);
}

/// `FUSED`: multiply and add in one instruction, where the processor has it.
#[inline(always)]
fn attend_by<T: Number, const FUSED: bool>(
    item: Item,
    keys: &Columns<T>,
    values: &Columns<T>,
    table: PageTable,
    len: usize,
    scores: &mut Vec<f32>,
) {
    let (dim, v_dim) = (keys.width, values.width);
    let num_queries = item.q.len() / dim;
    // One row of scores a query.
    scores.clear();
    scores.resize(num_queries * len, 0.0);
    // Page by page, so that all heads find its rows near.
    let mut token = 0;
    for (first, tokens) in table.runs(item.sequence, len) {
        for (query, count) in pieces(num_queries, item.group) {
            let own_keys = keys.of(first, tokens, item.kv_head + query / item.group);
            let queries = &item.q[query * dim..(query + count) * dim];
            let scores = &mut scores[query * len..(query + count) * len];
            match count {
                4 => score::<T, FUSED, 4>(queries, own_keys, scores, token),
                3 => score::<T, FUSED, 3>(queries, own_keys, scores, token),
                2 => score::<T, FUSED, 2>(queries, own_keys, scores, token),
                _ => score::<T, FUSED, 1>(queries, own_keys, scores, token),
            }
        }
        token += tokens;
    }
    for scores in scores.chunks_exact_mut(len) {
        normalise(scores);
    }
    let mut token = 0;
    for (first, tokens) in table.runs(item.sequence, len) {
        for (query, count) in pieces(num_queries, item.group) {
            let own_values = values.of(first, tokens, item.kv_head + query / item.group);
            let weights = &scores[query * len..(query + count) * len];
            let out = &mut item.out[query * v_dim..(query + count) * v_dim];
            match count {
                4 => weigh::<T, FUSED, 4>(weights, token, own_values, out),
                3 => weigh::<T, FUSED, 3>(weights, token, own_values, out),
                2 => weigh::<T, FUSED, 2>(weights, token, own_values, out),
                _ => weigh::<T, FUSED, 1>(weights, token, own_values, out),
            }
        }
        token += tokens;
    }
}

/// Queries in runs of up to four that read one key head: (first, count).
#[inline(always)]
fn pieces(num_queries: usize, group: usize) -> impl Iterator<Item = (usize, usize)> {
    let firsts = (0..num_queries).step_by(group);
    firsts.flat_map(move |first| {
        let pieces = (0..group).step_by(MOST_QUERIES);
        pieces.map(move |piece| (first + piece, MOST_QUERIES.min(group - piece)))
    })
}

/// Scores of `N` queries for each of `keys`, from column `token` of the queries' rows of `scores` on.
#[inline(always)]
fn score<'a, T: Number + 'a, const FUSED: bool, const N: usize>(
    queries: &[f32],
    keys: impl Iterator<Item = &'a [T]>,
    scores: &mut [f32],
    token: usize,
) {
    let (dim, len) = (queries.len() / N, scores.len() / N);
    let queries: [&[f32]; N] = std::array::from_fn(|n| &queries[n * dim..(n + 1) * dim]);
    for (key, token) in keys.zip(token..) {
        #[cfg(target_arch = "x86_64")]
        if FUSED {
            // SAFETY: the processor was asked, see `attend`.
            let found = unsafe { dots_avx2(&queries, key) };
            for (n, score) in found.into_iter().enumerate() {
                scores[n * len + token] = score;
            }
            continue;
        }
        for (n, query) in queries.iter().enumerate() {
            scores[n * len + token] = dot(query, key);
        }
    }
}

/// Adds `values`, weighted by the columns from `token` on of `N` rows of `weights`, to the rows of `out`.
#[inline(always)]
fn weigh<'a, T: Number + 'a, const FUSED: bool, const N: usize>(
    weights: &[f32],
    token: usize,
    values: impl Iterator<Item = &'a [T]> + Clone,
    out: &mut [f32],
) {
    let (v_dim, len) = (out.len() / N, weights.len() / N);
    let weights: [&[f32]; N] = std::array::from_fn(|n| &weights[n * len + token..(n + 1) * len]);
    let whole = v_dim - v_dim % BLOCK;
    for column in (0..whole).step_by(BLOCK) {
        let mut sums = [[0.0_f32; BLOCK]; N];
        for (index, value) in values.clone().enumerate() {
            let value = &value[column..column + BLOCK];
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                let weight = weights[index];
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = multiply_add::<FUSED>(weight, value.f32(), *sum);
                }
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            let out = &mut out[n * v_dim + column..n * v_dim + column + BLOCK];
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        }
    }
    if whole == v_dim {
        return;
    }
    for (n, weights) in weights.iter().enumerate() {
        let rest = &mut out[n * v_dim + whole..(n + 1) * v_dim];
        for (value, &weight) in values.clone().zip(*weights) {
            for (sum, value) in rest.iter_mut().zip(&value[whole..]) {
                *sum = multiply_add::<FUSED>(weight, value.f32(), *sum);
            }
        }
    }
}

/// Scores in powers of two become a softmax.
#[inline(always)]
fn normalise(scores: &mut [f32]) {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let parts = scores.chunks_exact(LANES);
    let rest = parts.remainder().iter().copied();
    let rest = rest.fold(f32::NEG_INFINITY, f32::max);
    for part in parts {
        for (high, &score) in highest.iter_mut().zip(part) {
            *high = if score > *high { score } else { *high };
        }
    }
    let largest = highest.into_iter().fold(rest, f32::max);
    let factor = 1.0 / exponentials(scores, largest);
    scores.iter_mut().for_each(|score| *score *= factor);
}

/// Scores become 2^(score - largest); their sum.
#[inline(always)]
fn exponentials(scores: &mut [f32], largest: f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let mut parts = scores.chunks_exact_mut(LANES);
    for part in &mut parts {
        for (score, sum) in part.iter_mut().zip(&mut sums) {
            *score = exp2(*score - largest);
            *sum += *score;
        }
    }
    for (score, sum) in parts.into_remainder().iter_mut().zip(&mut sums) {
        *score = exp2(*score - largest);
        *sum += *score;
    }
    sums.iter().sum()
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn dot<T: Number>(query: &[f32], key: &[T]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (queries, keys) = (query.chunks_exact(LANES), key.chunks_exact(LANES));
    let rest = queries.remainder().iter().zip(keys.remainder());
    let rest: f32 = rest.map(|(q, k)| q * k.f32()).sum();
    for (q, k) in queries.zip(keys) {
        for lane in 0..LANES {
            sums[lane] += q[lane] * k[lane].f32();
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The same of several queries, by hand: the compiler turns the sum over lanes into shuffles of every step.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dots_avx2<T: Number, const N: usize>(queries: &[&[f32]; N], key: &[T]) -> [f32; N] {
    let mut sums = [_mm256_setzero_ps(); N];
    let (keys, keys_left) = key.as_chunks::<8>();
    let queries = queries.map(|query| query.as_chunks::<8>());
    for (index, key) in keys.iter().enumerate() {
        let key = T::eight(key);
        for (sum, (query, _)) in sums.iter_mut().zip(&queries) {
            *sum = _mm256_fmadd_ps(f32::eight(&query[index]), key, *sum);
        }
    }
    std::array::from_fn(|n| {
        let rest = queries[n].1.iter().zip(keys_left);
        let rest: f32 = rest.map(|(q, k)| q * k.f32()).sum();
        let four = _mm_add_ps(
            _mm256_castps256_ps128(sums[n]),
            _mm256_extractf128_ps::<1>(sums[n]),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))) + rest
    })
}

/// 2^x for x <= 0, to a relative 3e-7: 2^n by the exponent's bits, the rest by its series.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // Adding it leaves no room for a fraction: the sum is rounded to a whole number, kept in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    // Not `max`, which would lose a NaN.
    let x = if x < -125.0 { -125.0 } else { x };
    let rounded = x + ROUNDER;
    let whole = rounded.to_bits().wrapping_sub(ROUNDER.to_bits());
    let fraction = x - (rounded - ROUNDER);
    let mut sum = 1.540_353e-4_f32;
    for factor in [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        6.931_472e-1,
        1.0,
    ] {
        sum = sum * fraction + factor;
    }
    sum * f32::from_bits(whole.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_exact_to_rounding() {
        for step in 0..12_000 {
            let x = -0.01 * step as f32;
            let (found, expected) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((found / expected - 1.0).abs() < 3e-7, "{x}: {found}");
        }
        assert_eq!(exp2(0.0), 1.0);
        assert!(exp2(-1e9) < 1e-37);
        assert!(exp2(f32::NAN).is_nan());
    }
}
