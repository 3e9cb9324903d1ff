//! Products of two factors: "What is 7 times 8?".
//!
//! Both orders of the factors are asked, and count as one instance.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily, canonical};

/// The family.
pub(crate) struct Products;

const WORDINGS: [&str; 3] = [
    "What is {a} times {b}?",
    "What is {a} * {b}?",
    "Multiply {a} by {b}.",
];

/// Ranges of the two factors.
fn factors(level: u32) -> (RangeInclusive<i64>, RangeInclusive<i64>) {
    match level {
        1 => (1..=5, 1..=5),
        2 => (1..=12, 1..=12),
        3 => (10..=99, 2..=9),
        4 => (10..=99, 10..=99),
        5 => (100..=999, 10..=99),
        _ => (100..=999, 100..=999),
    }
}

impl TaskFamily for Products {
    fn name(&self) -> &'static str {
        "products"
    }

    fn summary(&self) -> &'static str {
        "products of two numbers"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (first, second) = factors(level);
        let (mut a, mut b) = (draw.between(first), draw.between(second));
        if draw.coin() {
            (a, b) = (b, a);
        }
        let product = a * b;
        Some(Instance {
            canonical: canonical(&[a, b], product),
            question: draw
                .choose(&WORDINGS)
                .replace("{a}", &a.to_string())
                .replace("{b}", &b.to_string()),
            solution: format!("{a} * {b} = {product}"),
            gold: product.to_string(),
            ..Instance::default()
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (first, second) = factors(level);
        draw.between(first.start() * second.start()..=first.end() * second.end())
            .to_string()
    }
}
