//! Countdown: combine given numbers with + - * / to reach a target.
//!
//! Each number must be used exactly once; fractions on the way are allowed; any expression that
//! reaches the target earns 1. The target is never the sum of all numbers, which would be the one
//! shortcut worth learning, nor one of the numbers. The answer is the last run of expression characters (digits, + - * /
//! ( ) =, spaces, and the signs U+00D7, U+00F7, U+2212) that has a digit in it. It is an expression,
//! or an expression `=` the target; a second `=` or a wrong right side earns nothing.

use std::ops::RangeInclusive;

use crate::arithmetic::expression::{Fraction, evaluate};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily, canonical};
use crate::integer_answer::integers;
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Countdown;

const OPERATORS: [char; 4] = ['+', '-', '*', '/'];
/// No step of a worked solution goes above this.
const LARGEST_STEP: i64 = 1000;
/// A difference is possible in one of the two orders, so this many draws all but always find one.
const MAX_OPERATOR_DRAWS: u32 = 32;

/// How many numbers, the largest of them, the largest target, and the operators of the solution.
fn size(level: u32) -> (usize, i64, i64, &'static [char]) {
    match level {
        1 => (3, 10, 30, &OPERATORS[..2]),
        2 => (3, 10, 100, &OPERATORS),
        3 => (4, 25, 100, &OPERATORS),
        4 => (5, 50, 500, &OPERATORS),
        _ => (6, 100, 999, &OPERATORS),
    }
}

/// An expression under construction.
#[derive(Clone, Debug)]
struct Part {
    value: i64,
    text: String,
    /// Operator applied last, or a space for a bare number: decides on parentheses.
    operator: char,
}

impl Part {
    fn number(value: i64) -> Part {
        Part {
            value,
            text: value.to_string(),
            operator: ' ',
        }
    }

    /// `left operator right` with the parentheses it needs; `None` where it leaves the integers from
    /// 0 to [`LARGEST_STEP`].
    fn join(left: &Part, operator: char, right: &Part) -> Option<Part> {
        let value = match operator {
            '+' => left.value + right.value,
            '-' => left.value - right.value,
            '*' => left.value * right.value,
            _ if right.value != 0 && left.value % right.value == 0 => left.value / right.value,
            _ => return None,
        };
        let is_product = matches!(operator, '*' | '/');
        let is_sum = |part: &Part| matches!(part.operator, '+' | '-');
        let left_text = left.in_parentheses(is_product && is_sum(left));
        let right_text = right.in_parentheses(match operator {
            '+' => false,
            '-' => is_sum(right),
            '*' => right.operator != ' ' && right.operator != '*',
            _ => right.operator != ' ',
        });
        (0..=LARGEST_STEP).contains(&value).then(|| Part {
            value,
            text: format!("{left_text} {operator} {right_text}"),
            operator,
        })
    }

    fn in_parentheses(&self, needed: bool) -> String {
        if needed {
            format!("({})", self.text)
        } else {
            self.text.clone()
        }
    }
}

/// Joins `numbers` in random pairs with random operators, drawing again where an operator is not
/// possible in either order; `None` where [`MAX_OPERATOR_DRAWS`] draws did not help.
fn random_expression(numbers: &[i64], operators: &[char], draw: &mut Draw) -> Option<Part> {
    let mut parts: Vec<Part> = numbers.iter().copied().map(Part::number).collect();
    while parts.len() > 1 {
        let left = parts.swap_remove(draw.index(parts.len()));
        let right = parts.swap_remove(draw.index(parts.len()));
        let joined = (0..MAX_OPERATOR_DRAWS).find_map(|_| {
            let operator = draw.choose(operators);
            Part::join(&left, operator, &right).or_else(|| Part::join(&right, operator, &left))
        });
        parts.push(joined?);
    }
    parts.pop()
}

/// The last run of expression characters with a digit in it, in plain operators.
fn last_expression(completion: &str) -> Option<String> {
    let plain: String = completion
        .chars()
        .map(|c| match c {
            '\u{d7}' => '*',
            '\u{f7}' => '/',
            '\u{2212}' => '-',
            c => c,
        })
        .collect();
    let is_foreign = |c: char| !(c.is_ascii_digit() || "+-*/()= ".contains(c));
    plain
        .rsplit(is_foreign)
        .find(|run| run.contains(|c: char| c.is_ascii_digit()))
        .map(|run| run.trim().to_string())
}

/// Whether `answer` uses each of `numbers` once and reaches `target`.
fn reaches(answer: &str, numbers: &[i64], target: i64) -> bool {
    let target = Fraction::integer(target);
    let (expression, states_target) = match answer.split_once('=') {
        Some((expression, right)) => (
            expression,
            evaluate(right).is_some_and(|e| e.value == target),
        ),
        None => (answer, true),
    };
    let Some(mut evaluated) = evaluate(expression) else {
        return false;
    };
    evaluated.numbers.sort_unstable();
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    states_target && evaluated.value == target && evaluated.numbers == numbers
}

impl TaskFamily for Countdown {
    fn name(&self) -> &'static str {
        "countdown"
    }

    fn summary(&self) -> &'static str {
        "reach a target from given numbers by + - * /"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (num_numbers, largest, largest_target, operators) = size(level);
        let numbers: Vec<i64> = (0..num_numbers)
            .map(|_| draw.between(1..=largest))
            .collect();
        let solution = random_expression(&numbers, operators, draw)?;
        let target = solution.value;
        let is_shortcut = numbers.contains(&target) || target == numbers.iter().sum::<i64>();
        if !(1..=largest_target).contains(&target) || is_shortcut {
            return None;
        }
        let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
        let (last, first) = words.split_last()?;
        let first = first.join(", ");
        Some(Instance {
            canonical: canonical(&numbers, target),
            question: format!(
                "Use each of {first} and {last} exactly once with + - * / to make {target}."
            ),
            solution: format!("{} = {target}", solution.text),
            gold: format!("{} {target}", words.join(" ")),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let extracted = last_expression(completion);
        let mut numbers = integers(gold);
        let target = numbers.pop().expect("the gold ends with the target");
        let is_right = extracted
            .as_deref()
            .is_some_and(|answer| reaches(answer, &numbers, target));
        Verdict::exact(is_right, extracted)
    }

    /// Joins the numbers of the question at random; a dead end answers nothing.
    fn random_answer(&self, _level: u32, question: &str, draw: &mut Draw) -> String {
        let mut numbers = integers(question);
        numbers.pop();
        random_expression(&numbers, &OPERATORS, draw).map_or_else(String::new, |part| part.text)
    }

    /// Adds all numbers up but for the smallest, which is subtracted.
    fn greedy_answer(&self, question: &str) -> String {
        let mut numbers = integers(question);
        numbers.pop();
        numbers.sort_unstable();
        let mut words: Vec<String> = numbers.iter().map(i64::to_string).collect();
        let smallest = words.remove(0);
        format!("{} - {smallest}", words.join(" + "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(gold: &str, completion: &str) -> f64 {
        Countdown
            .grade(gold, completion)
            .reward()
            .expect("always graded")
    }

    #[test]
    fn any_expression_that_reaches_the_target_is_right() {
        for completion in [
            "(3 + 5) * 7 = 56",
            "7 * (5 + 3)",
            "7*(3+5)=56.",
            "The answer is (3 + 5) \u{d7} 7 = 56",
            "First 3 + 5 = 8, so:\n1. 7 * (3 + 5) = 56\nDone!",
            "3 + 5 * 7? No: (3 + 5) * 7",
        ] {
            assert_eq!(reward("3 5 7 56", completion), 1.0, "{completion:?}");
        }
        assert_eq!(reward("8 3 8 3 24", "8 / (3 - 8 / 3)"), 1.0);
    }

    #[test]
    fn each_number_is_used_exactly_once() {
        assert_eq!(reward("3 5 7 8", "3 + 5"), 0.0);
        assert_eq!(reward("3 5 7 56", "(3 + 5) * 7 + 3 - 3"), 0.0);
        assert_eq!(reward("3 5 7 56", "56"), 0.0);
        assert_eq!(reward("3 5 7 56", "8 * 7"), 0.0);
        assert_eq!(reward("3 3 6", "3 + 3"), 1.0);
        assert_eq!(reward("3 3 3", "3"), 0.0);
    }

    #[test]
    fn what_the_answer_states_must_hold() {
        for completion in [
            "",
            "(3 + 5) * 7 = 57",
            "(3 + 5) * 7 =",
            "= 56",
            "56 = (3 + 5) * 7",
            "(3 + 5) * 7 = 8 * 7 = 56",
            "3 + 5 * 7 = 56",
            "- (3 + 5) * 7",
            "(3 + 5) * 7 = 56 with 3 numbers",
            "(3 + 5 * 7",
        ] {
            assert_eq!(reward("3 5 7 56", completion), 0.0, "{completion:?}");
        }
    }

    #[test]
    fn parentheses_are_written_where_they_change_the_value() {
        let (two, three, six) = (Part::number(2), Part::number(3), Part::number(6));
        let sum = Part::join(&two, '+', &three).expect("natural");
        let product = Part::join(&two, '*', &three).expect("natural");
        let text = |left: &Part, operator, right: &Part| {
            Part::join(left, operator, right).map(|part| part.text)
        };
        assert_eq!(text(&six, '*', &sum).as_deref(), Some("6 * (2 + 3)"));
        assert_eq!(text(&six, '-', &sum).as_deref(), Some("6 - (2 + 3)"));
        assert_eq!(text(&six, '+', &sum).as_deref(), Some("6 + 2 + 3"));
        assert_eq!(text(&six, '/', &product).as_deref(), Some("6 / (2 * 3)"));
        assert_eq!(text(&sum, '-', &two).as_deref(), Some("2 + 3 - 2"));
        assert_eq!(text(&two, '-', &six), None);
        assert_eq!(text(&two, '/', &six), None);
    }
}
