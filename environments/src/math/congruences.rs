//! Congruences: the least x >= 0 with x = r_i (mod m_i) for all i. One integer.
//!
//! Work: numbers tried when the congruences, largest modulus first, are merged by stepping x by the merged modulus.

use std::ops::RangeInclusive;

use super::{boxed, gcd, gold, grade_same, last_number};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Congruences;

/// How many congruences, the moduli, and whether they may share factors.
fn size(level: u32) -> (usize, RangeInclusive<i64>, bool) {
    match level {
        1 => (2, 3..=7, false),
        2 => (2, 5..=15, false),
        3 => (3, 3..=12, false),
        4 => (3, 8..=40, true),
        5 => (4, 20..=100, true),
        _ => (5, 50..=250, true),
    }
}

impl TaskFamily for Congruences {
    fn name(&self) -> &'static str {
        "congruences"
    }

    fn summary(&self) -> &'static str {
        "least integer that solves a system of congruences"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (count, range, may_share) = size(level);
        let mut moduli: Vec<i64> = (0..count).map(|_| draw.between(range.clone())).collect();
        moduli.sort_unstable_by(|a, b| b.cmp(a));
        let mut period = 1;
        for &modulus in &moduli {
            let shared = gcd(period, modulus);
            // A modulus that divides the rest says nothing new.
            if shared == modulus || (shared > 1 && !may_share) {
                return None;
            }
            period = period / shared * modulus;
        }
        let secret = draw.between(0..=period - 1);
        let (mut x, mut merged, mut work) = (0, 1, 0u64);
        let mut steps = Vec::new();
        let mut conditions = Vec::new();
        for &modulus in &moduli {
            let rest = secret % modulus;
            while x % modulus != rest {
                x += merged;
                work += 1;
            }
            work += 1;
            merged = merged / gcd(merged, modulus) * modulus;
            steps.push(format!("x = {x} (mod {merged})"));
            conditions.push(format!("x mod {modulus} = {rest}"));
        }
        let conditions = conditions.join(", ");
        Some(Instance {
            question: format!(
                "Find the least integer x >= 0 with {conditions}. Give it as \\boxed{{x}}."
            ),
            canonical: conditions,
            solution: format!("{}. {}", steps.join("; "), boxed(&[x])),
            gold: gold(work, &[x]),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        grade_same(gold, completion)
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (count, range, _) = size(level);
        boxed(&[draw.between(0..=range.end().pow(count as u32) - 1)])
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}
