//! Find a regular expression from strings that it matches and strings that it doesn't.
//!
//! The question says what the hidden pattern is made of. Its examples tell it from every drawn rival: neighbours that
//! differ in one place and random patterns of the same shape. An answer is right iff it agrees with the
//! hidden pattern on every string of up to six letters, so any way of writing it is right.
//! The `regex` crate matches in linear time; answers are bounded in length and in the size of their automaton.

use std::ops::RangeInclusive;
use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder};

use crate::committed::committed;
use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::programming::pattern::{MAX_LETTERS, Piece, all_strings, matches, shape, text};
use crate::verdict::Verdict;

/// Longest answer, in characters.
const MAX_CHARS: usize = 60;
/// Characters of answers.
const SYNTAX: &str = "abc[]^-()|*+?{},0123456789.";
/// Bytes of an automaton; more is no answer.
const MAX_AUTOMATON: usize = 1 << 20;
/// Strings matched and not matched that are shown at first.
const NUM_FIRST: usize = 4;
/// Most strings shown.
const MAX_SHOWN: usize = 36;
/// Fewest strings that the hidden pattern matches: fewer could be listed.
const MIN_MATCHED: usize = 12;
/// Random rivals.
const NUM_RIVALS: usize = 150;

/// The family.
pub(crate) struct RegexSynthesis;

fn strings() -> &'static [String] {
    static STRINGS: OnceLock<Vec<String>> = OnceLock::new();
    STRINGS.get_or_init(all_strings)
}

/// An expression that matches whole strings; `None` where it is none, or too large.
fn compiled(expression: &str) -> Option<Regex> {
    let is_plain = expression.chars().all(|c| SYNTAX.contains(c));
    if !is_plain || expression.len() > MAX_CHARS {
        return None;
    }
    let build = |pattern: &str| {
        let mut builder = RegexBuilder::new(pattern);
        builder
            .unicode(false)
            .size_limit(MAX_AUTOMATON)
            .nest_limit(30);
        builder.build().ok()
    };
    // Alone first, so that a parenthesis too many can't close the one around it.
    build(expression)?;
    build(&format!("^(?:{expression})$"))
}

/// Indices into [`strings`] of the examples, or `None` where they would be too many.
fn draw_examples(
    pattern: &[Piece],
    rivals: &[Vec<Piece>],
    draw: &mut Draw,
) -> Option<(Vec<usize>, Vec<usize>)> {
    let is_matched: Vec<bool> = strings().iter().map(|s| matches(pattern, s)).collect();
    let of = |wanted: bool| -> Vec<usize> {
        (0..is_matched.len())
            .filter(|&i| is_matched[i] == wanted)
            .collect()
    };
    let (matched, others) = (of(true), of(false));
    if matched.len() < MIN_MATCHED || others.len() < MIN_MATCHED {
        return None;
    }
    let mut shown: Vec<usize> = Vec::new();
    for side in [&matched, &others] {
        for _ in 0..NUM_FIRST {
            // Of two the one that comes first is shorter.
            shown.push(draw.choose(side).min(draw.choose(side)));
        }
    }
    // Where rivals are looked for: the strings that match first, from a random place on.
    let mut order = matched.clone();
    order.rotate_left(draw.index(matched.len()));
    let mut rest = others;
    let from = draw.index(rest.len());
    rest.rotate_left(from);
    order.extend(rest);
    for rival in rivals {
        let differs = |&&at: &&usize| matches(rival, &strings()[at]) != is_matched[at];
        if !shown.iter().any(|at| differs(&at)) {
            shown.extend(order.iter().find(differs));
        }
    }
    shown.sort_unstable();
    shown.dedup();
    let (positive, negative): (Vec<usize>, Vec<usize>) =
        shown.iter().partition(|&&at| is_matched[at]);
    // The examples alone, listed, must not be an answer.
    let is_fair = shown.len() <= MAX_SHOWN && positive.len() * 2 <= matched.len();
    is_fair.then_some((positive, negative))
}

/// No piece can be left out.
fn is_reduced(pattern: &[Piece]) -> bool {
    (0..pattern.len()).all(|left_out| {
        let mut shorter = pattern.to_vec();
        shorter.remove(left_out);
        strings()
            .iter()
            .any(|s| matches(&shorter, s) != matches(pattern, s))
    })
}

fn listed(examples: &[usize]) -> String {
    let quoted = examples.iter().map(|&at| format!("\"{}\"", strings()[at]));
    quoted.collect::<Vec<_>>().join(", ")
}

impl TaskFamily for RegexSynthesis {
    fn name(&self) -> &'static str {
        "regex_synthesis"
    }

    fn summary(&self) -> &'static str {
        "find a regular expression from examples"
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
        let shape = shape(level);
        let pattern = shape.draw(draw);
        if !is_reduced(&pattern) {
            return None;
        }
        let mut rivals = shape.neighbours(&pattern, draw);
        rivals.extend((0..NUM_RIVALS).map(|_| shape.draw(draw)));
        let (positive, negative) = draw_examples(&pattern, &rivals, draw)?;
        let hidden = text(&pattern);
        let question = format!(
            "A hidden regular expression over the letters a, b and c consists of {}. It must match the whole string.\nIt matches: {}\nIt doesn't match: {}\nFind a regular expression that agrees with it on every string of up to {MAX_LETTERS} letters a, b, c. Syntax: letters, [ab], [a-c], [^ab], ., (ab), (a|b), *, +, ?, {{m}}, {{m,n}}; no spaces, at most {MAX_CHARS} characters. Write it as \\boxed{{expression}}.",
            shape.prose(),
            listed(&positive),
            listed(&negative),
        );
        Some(Instance {
            canonical: hidden.clone(),
            question,
            solution: format!(
                "Pieces in order: {}. So \\boxed{{{hidden}}}",
                pattern
                    .iter()
                    .map(|piece| text(std::slice::from_ref(piece)))
                    .collect::<Vec<_>>()
                    .join(" then ")
            ),
            gold: hidden,
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let answer = committed(completion);
        let hidden = compiled(gold).expect("the family's own patterns are small");
        let agrees = |found: Regex| {
            let same = |s: &String| found.is_match(s.as_bytes()) == hidden.is_match(s.as_bytes());
            strings().iter().all(same)
        };
        let is_right = answer.and_then(compiled).is_some_and(agrees);
        Verdict::exact(is_right, answer.map(str::to_string))
    }

    /// A random pattern of the level's shape.
    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        format!("\\boxed{{{}}}", text(&shape(level).draw(draw)))
    }

    /// The strings that match, listed, as many as the length allows.
    fn greedy_answer(&self, question: &str) -> String {
        let shown = question
            .split_once("It matches: ")
            .map_or("", |(_, rest)| rest);
        let mut listed = String::new();
        for example in shown.lines().next().unwrap_or("").split(", ") {
            let example = example.trim_matches('"');
            if listed.len() + example.len() < MAX_CHARS {
                listed = if listed.is_empty() {
                    example.to_string()
                } else {
                    format!("{listed}|{example}")
                };
            }
        }
        format!("\\boxed{{{listed}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Purpose;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    fn reward(gold: &str, expression: &str) -> Option<f64> {
        let completion = format!("\\boxed{{{expression}}}");
        RegexSynthesis.grade(gold, &completion).reward()
    }

    #[test]
    fn any_way_of_writing_the_language_is_right() {
        for right in [
            "a+[bc]?",
            "aa*(b|c)?",
            "a{1,}[^a]?",
            "(a|aa)+(b|c|)",
            "^a+[bc]?",
            "a+(|[b-c])",
        ] {
            assert_eq!(reward("a+[bc]?", right), Some(1.0), "{right}");
        }
        for wrong in [
            "a*[bc]?",
            "a+[bc]",
            "a+b?",
            "a+[bc]*",
            "a+",
            "",
            "a+[bc]?)|(a",
            "a+[bc",
            "(?:a+[bc]?)",
            "a+ [bc]?",
            "a+[bc]?|b{0}",
            "\\w+",
            "a++[bc]?|(?i)",
            "a{1,6}{1,6}{1,6}{1,6}{1,6}{1,6}{1,6}{1,6}{1,6}{1,6}b",
        ] {
            assert_eq!(reward("a+[bc]?", wrong), Some(0.0), "{wrong}");
        }
    }

    #[test]
    fn two_matchers_agree_on_every_string_and_examples_are_what_they_are_said_to_be() {
        for level in RegexSynthesis.levels() {
            for seed in 0..20 {
                let key = FamilyKey {
                    family: Family::RegexSynthesis,
                    split: Split::Train,
                    level,
                    seed,
                };
                let mut draw = Draw::new(Purpose::Baseline, &key, 0);
                let pattern = shape(level).draw(&mut draw);
                let regex = compiled(&text(&pattern)).expect("small");
                for string in strings() {
                    let found = regex.is_match(string.as_bytes());
                    assert_eq!(
                        found,
                        matches(&pattern, string),
                        "{} {string}",
                        text(&pattern)
                    );
                }
                let task = Family::task(&key);
                let hidden = compiled(&task.gold).expect("small");
                for (mark, is_matched) in [("It matches: ", true), ("It doesn't match: ", false)] {
                    let (_, rest) = task.question.split_once(mark).expect("examples");
                    let line = rest.lines().next().expect("a line");
                    for example in line.split(", ") {
                        let example = example.trim_matches('"');
                        assert_eq!(hidden.is_match(example.as_bytes()), is_matched, "{task:?}");
                    }
                }
            }
        }
    }
}
