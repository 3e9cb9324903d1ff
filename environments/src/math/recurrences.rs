//! Linear recurrences of order 2 modulo a prime: a(n) = (c a(n-1) + d a(n-2)) mod p, find a(N). One integer.
//!
//! Far terms use t^n = u t + v modulo t^2 - c t - d, so that a(n) = u a(1) + v a(0).
//! Work: multiplications, the fewer of one term after another (2 a term) and of squaring (5 a bit, and 2 a set bit).

use std::ops::RangeInclusive;

use super::{boxed, gold, grade_same, last_number};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Recurrences;

const PRIMES: [i64; 10] = [11, 13, 17, 19, 23, 29, 31, 37, 41, 43];
const LARGE_PRIMES: [i64; 4] = [997, 9973, 99_991, 999_983];
/// Up to this index a worked solution lists the terms.
const MAX_LISTED: i64 = 24;

/// The primes and the indices.
fn size(level: u32) -> (&'static [i64], RangeInclusive<i64>) {
    match level {
        1 => (&PRIMES, 2..=3),
        2 => (&PRIMES, 4..=6),
        3 => (&PRIMES, 10..=16),
        4 => (&PRIMES, 100..=999),
        5 => (&PRIMES, 1_000_000..=9_999_999),
        _ => (&LARGE_PRIMES, 1_000_000_000..=9_999_999_999),
    }
}

/// (u, v) of t^n for every prefix of n's bits.
fn powers(c: i64, d: i64, p: i64, n: i64) -> Vec<(i64, i64, i64)> {
    let (mut u, mut v, mut exponent) = (0, 1, 0);
    let mut steps = Vec::new();
    for bit in (0..64 - n.leading_zeros()).rev() {
        // (u t + v)^2 with t^2 = c t + d.
        let square = u * u % p;
        (u, v) = ((square * c + 2 * u * v) % p, (square * d + v * v) % p);
        exponent *= 2;
        if n >> bit & 1 == 1 {
            (u, v) = ((u * c + v) % p, u * d % p);
            exponent += 1;
        }
        steps.push((exponent, u, v));
    }
    steps
}

/// a(0) to a(n).
fn terms(first: (i64, i64), c: i64, d: i64, p: i64, n: i64) -> Vec<i64> {
    let mut terms = vec![first.0, first.1];
    for n in 2..=n as usize {
        terms.push((c * terms[n - 1] + d * terms[n - 2]) % p);
    }
    terms
}

impl TaskFamily for Recurrences {
    fn name(&self) -> &'static str {
        "recurrences"
    }

    fn summary(&self) -> &'static str {
        "a far term of a linear recurrence modulo a prime"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (primes, indices) = size(level);
        let p = draw.choose(primes);
        let (c, d) = (draw.between(1..=9), draw.between(1..=9));
        let (a, b) = (draw.between(0..=9), draw.between(1..=9));
        let n = draw.between(indices);
        let steps = powers(c, d, p, n);
        let (_, u, v) = *steps.last()?;
        let answer = (u * b + v * a) % p;
        let worked = if n <= MAX_LISTED {
            let listed: Vec<String> = terms((a, b), c, d, p, n)
                .iter()
                .map(i64::to_string)
                .collect();
            format!("The terms are {}.", listed.join(", "))
        } else {
            let listed: Vec<String> = steps
                .iter()
                .map(|(n, u, v)| format!("{n}: {u}, {v}"))
                .collect();
            format!(
                "t^n = u t + v with t^2 = {c}t + {d} has n: u, v as {}. {u}*{b} + {v}*{a} = {answer} (mod {p}).",
                listed.join("; ")
            )
        };
        let bits = 64 - u64::from(n.leading_zeros());
        let squaring = 5 * bits + 2 * u64::from(n.count_ones());
        let work = squaring.min(2 * (n as u64 - 1));
        Some(Instance {
            canonical: format!("{a} {b} {c} {d} {p} {n}"),
            question: format!(
                "Let a(0) = {a}, a(1) = {b} and a(n) = ({c}*a(n-1) + {d}*a(n-2)) mod {p} for larger n. Find a({n}). \
                 Give it, at least zero and less than the modulus, as \\boxed{{value}}."
            ),
            solution: format!("{worked} {}", boxed(&[answer])),
            gold: gold(work, &[answer]),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        grade_same(gold, completion)
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let largest = draw.choose(size(level).0) - 1;
        boxed(&[draw.between(0..=largest)])
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squaring_and_stepping_agree() {
        for n in 2..200 {
            let (_, u, v) = *powers(3, 7, 41, n).last().expect("bits");
            assert_eq!(
                (u * 5 + v * 4) % 41,
                terms((4, 5), 3, 7, 41, n)[n as usize],
                "{n}"
            );
        }
        // Fibonacci: a(10) = 55.
        assert_eq!(terms((0, 1), 1, 1, 997, 10)[10], 55);
    }
}
