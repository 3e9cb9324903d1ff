//! Inverse of a matrix modulo a prime, entries row by row from 0 to p - 1; graded by multiplying.
//!
//! Gauss-Jordan elimination of [A | I]. Work: multiplications of two numbers neither of which is 0 or 1.

use std::ops::RangeInclusive;

use super::{boxed, gold, gold_numbers, grade_list, listed};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::integer_answer::integers;
use crate::verdict::Verdict;

/// The family.
pub(crate) struct MatrixInverse;

const SMALL: [i64; 2] = [5, 7];
const MIDDLE: [i64; 3] = [11, 13, 17];
const LARGE: [i64; 3] = [97, 101, 103];

/// Order of the matrix and the primes.
fn size(level: u32) -> (usize, &'static [i64]) {
    match level {
        1 => (2, &SMALL),
        2 => (2, &MIDDLE),
        3 => (2, &LARGE),
        4 => (3, &MIDDLE),
        5 => (3, &LARGE),
        _ => (4, &LARGE),
    }
}

/// `a b mod p`, of order `n`.
fn product(a: &[i64], b: &[i64], n: usize, p: i64) -> Vec<i64> {
    let entry = |at: usize| {
        let terms = (0..n).map(|k| a[at / n * n + k] * b[k * n + at % n] % p);
        terms.sum::<i64>() % p
    };
    (0..n * n).map(entry).collect()
}

fn identity(n: usize) -> Vec<i64> {
    (0..n * n).map(|at| i64::from(at / n == at % n)).collect()
}

/// The inverse, one line of text a column, and the work; `None` where there is none.
fn inverse(matrix: &[i64], n: usize, p: i64) -> Option<(Vec<i64>, Vec<String>, u64)> {
    let unit = identity(n);
    let mut rows: Vec<Vec<i64>> = (0..n)
        .map(|i| [&matrix[i * n..(i + 1) * n], &unit[i * n..(i + 1) * n]].concat())
        .collect();
    let mut work = 0;
    let mut times = |a: i64, b: i64| {
        work += u64::from(a > 1 && b > 1);
        a * b % p
    };
    let mut steps = Vec::new();
    for column in 0..n {
        let pivot = (column..n).find(|&i| rows[i][column] != 0)?;
        rows.swap(column, pivot);
        let inverse = (1..p).find(|x| x * rows[column][column] % p == 1)?;
        let scaled: Vec<i64> = rows[column]
            .iter()
            .map(|&entry| times(entry, inverse))
            .collect();
        for (i, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let _ = i;
            let factor = row[column];
            for (entry, &above) in row.iter_mut().zip(&scaled) {
                *entry = (*entry - times(factor, above)).rem_euclid(p);
            }
        }
        rows[column] = scaled;
        let shown: Vec<String> = rows.iter().map(|row| listed(row, " ")).collect();
        steps.push(shown.join(" / "));
    }
    let inverse = rows.iter().flat_map(|row| row[n..].to_vec()).collect();
    Some((inverse, steps, work))
}

impl TaskFamily for MatrixInverse {
    fn name(&self) -> &'static str {
        "matrix_inverse"
    }

    fn summary(&self) -> &'static str {
        "inverse of a matrix modulo a prime"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (n, primes) = size(level);
        let p = draw.choose(primes);
        let matrix: Vec<i64> = (0..n * n).map(|_| draw.between(0..=p - 1)).collect();
        let (inverse, steps, work) = inverse(&matrix, n, p)?;
        // A matrix that is its own inverse is answered by copying.
        if inverse == matrix {
            return None;
        }
        let rows: Vec<String> = matrix
            .chunks(n)
            .map(|row| format!("({})", listed(row, ", ")))
            .collect();
        Some(Instance {
            canonical: format!("{} mod {p}", rows.join("")),
            question: format!(
                "Find the inverse modulo {p} of the matrix with rows {}. Give its entries, each at least zero and less \
                 than the modulus, row by row as one list \\boxed{{e, ..., e}}.",
                rows.join(", ")
            ),
            solution: format!("[A | I] becomes {}. {}", steps.join("; "), boxed(&inverse)),
            gold: gold(work, &[&[p], matrix.as_slice()].concat()),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let numbers = gold_numbers(gold);
        let (p, matrix) = (numbers[0], &numbers[1..]);
        let n = matrix.len().isqrt();
        grade_list(completion, |answer| {
            answer.len() == n * n
                && answer.iter().all(|entry| (0..p).contains(entry))
                && product(matrix, answer, n, p) == identity(n)
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (n, primes) = size(level);
        let p = draw.choose(primes);
        boxed(
            &(0..n * n)
                .map(|_| draw.between(0..=p - 1))
                .collect::<Vec<_>>(),
        )
    }

    /// Copies the matrix.
    fn greedy_answer(&self, question: &str) -> String {
        boxed(integers(question).get(1..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_inverse_is_right() {
        // (1 2 / 3 4) has determinant -2 = 3 modulo 5, whose inverse is 2: 2 (4 -2 / -3 1) = (3 1 / 4 2).
        let reward = |answer: &str| MatrixInverse.grade("9|5 1 2 3 4", answer).reward();
        assert_eq!(reward("\\boxed{3, 1, 4, 2}"), Some(1.0));
        for wrong in [
            "3, 1, 4, 3",
            "3, 4, 1, 2",
            "8, 1, 4, 2",
            "-2, 1, 4, 2",
            "3, 1, 4",
            "1, 2, 3, 4",
        ] {
            assert_eq!(reward(&format!("\\boxed{{{wrong}}}")), Some(0.0), "{wrong}");
        }
        assert_eq!(inverse(&[1, 2, 2, 4], 2, 5), None);
    }
}
