//! Write a function from its description: steps of the small language, told in words, with one example.
//!
//! Every step matters on the hidden inputs, and the results differ from input to input.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::programming::code_block::{FORM, block, last_block};
use crate::programming::judge;
use crate::programming::program::{Program, inputs};
use crate::programming::repair_program::lookalikes;
use crate::programming::value::{Kind, MAX_ITEMS, Value};
use crate::verdict::Verdict;

/// Hidden inputs of a task, the empty one among them.
const NUM_INPUTS: usize = 20;
/// Programs drawn for one input kind before the attempt is given up: deep ones are often dull.
const MAX_PROGRAMS: usize = 200;

/// Random inputs among which one is looked for that tells two programs apart.
const MAX_TRIES: usize = 100;

/// The family.
pub(crate) struct ComposeFunction;

/// What a task is checked with.
#[derive(Serialize, Deserialize)]
pub(crate) struct Gold {
    pub(crate) program: Program,
    pub(crate) inputs: Vec<Value>,
}

pub(super) fn num_steps(level: u32) -> usize {
    match level {
        1 => 1,
        2 => 2,
        3 => 3,
        4 => 5,
        5 => 7,
        _ => 10,
    }
}

/// A program of `num_steps` steps and inputs on which each of them matters and results differ.
pub(crate) fn draw_program(num_steps: usize, num_inputs: usize, draw: &mut Draw) -> Option<Gold> {
    let kind = draw.choose(&Kind::INPUTS);
    let inputs = inputs(kind, num_inputs, draw);
    let program = (0..MAX_PROGRAMS).find_map(|_| {
        let program = Program::draw(kind, num_steps, draw);
        let results = program.run_all(&inputs)?;
        let distinct: HashSet<&Value> = results.iter().collect();
        let num_empty = results.iter().filter(|result| result.is_empty()).count();
        let is_lively = distinct.len() * 3 >= results.len() && num_empty * 3 <= results.len();
        (is_lively && program.needs_every_step(&inputs)).then_some(program)
    })?;
    let mut gold = Gold { program, inputs };
    gold.sharpen(draw);
    Some(gold)
}

impl Gold {
    /// Adds inputs that tell the program from those in which one step is another that reads much like it.
    fn sharpen(&mut self, draw: &mut Draw) {
        let kinds = self.program.kinds().unwrap_or_default();
        let num_steps = self.program.steps.len();
        for (at, kind) in kinds.into_iter().enumerate().take(num_steps) {
            for step in lookalikes(&self.program.steps[at], kind) {
                let mut other = self.program.clone();
                other.steps[at] = step;
                if self.accepts(&other) {
                    let input =
                        (0..MAX_TRIES)
                            .map(|_| self.program.input.draw(draw))
                            .find(|input| {
                                let result = self.program.run(input);
                                result.is_some() && other.run(input) != result
                            });
                    self.inputs.extend(input);
                }
            }
        }
    }

    /// The results of the hidden inputs.
    pub(crate) fn expected(&self) -> Vec<Value> {
        let results = self.program.run_all(&self.inputs);
        results.expect("the program ran on these inputs when it was drawn")
    }

    /// Whether `program` gives the results of the hidden inputs.
    pub(super) fn accepts(&self, program: &Program) -> bool {
        let same = |input| program.run(input) == self.program.run(input);
        self.inputs.iter().all(same)
    }

    /// "takes a list of integers and returns an integer."
    pub(crate) fn signature(&self) -> String {
        let kinds = self.program.kinds().expect("steps fit each other");
        let result = kinds.last().expect("the input at least").noun();
        format!(
            "takes {} (at most {MAX_ITEMS} of them, maybe none) and returns {result}",
            self.program.input.noun()
        )
    }

    /// An example whose input and result are not empty.
    pub(crate) fn example(&self) -> Option<(&Value, Value)> {
        self.inputs.iter().find_map(|input| {
            let result = self.program.run(input)?;
            (!input.is_empty() && !result.is_empty()).then_some((input, result))
        })
    }
}

/// Reads what a family sealed with [`serde_json`].
pub(crate) fn unsealed<T: serde::de::DeserializeOwned>(gold: &str) -> T {
    serde_json::from_str(gold).expect("the family itself wrote its gold")
}

/// Seals what a task is checked with.
pub(crate) fn sealed<T: Serialize>(gold: &T) -> String {
    serde_json::to_string(gold).expect("plain data")
}

/// The result of the first example of a question, as it stands there.
pub(crate) fn shown_result(question: &str) -> &str {
    let after = question.split_once("returns ").map_or("", |(_, rest)| rest);
    let example = after.split_once(") returns ").map_or("", |(_, rest)| rest);
    example.lines().next().unwrap_or("").trim_end_matches('.')
}

impl TaskFamily for ComposeFunction {
    fn name(&self) -> &'static str {
        "compose_function"
    }

    fn summary(&self) -> &'static str {
        "write a Python function from its description"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
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
        let gold = draw_program(num_steps(level), NUM_INPUTS, draw)?;
        let (input, result) = gold.example()?;
        let question = format!(
            "Write a Python function solve(x) that {}. It does the following in order, each step with the result of the step before:\n{}\nExample: solve({}) returns {}.\n{FORM} {}",
            gold.signature(),
            gold.program.prose(),
            input.shown(),
            result.shown(),
            judge::rules(),
        );
        Some(Instance {
            canonical: gold.program.canonical(),
            question,
            solution: format!(
                "Each step is a line or so:\n{}",
                block(&gold.program.python())
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
        judge::grade_code(code, &gold.inputs, &gold.expected())
    }

    /// A random program of as many steps that takes the same kind of input.
    fn random_answer(&self, level: u32, question: &str, draw: &mut Draw) -> String {
        let kind = Kind::asked_in(question).unwrap_or(Kind::List);
        block(&Program::draw(kind, num_steps(level), draw).python())
    }

    /// A function that returns the example's result whatever it is given.
    fn greedy_answer(&self, question: &str) -> String {
        block(&format!(
            "def solve(x):\n    return {}",
            shown_result(question)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    #[test]
    fn the_shortcut_names_the_result_of_the_example() {
        for seed in 0..30 {
            let key = FamilyKey {
                family: Family::ComposeFunction,
                split: Split::Train,
                level: 2,
                seed,
            };
            let task = Family::task(&key);
            let gold: Gold = unsealed(&task.gold);
            let (_, result) = gold.example().expect("an example");
            assert_eq!(shown_result(&task.question), result.shown());
        }
    }
}
