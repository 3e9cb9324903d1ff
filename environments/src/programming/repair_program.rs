//! Correct a function: a program of the small language in which some lines were changed, told in words, with an
//! input on which it fails.
//!
//! A changed line stands for another step that reads much like the right one, such as `v >= 3` for `v > 3`; correcting
//! all changes but one is not enough on the hidden inputs. As many lines may be changed as are wrong, so that
//! the program has to be read and can't be written anew.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::draw::{Draw, Purpose};
use crate::family::Family;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::programming::code_block::{FORM, block, last_block};
use crate::programming::compose_function::{self, draw_program, sealed, unsealed};
use crate::programming::judge;
use crate::programming::program::Program;
use crate::programming::steps::Step;
use crate::programming::value::Kind;
use crate::task::{FamilyKey, Split};
use crate::verdict::Verdict;

/// Hidden inputs.
const NUM_INPUTS: usize = 24;
/// Each change alone shows on at least one input in this many.
const SHOWS_EVERY: usize = 12;
/// Most characters to change, insert or remove between a right line and a wrong one.
const MAX_EDITS: usize = 6;

/// The family.
pub(crate) struct RepairProgram;

/// What a task is checked with.
#[derive(Serialize, Deserialize)]
pub(super) struct Gold {
    pub(super) right: compose_function::Gold,
    pub(super) wrong: Program,
    pub(super) num_wrong: usize,
}

/// Steps, and how many of them are wrong.
fn size(level: u32) -> (usize, usize) {
    match level {
        1 => (2, 1),
        2 => (4, 1),
        3 => (4, 2),
        4 => (7, 2),
        _ => (8, 3),
    }
}

/// Every step of an input of `kind` that is ever drawn, with its Python.
pub(super) fn catalogue(kind: Kind) -> &'static [(Step, String)] {
    static STEPS: OnceLock<[Vec<(Step, String)>; 3]> = OnceLock::new();
    let all = STEPS.get_or_init(|| {
        Kind::INPUTS.map(|kind| {
            let key = FamilyKey {
                family: Family::RepairProgram,
                split: Split::Train,
                level: 1,
                seed: 0,
            };
            let mut draw = Draw::new(Purpose::Baseline, &key, u32::MAX);
            let mut seen = std::collections::HashSet::new();
            (0..20_000)
                .map(|_| Step::draw(kind, &mut draw))
                .filter(|step| seen.insert(*step))
                .map(|step| (step, step.python()))
                .collect()
        })
    });
    match kind {
        Kind::Text => &all[1],
        Kind::Spans => &all[2],
        Kind::Integer | Kind::List => &all[0],
    }
}

/// The steps that read much like `step` and make the same kind of value.
pub(super) fn lookalikes(step: &Step, kind: Kind) -> Vec<Step> {
    let text = step.python();
    let is_like = |(other, other_text): &&(Step, String)| {
        let pairs = || text.lines().zip(other_text.lines());
        other.result(kind) == step.result(kind)
            && text.len().abs_diff(other_text.len()) <= MAX_EDITS
            && text.lines().count() == other_text.lines().count()
            && pairs().filter(|(a, b)| a != b).count() == 1
            && pairs().all(|(a, b)| edits(a, b) <= MAX_EDITS)
    };
    let like = catalogue(kind).iter().filter(is_like);
    like.map(|(step, _)| *step).collect()
}

/// Fewest characters to change, insert or remove between two lines.
fn edits(from: &str, to: &str) -> usize {
    if from.len().abs_diff(to.len()) > MAX_EDITS {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// The program with `num_wrong` steps replaced, each of which shows alone.
fn spoiled(right: &compose_function::Gold, num_wrong: usize, draw: &mut Draw) -> Option<Program> {
    let kinds = right.program.kinds()?;
    let expected = right.expected();
    let mut places: Vec<usize> = (0..right.program.steps.len()).collect();
    let mut wrong = right.program.clone();
    for _ in 0..num_wrong {
        let at = places.swap_remove(draw.index(places.len()));
        let steps = lookalikes(&right.program.steps[at], kinds[at]);
        if steps.is_empty() {
            return None;
        }
        let step = draw.choose(&steps);
        let mut alone = right.program.clone();
        alone.steps[at] = step;
        let results = alone.run_all(&right.inputs)?;
        let num_shown = results
            .iter()
            .zip(&expected)
            .filter(|(a, b)| a != b)
            .count();
        if num_shown * SHOWS_EVERY < right.inputs.len() {
            return None;
        }
        wrong.steps[at] = step;
    }
    Some(wrong)
}

/// What counts of a program: its lines without those that are blank or only a comment.
fn lines(code: &str) -> Vec<&str> {
    let counts = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    code.lines().map(str::trim_end).filter(counts).collect()
}

/// How many lines differ; `None` where there are more or fewer.
fn num_changed(shown: &str, answer: &str) -> Option<usize> {
    let (shown, answer) = (lines(shown), lines(answer));
    let num_changed = shown.iter().zip(&answer).filter(|(a, b)| a != b).count();
    (shown.len() == answer.len()).then_some(num_changed)
}

fn some_lines(num: usize) -> String {
    if num == 1 {
        "one line".to_string()
    } else {
        format!("{num} lines")
    }
}

/// The function that a question shows.
fn shown_code(question: &str) -> &str {
    let start = question.find("def solve(x):").unwrap_or(0);
    let rest = &question[start..];
    let end = rest
        .find("return x\n")
        .map_or(rest.len(), |at| at + "return x".len());
    &rest[..end]
}

impl TaskFamily for RepairProgram {
    fn name(&self) -> &'static str {
        "repair_program"
    }

    fn summary(&self) -> &'static str {
        "correct a Python function in which lines are wrong"
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
        let (num_steps, num_wrong) = size(level);
        let right = draw_program(num_steps, NUM_INPUTS, draw)?;
        let wrong = spoiled(&right, num_wrong, draw)?;
        let failing = right.inputs.iter().find_map(|input| {
            let (got, wanted) = (wrong.run(input)?, right.program.run(input)?);
            (got != wanted).then_some((input.shown(), got.shown(), wanted.shown()))
        });
        let (input, got, wanted) = failing?;
        let some = some_lines(num_wrong);
        let question = format!(
            "A Python function solve(x) that {} should do the following in order:\n{}\nBut {some} of it are wrong:\n{}\nFor example, solve({input}) returns {got} and should return {wanted}.\nCorrect it by changing at most {some}: none may be added, removed or moved (blank lines and lines with nothing but a comment don't count). {FORM} {}",
            right.signature(),
            right.program.prose(),
            wrong.python(),
            judge::rules(),
        );
        let code = right.program.python();
        let shown = wrong.python();
        let changed = code.lines().zip(shown.lines()).filter(|(a, b)| a != b);
        let changed: Vec<String> = changed
            .map(|(a, b)| format!("`{}` must be `{}`", b.trim(), a.trim()))
            .collect();
        Some(Instance {
            canonical: format!("{} / {}", right.program.canonical(), wrong.canonical()),
            question,
            solution: format!("{}:\n{}", changed.join(", "), block(&code)),
            gold: sealed(&Gold {
                right,
                wrong,
                num_wrong,
            }),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let gold: Gold = unsealed(gold);
        let Some(code) = last_block(completion) else {
            return Verdict::exact(false, None);
        };
        match num_changed(&gold.wrong.python(), code) {
            Some(num_changed) if num_changed <= gold.num_wrong => {
                judge::grade_code(code, &gold.right.inputs, &gold.right.expected())
            }
            _ => Verdict::Graded {
                reward: 0.0,
                extracted: Some(code.to_string()),
                parts: BTreeMap::from([("too_many_changes".to_string(), 1.0)]),
                tamper: Vec::new(),
            },
        }
    }

    /// The shown function with one of its numbers changed by a little, or as it is where it has none.
    fn random_answer(&self, _level: u32, question: &str, draw: &mut Draw) -> String {
        let code = shown_code(question);
        let is_digit = |at: &usize| code.as_bytes()[*at].is_ascii_digit();
        let digits: Vec<usize> = (0..code.len()).filter(is_digit).collect();
        let mut changed = code.to_string();
        if !digits.is_empty() {
            let at = draw.choose(&digits);
            let digit = draw.between(0..=9).to_string();
            changed.replace_range(at..=at, &digit);
        }
        block(&changed)
    }

    /// The function as it is shown.
    fn greedy_answer(&self, question: &str) -> String {
        block(shown_code(question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_comments_are_not() {
        let shown = "def solve(x):\n    x = x[1:]\n    return x";
        for (answer, num) in [
            (shown.to_string(), Some(0)),
            (format!("# why\n{shown}\n\n"), Some(0)),
            (shown.replace("1:", "2:"), Some(1)),
            (shown.replace("    x =", "    # first\n    x ="), Some(0)),
            (shown.replace("    x =", "    pass\n    x ="), None),
            (shown.replace("    x = x[1:]\n", ""), None),
            (shown.replace("    ", "  "), Some(2)),
            (String::new(), None),
        ] {
            assert_eq!(num_changed(shown, &answer), num, "{answer}");
        }
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("v > 3", "v >= 3"), 1);
        assert_eq!(edits("v > 3", "v > 4"), 1);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "ab"), 2);
    }

    #[test]
    fn one_wrong_line_left_is_found_and_more_changes_are_refused() {
        if !crate::sandboxed::tests::has_sandbox() {
            return;
        }
        for seed in 0..4 {
            let key = FamilyKey {
                family: Family::RepairProgram,
                split: Split::Train,
                level: 3,
                seed,
            };
            let task = Family::task(&key);
            let gold: Gold = unsealed(&task.gold);
            let reward = |code: &str| task.verify(&block(code)).reward();
            assert_eq!(reward(&gold.wrong.python()), Some(0.0));
            let right = gold.right.program.python();
            assert_eq!(reward(&right), Some(1.0));
            assert_eq!(reward(&format!("# mended\n{right}\n")), Some(1.0));
            assert_eq!(
                reward(
                    &right
                        .replace("(x)", "(x, y=0)")
                        .replace("return x", "return (x)")
                ),
                Some(0.0)
            );
            for at in 0..gold.wrong.steps.len() {
                let mut half = gold.right.program.clone();
                if half.steps[at] != gold.wrong.steps[at] {
                    half.steps[at] = gold.wrong.steps[at];
                    assert_eq!(reward(&half.python()), Some(0.0), "{task:?}");
                }
            }
        }
    }
}
