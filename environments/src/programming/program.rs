//! Programs of the small language: steps one after the other.
//!
//! y = step_L(... step_2(step_1(x)))

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::programming::steps::Step;
use crate::programming::value::{Kind, Value};

/// Longest value that a program may make, in bytes of JSON.
const MAX_BYTES: usize = 600;
/// Largest absolute value of a number on the way.
const MAX_INTEGER: i64 = 1_000_000;

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Program {
    /// What it takes.
    pub(crate) input: Kind,
    /// In order; each takes the result of the one before.
    pub(crate) steps: Vec<Step>,
}

impl Program {
    /// A random program of `num_steps` steps; an integer can only be its last result.
    pub(crate) fn draw(input: Kind, num_steps: usize, draw: &mut Draw) -> Program {
        let mut kind = input;
        let mut steps = Vec::with_capacity(num_steps);
        while steps.len() < num_steps {
            let step = Step::draw(kind, draw);
            let is_last = steps.len() + 1 == num_steps;
            match step.result(kind) {
                Some(Kind::Integer) if !is_last => {}
                Some(result) => {
                    kind = result;
                    steps.push(step);
                }
                None => {}
            }
        }
        Program { input, steps }
    }

    /// What it takes, what each step makes, up to the result; `None` where a step takes no such input.
    pub(crate) fn kinds(&self) -> Option<Vec<Kind>> {
        let mut kinds = vec![self.input];
        for step in &self.steps {
            kinds.push(step.result(*kinds.last()?)?);
        }
        Some(kinds)
    }

    /// What it makes of `input`; `None` where its steps don't fit each other or a value grows too large.
    pub(crate) fn run(&self, input: &Value) -> Option<Value> {
        self.trace(input)?.pop()
    }

    /// The input and what each step makes; `None` as in [`run`](Program::run).
    pub(crate) fn trace(&self, input: &Value) -> Option<Vec<Value>> {
        let mut values = vec![input.clone()];
        for step in &self.steps {
            let value = values.last()?;
            step.result(value.kind())?;
            let value = step.apply(value);
            if !is_small(&value) {
                return None;
            }
            values.push(value);
        }
        Some(values)
    }

    /// Results of all `inputs`.
    pub(crate) fn run_all(&self, inputs: &[Value]) -> Option<Vec<Value>> {
        inputs.iter().map(|input| self.run(input)).collect()
    }

    /// Leaving out any one step changes a result on `inputs`, or what kind of value there is.
    pub(crate) fn needs_every_step(&self, inputs: &[Value]) -> bool {
        let results = self.run_all(inputs);
        (0..self.steps.len()).all(|left_out| {
            let mut shorter = self.clone();
            shorter.steps.remove(left_out);
            shorter.run_all(inputs) != results
        })
    }

    /// The steps in words, numbered.
    pub(crate) fn prose(&self) -> String {
        let kinds = self.kinds().unwrap_or_default();
        let lines = self.steps.iter().zip(kinds).enumerate();
        let lines = lines.map(|(i, (step, kind))| format!("{}. {}", i + 1, step.prose(kind)));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// A Python function `solve(x)`.
    pub(crate) fn python(&self) -> String {
        let mut lines = vec!["def solve(x):".to_string()];
        for step in &self.steps {
            lines.extend(step.python().lines().map(|line| format!("    {line}")));
        }
        lines.push("    return x".to_string());
        lines.join("\n")
    }

    /// What tells it from other programs.
    pub(crate) fn canonical(&self) -> String {
        format!("{:?} {:?}", self.input, self.steps)
    }
}

/// It can be shown, and no further step makes an integer of it that overflows.
fn is_small(value: &Value) -> bool {
    let fits = |number: &i64| number.abs() <= MAX_INTEGER;
    let are_small = match value {
        Value::Integer(integer) => fits(integer),
        Value::List(list) => list.iter().all(fits),
        Value::Spans(spans) => spans.iter().all(|(lo, hi)| fits(lo) && fits(hi)),
        Value::Text(_) => true,
    };
    are_small && value.json().len() <= MAX_BYTES
}

/// `num` random inputs of `kind`, the empty one among them.
pub(crate) fn inputs(kind: Kind, num: usize, draw: &mut Draw) -> Vec<Value> {
    let empty = match kind {
        Kind::Integer => Value::Integer(0),
        Kind::List => Value::List(Vec::new()),
        Kind::Text => Value::Text(String::new()),
        Kind::Spans => Value::Spans(Vec::new()),
    };
    let mut inputs: Vec<Value> = (1..num).map(|_| kind.draw(draw)).collect();
    inputs.push(empty);
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Purpose;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    #[test]
    fn drawn_programs_run_and_end_in_the_kind_they_say() {
        let key = FamilyKey {
            family: Family::Sums,
            split: Split::Train,
            level: 1,
            seed: 0,
        };
        for seed in 0..500 {
            let mut draw = Draw::new(Purpose::Instance, &key, seed);
            let kind = draw.choose(&Kind::INPUTS);
            let program = Program::draw(kind, 1 + seed as usize % 6, &mut draw);
            let kinds = program.kinds().expect("steps fit each other");
            for input in inputs(kind, 4, &mut draw) {
                if let Some(result) = program.run(&input) {
                    assert_eq!(Some(result.kind()), kinds.last().copied());
                }
            }
        }
    }
}
