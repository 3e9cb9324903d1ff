//! Expected steps of a Markov chain to its end, as a fraction.
//!
//! From state i the chain goes to i + 1 with probability p_i, else back to r_i <= i. The expected steps from i to i + 1
//! are e_i = (1 + (1 - p_i) (e_{r_i} + ... + e_{i-1})) / p_i, and the answer is e_0 + ... + e_{n-1}.
//! Work: the fraction operations, i - r_i + 3 a state. Any fraction a/b or integer of this value is right.

use std::ops::RangeInclusive;

use super::{gold, gold_numbers, integer, last_number};
use crate::committed::committed;
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct WaitingTime;

/// How many states before the end, and the largest denominator.
fn size(level: u32) -> (usize, i64) {
    match level {
        1 => (2, 5),
        2 => (3, 6),
        3 => (4, 6),
        4 => (5, 7),
        _ => (7, 7),
    }
}

/// A fraction in lowest terms, denominator positive.
type Fraction = (i128, i128);

fn reduced(a: i128, b: i128) -> Fraction {
    let (mut x, mut y) = (a.abs(), b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1), b / x.max(1))
}

fn sum(a: Fraction, b: Fraction) -> Fraction {
    reduced(a.0 * b.1 + b.0 * a.1, a.1 * b.1)
}

fn text((a, b): Fraction) -> String {
    if b == 1 {
        a.to_string()
    } else {
        format!("{a}/{b}")
    }
}

/// e_i of states (a, b, r) with p = a/b.
fn expected(states: &[(i64, i64, usize)]) -> Vec<Fraction> {
    let mut e: Vec<Fraction> = Vec::new();
    for &(a, b, back) in states {
        let (a, b) = (i128::from(a), i128::from(b));
        let again = e[back..].iter().fold((0, 1), |total, &one| sum(total, one));
        let (c, d) = sum((1, 1), reduced((b - a) * again.0, b * again.1));
        e.push(reduced(c * b, d * a));
    }
    e
}

impl TaskFamily for WaitingTime {
    fn name(&self) -> &'static str {
        "waiting_time"
    }

    fn summary(&self) -> &'static str {
        "expected steps of a Markov chain"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (n, largest) = size(level);
        let mut states = Vec::new();
        for i in 0..n {
            let b = draw.between(2..=largest);
            let a = draw.between(1..=b - 1);
            states.push((a, b, draw.index(i + 1)));
        }
        let e = expected(&states);
        let answer = e.iter().fold((0, 1), |total, &one| sum(total, one));
        let numbers = [i64::try_from(answer.0).ok()?, i64::try_from(answer.1).ok()?];
        // A question's answer must be one that the checker can read.
        if numbers[0] >= 1_000_000_000_000 {
            return None;
        }
        let rules: Vec<String> = (0..n)
            .map(|i| {
                let (a, b, back) = states[i];
                format!(
                    "from {i} to {} with probability {a}/{b}, else to {back}",
                    i + 1
                )
            })
            .collect();
        let work = (0..n).map(|i| (i - states[i].2 + 3) as u64).sum();
        let rules = rules.join("; ");
        let steps: Vec<String> = e
            .iter()
            .enumerate()
            .map(|(i, &e)| format!("e{i} = {}", text(e)))
            .collect();
        Some(Instance {
            question: format!(
                "A chain steps {rules}. It starts in state 0. What is the expected number of steps until it reaches \
                 state {n}? Give an integer or a fraction of two integers as \\boxed{{a/b}}."
            ),
            canonical: rules,
            solution: format!(
                "Let ei be the expected steps from i to the next state: ei = (1 + (1 - p)(sum of e from the state it falls \
                 back to)) / p. {}. Sum {}. \\boxed{{{}}}",
                steps.join(", "),
                text(answer),
                text(answer)
            ),
            gold: gold(work, &numbers),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let wanted = gold_numbers(gold);
        let answer = committed(completion);
        let is_right = answer.is_some_and(|answer| {
            let (a, b) = answer.split_once('/').unwrap_or((answer, "1"));
            match (integer(a), integer(b)) {
                (Some(a), Some(b)) if b > 0 => {
                    i128::from(a) * i128::from(wanted[1]) == i128::from(wanted[0]) * i128::from(b)
                }
                _ => false,
            }
        });
        Verdict::exact(is_right, answer.map(str::to_string))
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (n, largest) = size(level);
        let b = draw.between(1..=largest);
        format!(
            "\\boxed{{{}/{b}}}",
            draw.between(b * n as i64..=b * largest * n as i64 * 2)
        )
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed_chains_are_right() {
        // Two heads in a row: 6 tosses; three: 14.
        let total =
            |states: &[(i64, i64, usize)]| expected(states).iter().fold((0, 1), |t, &e| sum(t, e));
        assert_eq!(total(&[(1, 2, 0), (1, 2, 0)]), (6, 1));
        assert_eq!(total(&[(1, 2, 0), (1, 2, 0), (1, 2, 0)]), (14, 1));
        // Independent waits: 3/2 + 4.
        assert_eq!(total(&[(2, 3, 0), (1, 4, 1)]), (11, 2));
    }

    #[test]
    fn equal_fractions_are_right() {
        let reward = |answer: &str| {
            WaitingTime
                .grade("9|11 2", &format!("\\boxed{{{answer}}}"))
                .reward()
        };
        for right in ["11/2", "22/4", " 11 / 2 "] {
            assert_eq!(reward(right), Some(1.0), "{right}");
        }
        for wrong in [
            "5.5", "11", "2/11", "11/0", "0/0", "-11/-2", "11/2/1", "12/2",
        ] {
            assert_eq!(reward(wrong), Some(0.0), "{wrong}");
        }
    }
}
