//! Write a function that is fast enough: lists so long that trying every pair or sublist takes ten times the limit.
//!
//! The list is first turned into y, y_i = (x_i * p + q) mod m - s; what is asked of y comes from
//! [`Question`](questions::Question). Hidden inputs are a dozen short lists, one of middling length, and one of the greatest length, all made
//! from the gold when an answer is graded.

mod questions;

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::programming::code_block::{FORM, block, last_block};
use crate::programming::compose_function::{sealed, unsealed};
use crate::programming::judge;
use crate::programming::value::Value;
use crate::verdict::Verdict;

use questions::Question;

/// Factors of the map from x to y.
const PRIMES: [i64; 10] = [3, 7, 13, 17, 29, 41, 53, 67, 83, 97];

/// The family.
pub(crate) struct EfficientProgram;

/// What a task is checked with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Gold {
    /// p, q, m, s.
    mapped: [i64; 4],
    question: Question,
    /// Starts the stream of hidden inputs.
    stream: u64,
}

/// SplitMix64 (Steele, Lea and Flood, 2014): hidden inputs are too large to be stored.
struct Stream(u64);

impl Stream {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// About uniform from `-bound` to `bound`.
    fn within(&mut self, bound: u64) -> i64 {
        (self.next() % (2 * bound + 1)) as i64 - bound as i64
    }

    fn list(&mut self, len: usize, bound: u64) -> Vec<i64> {
        (0..len).map(|_| self.within(bound)).collect()
    }
}

impl Gold {
    fn mapped(&self, list: &[i64]) -> Vec<i64> {
        let [p, q, m, s] = self.mapped;
        list.iter().map(|v| (v * p + q).rem_euclid(m) - s).collect()
    }

    fn answer(&self, list: &[i64]) -> i64 {
        self.question.answer(&self.mapped(list))
    }

    /// The hidden inputs: short ones first, so that a wrong program ends soon.
    fn inputs(&self) -> Vec<Vec<i64>> {
        let mut stream = Stream(self.stream);
        let mut inputs: Vec<Vec<i64>> = (0..12).map(|len| stream.list(len, 99)).collect();
        inputs.push(stream.list(300, 1_000_000));
        inputs.push(self.longest(&mut stream));
        inputs
    }

    /// A list of the greatest length: random, or such that y falls slowly, with random places where it doesn't.
    fn longest(&self, stream: &mut Stream) -> Vec<i64> {
        let len = self.question.max_len();
        let mut list = stream.list(len, 1_000_000);
        if self.question.is_slow_where_falling() {
            // p = 1 and q = 0 there: y_i is x_i - s as long as x_i lies from 0 to m - 1.
            for (i, v) in list.iter_mut().enumerate() {
                let is_odd_one = v.rem_euclid(64) == 0;
                *v = (len - i) as i64 + if is_odd_one { 3 } else { 0 };
            }
        }
        list
    }

    fn mapping_prose(&self) -> String {
        let [p, q, m, s] = self.mapped;
        format!(
            "Let y be the list of (v * {p} + {q}) % {m} - {s} for the numbers v of x, in their order (% as in Python: the remainder is never negative)."
        )
    }

    /// A whole function around `lines`, which make `r` of `y`.
    fn function(&self, imports: &str, lines: &str) -> String {
        let [p, q, m, s] = self.mapped;
        let mut code = String::new();
        if !imports.is_empty() {
            code += &format!("{imports}\n\n");
        }
        code += &format!("def solve(x):\n    y = [(v * {p} + {q}) % {m} - {s} for v in x]\n");
        for line in lines.lines() {
            code += &format!("    {line}\n");
        }
        code + "    return r"
    }
}

impl TaskFamily for EfficientProgram {
    fn name(&self) -> &'static str {
        "efficient_program"
    }

    fn summary(&self) -> &'static str {
        "write a Python function that is fast on long lists"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn domain(&self) -> Domain {
        Domain::Programming
    }

    fn needs_sandbox(&self) -> bool {
        true
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (question, modulus) = Question::draw(level, draw);
        let mapped = match question.is_slow_where_falling() {
            true => [1, 0, modulus, draw.between(0..=999)],
            false => {
                let p = draw.choose(&PRIMES);
                if modulus % p == 0 {
                    // y would not take every value.
                    return None;
                }
                [p, draw.between(1..=999), modulus, modulus / 2]
            }
        };
        let gold = Gold {
            mapped,
            question,
            stream: draw.between(0..=i64::MAX - 1) as u64,
        };
        let mut stream = Stream(!gold.stream);
        let example = stream.list(8, 99);
        let shown = Value::List(example.clone()).shown();
        let canonical = format!("{:?} {:?}", gold.mapped, gold.question);
        let asked = format!(
            "Write a Python function solve(x) that takes a list of integers and returns an integer. {} Return {}\nExample: solve({shown}) returns {}.\nThe list may be empty and has at most {} numbers from -1000000 to 1000000; one of the hidden lists is that long, so that looking at every pair of places takes far too long. {FORM} {}",
            gold.mapping_prose(),
            gold.question.prose(),
            gold.answer(&example),
            gold.question.max_len(),
            judge::rules(),
        );
        let (imports, lines) = gold.question.fast_python();
        Some(Instance {
            canonical,
            question: asked,
            solution: format!(
                "{}\n{}",
                gold.question.idea(),
                block(&gold.function(imports, &lines))
            ),
            gold: sealed(&gold),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let Some(code) = last_block(completion) else {
            return Verdict::exact(false, None);
        };
        let gold: Gold = unsealed(gold);
        let inputs = gold.inputs();
        let answers: Vec<Value> = inputs
            .iter()
            .map(|x| Value::Integer(gold.answer(x)))
            .collect();
        let inputs: Vec<Value> = inputs.into_iter().map(Value::List).collect();
        judge::grade_code(code, &inputs, &answers)
    }

    /// A function that returns a random small number.
    fn random_answer(&self, _level: u32, _question: &str, draw: &mut Draw) -> String {
        let number = draw.between(0..=20);
        block(&format!("def solve(x):\n    return {number} if x else 0"))
    }

    /// A function that returns the example's result whatever it is given.
    fn greedy_answer(&self, question: &str) -> String {
        let after = question
            .rsplit_once(") returns ")
            .map_or("", |(_, rest)| rest);
        let result = after.split_once(".\n").map_or("", |(result, _)| result);
        block(&format!("def solve(x):\n    return {result}"))
    }
}

#[cfg(test)]
mod tests;
