//! The largest of two or more different numbers: "Which number is larger, 12 or 27?".
//!
//! The numbers are listed in random order, so naming the last one is right once in two (or in as
//! many as there are). The answer must end with the number asked for: "27 is larger than 12" ends
//! with 12 and earns nothing.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily, canonical};

/// The family.
pub(crate) struct Compare;

const WORDINGS_OF_TWO: [&str; 3] = [
    "Which number is larger, {}?",
    "Which is larger: {}?",
    "Which number is bigger, {}?",
];
const WORDINGS_OF_MORE: [&str; 2] = [
    "Which number is the largest, {}?",
    "Which is the largest: {}?",
];

/// How many numbers, and the largest that may occur.
fn size(level: u32) -> (usize, i64) {
    match level {
        1 => (2, 15),
        2 => (2, 30),
        3 => (2, 1000),
        4 => (3, 1000),
        _ => (5, 100_000),
    }
}

impl TaskFamily for Compare {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn summary(&self) -> &'static str {
        "which of two to five numbers is the largest"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (num_numbers, largest) = size(level);
        let mut numbers: Vec<i64> = Vec::with_capacity(num_numbers);
        while numbers.len() < num_numbers {
            let number = draw.between(1..=largest);
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        let answer = *numbers.iter().max()?;
        let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
        let (last, first) = words.split_last()?;
        let list = format!("{} or {last}", first.join(", "));
        let (wording, solution) = if num_numbers == 2 {
            (
                draw.choose(&WORDINGS_OF_TWO),
                format!("The larger number is {answer}"),
            )
        } else {
            (
                draw.choose(&WORDINGS_OF_MORE),
                format!("The largest number is {answer}"),
            )
        };
        Some(Instance {
            canonical: canonical(&numbers, answer),
            question: wording.replace("{}", &list),
            solution,
            gold: answer.to_string(),
            ..Instance::default()
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (_, largest) = size(level);
        draw.between(1..=largest).to_string()
    }
}
