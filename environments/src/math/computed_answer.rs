//! Questions whose answer takes a computation that nobody does by hand, with the code interpreter at hand. One integer.
//!
//! Five kinds, drawn equally often: counting numbers with given properties, running a stated process for many steps, chains
//! of digests, cheapest paths through a grid, and the cycle that an iteration falls into. Work, the measured quantity of the
//! levels, is the number of elementary steps of the reference solution in Rust; each kind's file says what a step is. Up to
//! level 4 the obvious loop is fast enough; at level 5 counting, simulating and iterating take a better idea.
//!
//! Any way to the answer is right: the tool is there and need not be called.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{boxed, grade_list, last_number};
use crate::draw::Draw;
use crate::echo::without_question;
use crate::instance::{Instance, TaskFamily};
use crate::interpreter::{self, Interpreter, InterpreterSession};
use crate::session::Session;
use crate::tool::{ToolCall, ToolDef};
use crate::verdict::{Fault, FaultKind, Verdict};

mod count;
mod cycle;
mod digest;
mod grid;
mod sha256;
mod simulate;

use count::Count;
use cycle::Cycle;
use digest::Digest;
use grid::Grid;
use simulate::Simulate;

/// The family.
pub(crate) struct ComputedAnswer;

/// How every question ends.
const FORM: &str = "Give the answer, one integer, as \\boxed{integer}.";

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Problem {
    Count(Count),
    Simulate(Simulate),
    Digest(Digest),
    Grid(Grid),
    Cycle(Cycle),
}

/// The answer and the steps that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Solved {
    answer: i64,
    work: u64,
}

/// What a session is made of.
#[derive(Serialize, Deserialize)]
struct Gold {
    problem: Problem,
    answer: i64,
    work: u64,
}

impl Gold {
    fn read(gold: &str) -> Result<Gold, serde_json::Error> {
        serde_json::from_str(gold)
    }

    fn grade(&self, completion: &str) -> Verdict {
        let answer = without_question(completion, &self.problem.question());
        grade_list(&answer, |numbers| numbers == [self.answer])
    }
}

impl Problem {
    fn draw(kind: usize, level: u32, draw: &mut Draw) -> Option<Problem> {
        Some(match kind {
            0 => Problem::Count(Count::draw(level, draw)),
            1 => Problem::Simulate(Simulate::draw(level, draw)),
            2 => Problem::Digest(Digest::draw(level, draw)),
            3 => Problem::Grid(Grid::draw(level, draw)),
            _ => Problem::Cycle(Cycle::draw(level, draw)),
        })
    }

    /// `None` where it would take far more steps than its level should.
    fn solve(&self) -> Option<Solved> {
        match self {
            Problem::Count(count) => Some(count.solve()),
            Problem::Simulate(simulate) => simulate.solve(),
            Problem::Digest(digest) => digest.solve(),
            Problem::Grid(grid) => Some(grid.solve()),
            Problem::Cycle(cycle) => cycle.solve(),
        }
    }

    fn asked(&self) -> String {
        match self {
            Problem::Count(count) => count.asked(),
            Problem::Simulate(simulate) => simulate.asked(),
            Problem::Digest(digest) => digest.asked(),
            Problem::Grid(grid) => grid.asked(),
            Problem::Cycle(cycle) => cycle.asked(),
        }
    }

    fn question(&self) -> String {
        format!("{} {FORM}", self.asked())
    }

    /// Two cells: definitions, and the line whose value is the answer.
    fn cells(&self) -> [String; 2] {
        match self {
            Problem::Count(count) => count.cells(),
            Problem::Simulate(simulate) => simulate.cells(),
            Problem::Digest(digest) => digest.cells(),
            Problem::Grid(grid) => grid.cells(),
            Problem::Cycle(cycle) => cycle.cells(),
        }
    }

    /// Where a blind guess lies.
    fn range(&self) -> RangeInclusive<i64> {
        match self {
            Problem::Count(count) => 0..=count.largest(),
            Problem::Simulate(simulate) => 0..=simulate.largest(),
            Problem::Digest(digest) => 0..=digest.largest(),
            Problem::Grid(grid) => grid.range(),
            Problem::Cycle(cycle) => 0..=cycle.largest(),
        }
    }
}

/// Kinds of problems.
const NUM_KINDS: usize = 5;

impl TaskFamily for ComputedAnswer {
    fn summary(&self) -> &'static str {
        "numbers that take a computation, by Python cells"
    }

    fn name(&self) -> &'static str {
        "computed_answer"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn needs_sandbox(&self) -> bool {
        true
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn tools(&self, _level: u32) -> Vec<ToolDef> {
        vec![interpreter::tool(&interpreter::limits())]
    }

    fn open(&self, _level: u32, gold: &str) -> Result<Option<Box<dyn Session>>, Fault> {
        let gold = Gold::read(gold)
            .map_err(|error| Fault::new(FaultKind::Grader, format!("no problem: {error}")))?;
        let interpreter = Interpreter::new(interpreter::limits(), Vec::new())?;
        let session = InterpreterSession::new(interpreter, move |answer| gold.grade(answer));
        Ok(Some(Box::new(session)))
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let problem = Problem::draw(draw.index(NUM_KINDS), level, draw)?;
        let Solved { answer, work } = problem.solve()?;
        let witness = problem.cells().into_iter().zip(1..).map(|(code, number)| {
            vec![ToolCall {
                id: format!("call_{number}"),
                name: interpreter::TOOL.to_string(),
                arguments: json!({ "code": code }).to_string(),
            }]
        });
        Some(Instance {
            canonical: serde_json::to_string(&problem).ok()?,
            system: None,
            question: problem.question(),
            witness: witness.collect(),
            solution: boxed(&[answer]),
            gold: serde_json::to_string(&Gold {
                problem,
                answer,
                work,
            })
            .ok()?,
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        match Gold::read(gold) {
            Ok(gold) => gold.grade(completion),
            Err(error) => Verdict::invalid(FaultKind::Grader, format!("no problem: {error}")),
        }
    }

    /// A random integer of the range that answers to such a question lie in.
    fn random_answer(&self, level: u32, question: &str, draw: &mut Draw) -> String {
        let kinds = ["How many", "Let x", "Let s", "The cell", "Let z"];
        let kind = kinds.iter().position(|begin| question.starts_with(begin));
        // Of the same kind and level, which decide the range.
        let other = kind.and_then(|kind| Problem::draw(kind, level, draw));
        let range = other.map_or(0..=1000, |other| other.range());
        boxed(&[draw.between(range)])
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}

#[cfg(test)]
mod tests;
