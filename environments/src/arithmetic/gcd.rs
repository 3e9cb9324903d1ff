//! Greatest common divisor: "What is the greatest common divisor of 12 and 18?".
//!
//! numbers = (g x, g y) with g uniform and x, y > 1 coprime and different. Drawing the divisor first
//! keeps the answers spread: of two numbers drawn blindly 61% have divisor 1, which a policy would
//! soon always answer. Neither number divides the other, so no operand is the answer.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily, canonical};

/// The family.
pub(crate) struct Gcd;

const WORDINGS: [&str; 2] = [
    "What is the greatest common divisor of {a} and {b}?",
    "What is the largest number that divides both {a} and {b}?",
];

/// Largest divisor and largest cofactor.
fn size(level: u32) -> (i64, i64) {
    match level {
        1 => (15, 7),
        2 => (20, 12),
        3 => (50, 20),
        4 => (100, 99),
        _ => (1000, 999),
    }
}

/// Euclid: gcd(a, 0) = a, gcd(a, b) = gcd(b, a mod b).
fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

impl TaskFamily for Gcd {
    fn name(&self) -> &'static str {
        "gcd"
    }

    fn summary(&self) -> &'static str {
        "greatest common divisor of two numbers"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (largest_divisor, largest_cofactor) = size(level);
        let divisor = draw.between(1..=largest_divisor);
        let x = draw.between(2..=largest_cofactor);
        let y = draw.between(2..=largest_cofactor);
        // Also refuses x = y, which share the divisor x.
        if greatest_common_divisor(x, y) != 1 {
            return None;
        }
        let (a, b) = (divisor * x, divisor * y);
        Some(Instance {
            canonical: canonical(&[a, b], divisor),
            question: draw
                .choose(&WORDINGS)
                .replace("{a}", &a.to_string())
                .replace("{b}", &b.to_string()),
            solution: format!("{a} = {divisor} * {x} and {b} = {divisor} * {y}, so {divisor}"),
            gold: divisor.to_string(),
            ..Instance::default()
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (largest_divisor, _) = size(level);
        draw.between(1..=largest_divisor).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greatest_common_divisors_are_right() {
        assert_eq!(greatest_common_divisor(12, 18), 6);
        assert_eq!(greatest_common_divisor(17, 5), 1);
        assert_eq!(greatest_common_divisor(1071, 462), 21);
    }
}
