//! Find any integers x and y with A x^2 + B x + C y^2 + D y = n: linear equations, sums of two squares, x^2 - D y^2 = n.
//!
//! Any witness is right. Work: values y = 0, 1, 2, ... tried (with -y for linear ones) until one has a partner x.

use std::ops::RangeInclusive;

use super::{boxed, gcd, gold, gold_numbers, grade_list};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Diophantine;

/// Answers beyond this size are not read, so that squares fit.
const LARGEST: i64 = 1_000_000_000;

/// What an equation looks like.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Linear,
    TwoSquares,
    DifferenceOfSquares,
}

/// The kind, and the largest coefficient or witness drawn; in the order of the work that the search takes.
fn shape(level: u32) -> (Kind, i64) {
    match level {
        1 => (Kind::Linear, 9),
        2 => (Kind::TwoSquares, 40),
        3 => (Kind::Linear, 30),
        4 => (Kind::DifferenceOfSquares, 1500),
        5 => (Kind::TwoSquares, 400),
        _ => (Kind::Linear, 500),
    }
}

/// The square root where it is an integer.
fn root(n: i64) -> Option<i64> {
    let root = u64::try_from(n).ok()?.isqrt() as i64;
    (root * root == n).then_some(root)
}

/// The first y that has a partner, its x, and how many were tried.
fn search(equation: [i64; 5]) -> (i64, i64, u64) {
    let [_, b, c, d, n] = equation;
    let mut work = 0;
    for size in 0.. {
        let signs = if b == 0 || size == 0 {
            &[1][..]
        } else {
            &[1, -1]
        };
        for sign in signs {
            let y = sign * size;
            work += 1;
            let rest = n - c * y * y - d * y;
            let x = match b {
                0 => root(rest),
                b => (rest % b == 0).then(|| rest / b),
            };
            if let Some(x) = x {
                return (x, y, work);
            }
        }
    }
    unreachable!("every equation is made from a witness")
}

/// Whether `x`, `y` solves the equation.
fn holds(equation: &[i64], x: i64, y: i64) -> bool {
    let term = |index: usize, value: i64| i128::from(equation[index]) * i128::from(value);
    let left = term(0, x) * i128::from(x) + term(1, x) + term(2, y) * i128::from(y) + term(3, y);
    left == i128::from(equation[4])
}

impl TaskFamily for Diophantine {
    fn name(&self) -> &'static str {
        "diophantine"
    }

    fn summary(&self) -> &'static str {
        "any integer solution of an equation"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (kind, largest) = shape(level);
        let (equation, text, canonical) = if kind == Kind::Linear {
            let (a, b) = (draw.between(2..=largest), draw.between(2..=largest));
            let n = draw.between(1..=4 * largest);
            // Neither variable may be zero in the obvious answer.
            if a <= b || gcd(a, b) != 1 || n % a == 0 || n % b == 0 {
                return None;
            }
            (
                [0, a, 0, b, n],
                format!("{a}x + {b}y = {n}"),
                format!("{a} {b} {n}"),
            )
        } else {
            let (x, y) = (draw.between(1..=largest), draw.between(1..=largest));
            let d = match kind {
                Kind::DifferenceOfSquares => -draw.between(2..=99),
                _ => 1,
            };
            let n = x * x + d * y * y;
            if root(n).is_some() || root(-d).is_some() || n < 1 {
                return None;
            }
            let text = if d == 1 {
                format!("x^2 + y^2 = {n}")
            } else {
                format!("x^2 - {}y^2 = {n}", -d)
            };
            ([1, 0, d, 0, n], text, format!("squares {d} {n}"))
        };
        let (x, y, work) = search(equation);
        let tried = match equation[1] {
            0 => format!("{} is a square", equation[4] - equation[2] * y * y),
            a => format!("{} is a multiple of {a}", equation[4] - equation[3] * y),
        };
        Some(Instance {
            canonical,
            question: format!(
                "Find any integers x and y, negative ones and zero allowed, of at most nine digits, with {text}. \
                 Give them as \\boxed{{x, y}}."
            ),
            solution: format!(
                "With y = {y}, what is left for x is {tried}, so x = {x}. {}",
                boxed(&[x, y])
            ),
            gold: gold(work, &equation),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let equation = gold_numbers(gold);
        grade_list(completion, |answer| match *answer {
            [x, y] => x.abs() < LARGEST && y.abs() < LARGEST && holds(&equation, x, y),
            _ => false,
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (_, largest) = shape(level);
        boxed(&[
            draw.between(-largest..=largest),
            draw.between(-largest..=largest),
        ])
    }

    fn greedy_answer(&self, _question: &str) -> String {
        boxed(&[1, 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_witness_is_right_and_nothing_else() {
        let reward = |gold: &str, answer: &str| {
            Diophantine
                .grade(gold, &format!("\\boxed{{{answer}}}"))
                .reward()
        };
        for (answer, wanted) in [
            ("1, 2", 1.0),
            ("-2, 7", 1.0),
            ("4, -3", 1.0),
            ("2, 1", 0.0),
            ("1", 0.0),
            ("1, 2, 0", 0.0),
            ("x = 1, y = 2", 0.0),
        ] {
            assert_eq!(reward("3|0 5 0 3 11", answer), Some(wanted), "{answer}");
        }
        for (answer, wanted) in [("3, 4", 1.0), ("-4, 3", 1.0), ("0, 5", 1.0), ("5, 1", 0.0)] {
            assert_eq!(reward("3|1 0 1 0 25", answer), Some(wanted), "{answer}");
        }
        assert_eq!(reward("3|1 0 -2 0 1", "3, 2"), Some(1.0));
        assert_eq!(reward("3|1 0 -2 0 1", "17, -12"), Some(1.0));
    }
}
