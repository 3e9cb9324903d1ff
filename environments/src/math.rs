//! Mathematics families, one file each; every answer is a list of integers (or one fraction) in `\boxed{}`.
//!
//! A gold is `WORK|NUMBERS`: WORK is how many steps the reference solver took, the measured quantity of the level table
//! in `docs/families/math.md`; each family's file says what a step is. NUMBERS is what the checker needs.

use crate::committed::committed;
use crate::integer_answer::integers;
use crate::verdict::Verdict;

pub(crate) mod computed_answer;
pub(crate) mod congruences;
pub(crate) mod diophantine;
pub(crate) mod lattice_paths;
pub(crate) mod matrix_inverse;
pub(crate) mod partitions;
pub(crate) mod polynomials;
pub(crate) mod recurrences;
pub(crate) mod waiting_time;

/// No answer has more numbers than this.
const MAX_NUMBERS: usize = 64;

/// A gold.
fn gold(work: u64, numbers: &[i64]) -> String {
    format!("{work}|{}", listed(numbers, " "))
}

/// The numbers of a gold.
fn gold_numbers(gold: &str) -> Vec<i64> {
    let (_, numbers) = gold.split_once('|').expect("a gold has its work in front");
    let parsed = numbers.split_whitespace().map(str::parse);
    parsed
        .collect::<Result<_, _>>()
        .expect("a gold of integers")
}

/// `numbers` with `between` them.
fn listed(numbers: &[i64], between: &str) -> String {
    let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
    words.join(between)
}

/// `numbers` as an answer.
pub(crate) fn boxed(numbers: &[i64]) -> String {
    format!("\\boxed{{{}}}", listed(numbers, ", "))
}

/// One integer of at most 18 digits, with or without a sign in front.
fn integer(word: &str) -> Option<i64> {
    let word = word.trim().replace('\u{2212}', "-");
    let digits = word.strip_prefix('-').unwrap_or(&word);
    let is_plain = (1..=18).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| word.parse().ok()).flatten()
}

/// Grades the integers, separated by commas, of the completion's box.
pub(crate) fn grade_list(completion: &str, is_right: impl Fn(&[i64]) -> bool) -> Verdict {
    let answer = committed(completion);
    let numbers: Option<Vec<i64>> = answer.and_then(|answer| {
        let words = answer.split(',').take(MAX_NUMBERS + 1);
        words.map(integer).collect()
    });
    let is_right =
        numbers.is_some_and(|numbers| numbers.len() <= MAX_NUMBERS && is_right(&numbers));
    Verdict::exact(is_right, answer.map(str::to_string))
}

/// Grades a list that must be the gold's.
fn grade_same(gold: &str, completion: &str) -> Verdict {
    let wanted = gold_numbers(gold);
    grade_list(completion, |numbers| numbers == wanted)
}

/// The shortcut of naming the question's last number.
pub(crate) fn last_number(question: &str) -> String {
    let last = integers(question).pop();
    last.map_or_else(String::new, |number| boxed(&[number]))
}

/// Greatest common divisor, not negative.
fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
