//! Run a program backwards: find any input for which it gives the output that is asked for.
//!
//! The program is one of the small language, shown in Python; an answer is run here, in Rust, so no sandbox is needed.
//! Drawn so that the output itself, the empty input and many random inputs are no answers.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::committed::committed;
use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::programming::compose_function::{sealed, unsealed};
use crate::programming::program::{Program, inputs};
use crate::programming::value::{Kind, MAX_INTEGER, MAX_ITEMS, Value};
use crate::verdict::Verdict;

/// Programs drawn before an attempt is given up.
const MAX_PROGRAMS: usize = 50;

/// The family.
pub(crate) struct InvertProgram;

/// What a task is checked with.
#[derive(Serialize, Deserialize)]
struct Gold {
    program: Program,
    output: Value,
}

/// What a level asks for.
struct Size {
    num_steps: usize,
    /// Fewest items of the output: shorter ones say too little about the input, the more so the longer the program.
    min_items: usize,
    /// Random inputs, the empty one among them, that must not be answers.
    num_tries: usize,
}

fn size(level: u32) -> Size {
    let size = |num_steps, min_items, num_tries| Size {
        num_steps,
        min_items,
        num_tries,
    };
    match level {
        1 => size(1, 3, 25),
        2 => size(2, 3, 100),
        3 => size(3, 4, 200),
        4 => size(4, 4, 400),
        _ => size(6, 5, 800),
    }
}

/// The rules of inputs, in words.
fn allowed(kind: Kind) -> String {
    match kind {
        Kind::Text => format!("at most {MAX_ITEMS} letters from a to z"),
        _ => format!(
            "at most {MAX_ITEMS} items and integers from -{MAX_INTEGER} to {MAX_INTEGER} only"
        ),
    }
}

fn num_items(value: &Value) -> usize {
    match value {
        Value::Integer(_) => 0,
        Value::List(list) => list.len(),
        Value::Text(text) => text.len(),
        Value::Spans(spans) => spans.len(),
    }
}

/// A program and an input of which every step makes something.
fn draw_pair(size: &Size, draw: &mut Draw) -> Option<(Program, Value, Value)> {
    let kind = draw.choose(&Kind::INPUTS);
    let tries = inputs(kind, size.num_tries, draw);
    (0..MAX_PROGRAMS).find_map(|_| {
        let program = Program::draw(kind, size.num_steps, draw);
        let witness = kind.draw(draw);
        let output = program.run(&witness)?;
        let is_answer = |input: &Value| program.run(input).as_ref() == Some(&output);
        let is_hard = num_items(&output) >= size.min_items
            && !is_answer(&output)
            && program.needs_every_step(std::slice::from_ref(&witness))
            && !tries.iter().any(is_answer);
        is_hard.then_some((program, witness, output))
    })
}

impl TaskFamily for InvertProgram {
    fn name(&self) -> &'static str {
        "invert_program"
    }

    fn summary(&self) -> &'static str {
        "find an input for which a program gives a certain output"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn domain(&self) -> Domain {
        Domain::Programming
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (program, witness, output) = draw_pair(&size(level), draw)?;
        let values = program.trace(&witness)?;
        let backwards: Vec<String> = values.iter().rev().map(Value::shown).collect();
        let shown = witness.shown();
        let question = format!(
            "This Python function takes {}:\n{}\nFind an input x with {}, for which it returns {}. Any such input is right. Write it as \\boxed{{x}}.",
            program.input.noun(),
            program.python(),
            allowed(program.input),
            output.shown(),
        );
        Some(Instance {
            canonical: format!("{} -> {}", program.canonical(), output.json()),
            question,
            solution: format!(
                "Backwards, step by step: {}. So \\boxed{{{shown}}}",
                backwards.join(" from ")
            ),
            gold: sealed(&Gold { program, output }),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let gold: Gold = unsealed(gold);
        let answer = committed(completion);
        let input = answer.and_then(|answer| gold.program.input.parse(answer));
        let is_right = input.is_some_and(|input| gold.program.run(&input) == Some(gold.output));
        Verdict::exact(is_right, answer.map(str::to_string))
    }

    /// A random input of the kind that the program takes.
    fn random_answer(&self, _level: u32, question: &str, draw: &mut Draw) -> String {
        let kind = Kind::asked_in(question).unwrap_or(Kind::List);
        format!("\\boxed{{{}}}", kind.draw(draw).shown())
    }

    /// The output itself.
    fn greedy_answer(&self, question: &str) -> String {
        let asked = question
            .rsplit_once("it returns ")
            .map_or("", |(_, rest)| rest);
        let output = asked.split_once(". Any").map_or("", |(output, _)| output);
        format!("\\boxed{{{output}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programming::steps::Step;

    /// A gold of a program that reads `steps`, as JSON, and the output for `input`.
    fn gold(kind: Kind, steps: &str, input: &str) -> String {
        let steps: Vec<Step> = serde_json::from_str(steps).expect("steps");
        let program = Program { input: kind, steps };
        let output = program
            .run(&kind.parse(input).expect("an input"))
            .expect("an output");
        sealed(&Gold { program, output })
    }

    fn reward(gold: &str, completion: &str) -> Option<f64> {
        InvertProgram.grade(gold, completion).reward()
    }

    #[test]
    fn any_input_with_the_output_is_right() {
        let keeps_even = gold(
            Kind::List,
            r#"[{"List": {"Keep": "Even"}}, {"List": "SortUp"}]"#,
            "[4, 2, 6]",
        );
        for right in ["[2, 4, 6]", "[6,4,1,2]", "[6, 3, 4, 5, 2, 7]", "[ 2,4,6 ]"] {
            let completion = format!("\\boxed{{{right}}}");
            assert_eq!(reward(&keeps_even, &completion), Some(1.0), "{right}");
        }
        for wrong in [
            "[2, 4]",
            "[2, 4, 6, 6]",
            "[2, 4, 6.0]",
            "2, 4, 6",
            "[2, 4, 6",
            "[[2, 4], [6, 7]]",
            "null",
            "[2, 4, 6, 51]",
            "[2,4,6,1,1,1,1,1,1,1,1]",
            "x",
        ] {
            let completion = format!("\\boxed{{{wrong}}}");
            assert_eq!(reward(&keeps_even, &completion), Some(0.0), "{wrong}");
        }
        assert_eq!(reward(&keeps_even, "[2, 4, 6]"), Some(0.0), "no box");
        let merges = gold(Kind::Spans, r#"[{"Spans": "Merge"}]"#, "[[1, 4], [3, 9]]");
        assert_eq!(reward(&merges, "\\boxed{[[5, 9], [1, 5]]}"), Some(1.0));
        assert_eq!(reward(&merges, "\\boxed{[[6, 9], [1, 5]]}"), Some(0.0));
        let sorts = gold(Kind::Text, r#"[{"Text": "SortUp"}]"#, "bca");
        for right in ["cab", "\"cab\"", "'acb'"] {
            let completion = format!("\\boxed{{{right}}}");
            assert_eq!(reward(&sorts, &completion), Some(1.0), "{right}");
        }
        assert_eq!(reward(&sorts, "\\boxed{abcd}"), Some(0.0));
    }

    #[test]
    fn an_input_that_makes_too_large_a_value_is_wrong() {
        let steps = format!("[{}]", [r#"{"Text": "AppendReverse"}"#; 8].join(", "));
        let grows = gold(Kind::Text, &steps, "a");
        assert_eq!(reward(&grows, "\\boxed{a}"), Some(1.0));
        assert_eq!(reward(&grows, "\\boxed{abcdefghij}"), Some(0.0));
    }
}
