//! Sums and differences: "What is 17 + 5?".
//!
//! Two to four operands joined by + or -, each sign by a coin. No running total is ever negative: a
//! difference of two puts the larger operand first, and a longer chain adds where it can't subtract.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily, canonical};

/// The family.
pub(crate) struct Sums;

const WORDINGS: [&str; 3] = ["What is {}?", "How much is {}?", "Calculate {}."];

/// Number of operands and the largest operand.
fn size(level: u32) -> (i64, i64) {
    match level {
        1 => (2, 9),
        2 => (2, 30),
        3 => (2, 100),
        4 => (2, 1000),
        5 => (3, 100),
        _ => (4, 1000),
    }
}

impl TaskFamily for Sums {
    fn name(&self) -> &'static str {
        "sums"
    }

    fn summary(&self) -> &'static str {
        "sums and differences of up to four numbers"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (num_operands, largest) = size(level);
        let mut operands: Vec<i64> = (0..num_operands)
            .map(|_| draw.between(1..=largest))
            .collect();
        let mut subtracts: Vec<bool> = operands.iter().map(|_| draw.coin()).collect();
        subtracts[0] = false;
        if num_operands == 2 && subtracts[1] && operands[0] < operands[1] {
            operands.swap(0, 1);
        }
        let mut total = operands[0];
        let mut expression = total.to_string();
        for (&operand, &subtract) in operands.iter().zip(&subtracts).skip(1) {
            if subtract && operand <= total {
                total -= operand;
                expression += &format!(" - {operand}");
            } else {
                total += operand;
                expression += &format!(" + {operand}");
            }
        }
        Some(Instance {
            canonical: canonical(&operands, total),
            question: draw.choose(&WORDINGS).replace("{}", &expression),
            solution: format!("{expression} = {total}"),
            gold: total.to_string(),
            ..Instance::default()
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (num_operands, largest) = size(level);
        draw.between(0..=num_operands * largest).to_string()
    }
}
