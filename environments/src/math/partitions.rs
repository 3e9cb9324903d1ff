//! Restricted partitions: how many ways to write n as a sum of given parts, each used at most c times, order aside.
//! One integer.
//!
//! new(s) = old(s) + old(s - a) + ... + old(s - c a), part after part. Work: terms of these sums that are not zero.

use std::ops::RangeInclusive;

use super::{boxed, gold, grade_same, last_number, listed};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Partitions;

/// How many parts, the largest of them, how often each may be used, and the sums.
fn size(level: u32) -> (usize, i64, i64, RangeInclusive<i64>) {
    match level {
        1 => (3, 5, 4, 6..=14),
        2 => (4, 8, 3, 12..=24),
        3 => (5, 10, 3, 20..=40),
        4 => (7, 15, 3, 40..=80),
        5 => (9, 24, 4, 80..=160),
        _ => (12, 40, 5, 200..=400),
    }
}

/// Ways for every sum up to `n`, after each part, and the work.
fn count(parts: &[i64], most: i64, n: i64) -> (Vec<i64>, u64) {
    let mut ways = vec![0i64; n as usize + 1];
    ways[0] = 1;
    let mut work = 0;
    for &part in parts {
        let old = ways.clone();
        for sum in 0..=n {
            let terms = (0..=most).map(|times| sum - times * part);
            let terms = terms
                .take_while(|&rest| rest >= 0)
                .map(|rest| old[rest as usize]);
            let terms: Vec<i64> = terms.filter(|&term| term > 0).collect();
            work += terms.len() as u64;
            ways[sum as usize] = terms.iter().sum();
        }
    }
    (ways, work)
}

impl TaskFamily for Partitions {
    fn name(&self) -> &'static str {
        "partitions"
    }

    fn summary(&self) -> &'static str {
        "number of partitions into given parts"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (num_parts, largest, most, sums) = size(level);
        let mut parts = Vec::new();
        while parts.len() < num_parts {
            let part = draw.between(1..=largest);
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts.sort_unstable();
        let most = draw.between(2..=most);
        let n = draw.between(sums);
        let (ways, work) = count(&parts, most, n);
        let answer = ways[n as usize];
        if answer < 2 {
            return None;
        }
        let mut steps = Vec::new();
        for used in 1..num_parts {
            let (ways, _) = count(&parts[..used], most, n);
            let shown: Vec<String> = (0..=n as usize)
                .filter(|&sum| ways[sum] > 0)
                .take(12)
                .map(|sum| format!("{sum}:{}", ways[sum]))
                .collect();
            steps.push(format!(
                "{}: {}",
                listed(&parts[..used], " "),
                shown.join(" ")
            ));
        }
        // The table of a hard level is long; its first rows show the method.
        steps.truncate(4);
        let parts = listed(&parts, ", ");
        Some(Instance {
            canonical: format!("{parts} / {most} / {n}"),
            question: format!(
                "In how many ways can a sum be made of the parts {parts}, each used at most {most} times, in any order, \
                 order not counting, if the sum is {n}? Give the number as \\boxed{{number}}."
            ),
            solution: format!(
                "Sums and their ways, part by part: {}. Likewise with all parts {n}:{answer}. {}",
                steps.join("; "),
                boxed(&[answer])
            ),
            gold: gold(work, &[answer]),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        grade_same(gold, completion)
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        boxed(&[draw.between(2..=10 << level)])
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(parts: &[i64], most: i64, n: i64) -> i64 {
        match parts.split_first() {
            None => i64::from(n == 0),
            Some((part, rest)) => (0..=most)
                .map(|times| choose(rest, most, n - times * part))
                .sum(),
        }
    }

    #[test]
    fn counts_are_those_of_trying_every_choice() {
        for n in 0..40 {
            assert_eq!(
                count(&[1, 3, 4, 7], 3, n).0[n as usize],
                choose(&[1, 3, 4, 7], 3, n),
                "{n}"
            );
        }
        // 5 = 1+1+1+1+1 = 1+1+1+2 = 1+2+2 with parts 1 and 2.
        assert_eq!(count(&[1, 2], 5, 5).0[5], 3);
    }
}
