//! Steps of texts of lower-case letters.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::programming::value::{Kind, Value};

const VOWELS: &str = "aeiou";

/// A step of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum TextStep {
    KeepVowels,
    RemoveVowels,
    KeepAfter(char),
    KeepBefore(char),
    Remove(char),
    Replace(char, char),
    Shift(u8),
    SortUp,
    SortDown,
    FirstOccurrences,
    CollapseRuns,
    DoubleLetters,
    DoubleVowels,
    AppendReverse,
    Numbers,
    Length,
    NumVowels,
    NumDistinct,
}

impl TextStep {
    pub(super) fn draw(draw: &mut Draw) -> TextStep {
        match draw.index(19) {
            0 => TextStep::KeepVowels,
            1 => TextStep::RemoveVowels,
            2 => TextStep::KeepAfter(letter(draw, "cdefgh")),
            3 => TextStep::KeepBefore(letter(draw, "nopqrst")),
            4 => TextStep::Remove(letter(draw, "aeiost")),
            5 | 6 => {
                let from = letter(draw, "aeibost");
                TextStep::Replace(from, letter(draw, "klmnuz"))
            }
            7 | 8 => TextStep::Shift(draw.between(1..=13) as u8),
            9 => TextStep::SortUp,
            10 => TextStep::SortDown,
            11 => TextStep::FirstOccurrences,
            12 => TextStep::CollapseRuns,
            13 => TextStep::DoubleLetters,
            14 => TextStep::DoubleVowels,
            15 => TextStep::AppendReverse,
            16 => TextStep::Numbers,
            17 => TextStep::Length,
            _ => draw.choose(&[TextStep::NumVowels, TextStep::NumDistinct]),
        }
    }

    pub(super) fn result(self) -> Kind {
        match self {
            TextStep::Numbers => Kind::List,
            TextStep::Length | TextStep::NumVowels | TextStep::NumDistinct => Kind::Integer,
            _ => Kind::Text,
        }
    }

    pub(super) fn apply(self, text: &str) -> Value {
        let keep = |f: &dyn Fn(char) -> bool| text.chars().filter(|&c| f(c)).collect::<String>();
        let is_vowel = |c: char| VOWELS.contains(c);
        let distinct = || {
            let mut kept = String::new();
            for c in text.chars() {
                if !kept.contains(c) {
                    kept.push(c);
                }
            }
            kept
        };
        let sorted = || {
            let mut letters: Vec<char> = text.chars().collect();
            letters.sort_unstable();
            letters
        };
        Value::Text(match self {
            TextStep::KeepVowels => keep(&is_vowel),
            TextStep::RemoveVowels => keep(&|c| !is_vowel(c)),
            TextStep::KeepAfter(bound) => keep(&|c| c > bound),
            TextStep::KeepBefore(bound) => keep(&|c| c < bound),
            TextStep::Remove(letter) => keep(&|c| c != letter),
            TextStep::Replace(from, to) => text.replace(from, &to.to_string()),
            TextStep::Shift(by) => text
                .bytes()
                .map(|c| char::from((c - b'a' + by) % 26 + b'a'))
                .collect(),
            TextStep::SortUp => sorted().into_iter().collect(),
            TextStep::SortDown => sorted().into_iter().rev().collect(),
            TextStep::FirstOccurrences => distinct(),
            TextStep::CollapseRuns => {
                let mut letters: Vec<char> = text.chars().collect();
                letters.dedup();
                letters.into_iter().collect()
            }
            TextStep::DoubleLetters => text.chars().flat_map(|c| [c, c]).collect(),
            TextStep::DoubleVowels => text
                .chars()
                .flat_map(|c| std::iter::repeat_n(c, if is_vowel(c) { 2 } else { 1 }))
                .collect(),
            TextStep::AppendReverse => text.chars().chain(text.chars().rev()).collect(),
            TextStep::Numbers => {
                let numbers = text.bytes().map(|c| i64::from(c - b'a') + 1);
                return Value::List(numbers.collect());
            }
            TextStep::Length => return Value::Integer(text.len() as i64),
            TextStep::NumVowels => return Value::Integer(keep(&is_vowel).len() as i64),
            TextStep::NumDistinct => return Value::Integer(distinct().len() as i64),
        })
    }

    pub(super) fn prose(self) -> String {
        let text = match self {
            TextStep::KeepVowels => "Keep only the vowels (a, e, i, o, u).",
            TextStep::RemoveVowels => "Remove the vowels (a, e, i, o, u).",
            TextStep::KeepAfter(bound) => {
                return format!("Keep only the letters that come after {bound} in the alphabet.");
            }
            TextStep::KeepBefore(bound) => {
                return format!("Keep only the letters that come before {bound} in the alphabet.");
            }
            TextStep::Remove(letter) => return format!("Remove every {letter}."),
            TextStep::Replace(from, to) => return format!("Replace every {from} by {to}."),
            TextStep::Shift(by) => {
                return format!(
                    "Shift every letter by {by} in the alphabet, going on with a after z."
                );
            }
            TextStep::SortUp => "Sort the letters from a to z.",
            TextStep::SortDown => "Sort the letters from z to a.",
            TextStep::FirstOccurrences => {
                "Of equal letters keep only the first, wherever they are."
            }
            TextStep::CollapseRuns => {
                "Of equal letters that follow each other directly keep only one."
            }
            TextStep::DoubleLetters => "Write every letter twice (ab becomes aabb).",
            TextStep::DoubleVowels => "Write every vowel (a, e, i, o, u) twice.",
            TextStep::AppendReverse => "Append the string's own reverse (ab becomes abba).",
            TextStep::Numbers => {
                "Make a list of the letters' places in the alphabet: 1 for a up to 26 for z."
            }
            TextStep::Length => "Return how many letters there are.",
            TextStep::NumVowels => "Return how many vowels (a, e, i, o, u) there are.",
            TextStep::NumDistinct => "Return how many different letters there are.",
        };
        text.to_string()
    }

    pub(super) fn python(self) -> String {
        let kept = |condition: &str| format!("x = \"\".join(c for c in x if {condition})");
        let text = match self {
            TextStep::KeepVowels => return kept("c in \"aeiou\""),
            TextStep::RemoveVowels => return kept("c not in \"aeiou\""),
            TextStep::KeepAfter(bound) => return kept(&format!("c > \"{bound}\"")),
            TextStep::KeepBefore(bound) => return kept(&format!("c < \"{bound}\"")),
            TextStep::Remove(letter) => return kept(&format!("c != \"{letter}\"")),
            TextStep::Replace(from, to) => return format!("x = x.replace(\"{from}\", \"{to}\")"),
            TextStep::Shift(by) => {
                return format!("x = \"\".join(chr((ord(c) - 97 + {by}) % 26 + 97) for c in x)");
            }
            TextStep::SortUp => "x = \"\".join(sorted(x))",
            TextStep::SortDown => "x = \"\".join(sorted(x, reverse=True))",
            TextStep::FirstOccurrences => "x = \"\".join(dict.fromkeys(x))",
            TextStep::CollapseRuns => {
                "x = \"\".join(c for i, c in enumerate(x) if i == 0 or c != x[i - 1])"
            }
            TextStep::DoubleLetters => "x = \"\".join(c * 2 for c in x)",
            TextStep::DoubleVowels => "x = \"\".join(c * 2 if c in \"aeiou\" else c for c in x)",
            TextStep::AppendReverse => "x = x + x[::-1]",
            TextStep::Numbers => "x = [ord(c) - 96 for c in x]",
            TextStep::Length => "x = len(x)",
            TextStep::NumVowels => "x = sum(c in \"aeiou\" for c in x)",
            TextStep::NumDistinct => "x = len(set(x))",
        };
        text.to_string()
    }
}

fn letter(draw: &mut Draw, of: &str) -> char {
    char::from(draw.choose(of.as_bytes()))
}
