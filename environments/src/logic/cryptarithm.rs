//! Cryptarithms: letters stand for digits, different letters for different digits, and a sum must hold.
//!
//! A sum of random numbers is written in letters. Letters are told until few are unknown (easy levels) and one reading
//! alone is left. Effort is the number of digits that a search tries, column by column from the right.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::committed::committed;
use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::{Puzzle, shuffle};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Cryptarithm;

/// Sums drawn before an attempt is given up.
const MAX_TRIES: u32 = 40;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    /// The addends, then their sum.
    words: Vec<String>,
    /// What is told.
    known: BTreeMap<char, u8>,
}

/// Digits of each addend, the most letters that may be unknown, and the most that may be told.
fn size(level: u32) -> (&'static [u32], usize, usize) {
    match level {
        1 => (&[1, 1], 2, 9),
        2 => (&[2, 1], 2, 9),
        3 => (&[2, 2], 5, 1),
        4 => (&[3, 3], 7, 1),
        5 => (&[4, 4], 10, 1),
        _ => (&[4, 4, 4], 10, 2),
    }
}

impl Sum {
    /// The letters, each once, in the order of the alphabet.
    fn letters(&self) -> Vec<char> {
        let mut letters: Vec<char> = self.words.iter().flat_map(|word| word.chars()).collect();
        letters.sort_unstable();
        letters.dedup();
        letters
    }

    fn value(word: &str, digits: &BTreeMap<char, u8>) -> Option<u64> {
        word.chars().try_fold(0, |value, letter| {
            Some(value * 10 + u64::from(*digits.get(&letter)?))
        })
    }

    /// Whether `digits` is a reading: different digits, none in front 0, what is told kept, the sum right.
    fn holds(&self, digits: &BTreeMap<char, u8>) -> bool {
        let mut used: Vec<u8> = digits.values().copied().collect();
        used.sort_unstable();
        used.dedup();
        let has_all = digits.keys().copied().eq(self.letters());
        let front = |word: &String| word.chars().next().and_then(|letter| digits.get(&letter));
        let keeps = self
            .known
            .iter()
            .all(|(letter, digit)| digits.get(letter) == Some(digit));
        let values: Option<Vec<u64>> = self
            .words
            .iter()
            .map(|word| Sum::value(word, digits))
            .collect();
        let adds = values.is_some_and(|values| {
            values
                .split_last()
                .is_some_and(|(sum, addends)| addends.iter().sum::<u64>() == *sum)
        });
        has_all
            && used.len() == digits.len()
            && used.iter().all(|&digit| digit <= 9)
            && self
                .words
                .iter()
                .all(|word| word.len() == 1 || front(word) != Some(&0))
            && keeps
            && adds
    }
}

/// Tries digits, column by column.
struct Search {
    /// Columns from the right: letters of the addends, then the sum's.
    columns: Vec<Vec<usize>>,
    /// Digit by letter (`A` is 0).
    digits: [Option<u8>; 10],
    is_front: [bool; 10],
    used: u16,
    num_tried: u64,
    num_found: usize,
    first: Option<[Option<u8>; 10]>,
}

impl Search {
    fn new(sum: &Sum) -> Search {
        let index = |byte: u8| usize::from(byte - b'A');
        let num_columns = sum.words.iter().map(String::len).max().unwrap_or(0);
        let columns = (0..num_columns).map(|column| {
            let letter = |word: &String| word.bytes().rev().nth(column).map(index);
            sum.words.iter().filter_map(letter).collect()
        });
        let mut search = Search {
            columns: columns.collect(),
            digits: [None; 10],
            is_front: [false; 10],
            used: 0,
            num_tried: 0,
            num_found: 0,
            first: None,
        };
        for word in sum.words.iter().filter(|word| word.len() > 1) {
            search.is_front[index(word.as_bytes()[0])] = true;
        }
        for (&letter, &digit) in &sum.known {
            search.digits[index(letter as u8)] = Some(digit);
            search.used |= 1 << digit;
        }
        search
    }

    /// Goes on at `row` of `column`; `total` is the column's carry and addends so far. Stops at two readings.
    fn run(&mut self, column: usize, row: usize, total: u32) {
        if self.num_found >= 2 {
            return;
        }
        let Some(letters) = self.columns.get(column) else {
            if total == 0 {
                self.num_found += 1;
                self.first.get_or_insert(self.digits);
            }
            return;
        };
        let (letter, is_sum) = (letters[row], row + 1 == letters.len());
        if let Some(digit) = self.digits[letter] {
            self.follow(column, row, total, digit, is_sum);
            return;
        }
        let digits = if is_sum {
            let digit = (total % 10) as u8;
            digit..=digit
        } else {
            0..=9
        };
        for digit in digits {
            if self.used >> digit & 1 == 1 || (digit == 0 && self.is_front[letter]) {
                continue;
            }
            self.num_tried += 1;
            self.digits[letter] = Some(digit);
            self.used |= 1 << digit;
            self.follow(column, row, total, digit, is_sum);
            self.digits[letter] = None;
            self.used &= !(1 << digit);
        }
    }

    fn follow(&mut self, column: usize, row: usize, total: u32, digit: u8, is_sum: bool) {
        if !is_sum {
            self.run(column, row + 1, total + u32::from(digit));
        } else if total % 10 == u32::from(digit) {
            self.run(column + 1, 0, total / 10);
        }
    }
}

fn solve(sum: &Sum) -> Search {
    let mut search = Search::new(sum);
    search.run(0, 0, 0);
    search
}

fn parse(gold: &str) -> Sum {
    serde_json::from_str(gold).expect("we wrote it")
}

/// `A=1, B=2`.
fn reading(digits: &BTreeMap<char, u8>) -> String {
    let pairs = digits
        .iter()
        .map(|(letter, digit)| format!("{letter}={digit}"));
    pairs.collect::<Vec<_>>().join(", ")
}

/// Digits by letter, each letter named once.
fn read_digits(answer: &str) -> Option<BTreeMap<char, u8>> {
    let plain: Vec<char> = answer
        .chars()
        .filter(|letter| !letter.is_whitespace() && !matches!(letter, ',' | ';'))
        .collect();
    let (pairs, []) = plain.as_chunks::<3>() else {
        return None;
    };
    let mut digits = BTreeMap::new();
    for &[letter, equals, digit] in pairs {
        let digit = u8::try_from(digit.to_digit(10)?).ok()?;
        let is_new = digits.insert(letter.to_ascii_uppercase(), digit).is_none();
        if !is_new || !matches!(equals, '=' | ':') {
            return None;
        }
    }
    Some(digits)
}

/// The words in capital letters of the sum that the question states, and what it tells.
fn stated(question: &str) -> (Vec<char>, BTreeMap<char, u8>) {
    let mut lines = question.lines().skip(1);
    let mut letters: Vec<char> = lines
        .next()
        .unwrap_or("")
        .chars()
        .filter(char::is_ascii_uppercase)
        .collect();
    letters.sort_unstable();
    letters.dedup();
    let told = lines.next().and_then(|line| line.strip_prefix("Known: "));
    let known = told.and_then(|told| read_digits(told.trim_end_matches('.')));
    (letters, known.unwrap_or_default())
}

/// Gives the letters that nothing is told about the digits of `free`, in order.
fn filled(question: &str, free: &[u8]) -> String {
    let (letters, mut digits) = stated(question);
    let mut free = free
        .iter()
        .filter(|digit| !digits.values().any(|known| known == *digit))
        .copied()
        .collect::<Vec<_>>()
        .into_iter();
    for letter in letters {
        digits
            .entry(letter)
            .or_insert_with(|| free.next().unwrap_or(0));
    }
    format!("\\boxed{{{}}}", reading(&digits))
}

impl Puzzle for Cryptarithm {
    fn unit(&self) -> &'static str {
        "digits tried"
    }

    fn effort(&self, gold: &str) -> u64 {
        solve(&parse(gold)).num_tried
    }
}

impl TaskFamily for Cryptarithm {
    fn name(&self) -> &'static str {
        "cryptarithm"
    }

    fn summary(&self) -> &'static str {
        "which digits the letters of a sum stand for"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Logic
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (lengths, max_unknown, max_told) = size(level);
        let (sum, all) = (0..MAX_TRIES).find_map(|_| {
            let mut values: Vec<u64> = lengths
                .iter()
                .map(|&len| {
                    let least = 10i64.pow(len - 1);
                    draw.between(least..=10 * least - 1) as u64
                })
                .collect();
            values.push(values.iter().sum());
            let mut names: Vec<char> = ('A'..='J').collect();
            shuffle(&mut names, draw);
            let word = |value: &u64| -> String {
                value
                    .to_string()
                    .bytes()
                    .map(|byte| names[usize::from(byte - b'0')])
                    .collect()
            };
            let mut sum = Sum {
                words: values.iter().map(word).collect(),
                known: BTreeMap::new(),
            };
            let mut letters = sum.letters();
            let all: BTreeMap<char, u8> = (0u8..)
                .zip(&names)
                .filter(|(_, name)| letters.contains(name))
                .map(|(digit, &name)| (name, digit))
                .collect();
            shuffle(&mut letters, draw);
            while letters.len() > max_unknown || solve(&sum).num_found > 1 {
                let letter = letters.pop()?;
                sum.known.insert(letter, all[&letter]);
            }
            // With a single unknown letter one addition is enough.
            (letters.len() >= 2 && sum.known.len() <= max_told).then_some((sum, all))
        })?;
        let (result, addends) = sum.words.split_last()?;
        let values: Vec<String> = sum
            .words
            .iter()
            .filter_map(|word| Sum::value(word, &all))
            .map(|value| value.to_string())
            .collect();
        let (value, added) = values.split_last()?;
        let known = match sum.known.is_empty() {
            true => String::new(),
            false => format!("Known: {}.\n", reading(&sum.known)),
        };
        let gold = serde_json::to_string(&sum).expect("plain data");
        Some(Instance {
            canonical: gold.clone(),
            question: format!(
                "Each letter stands for a digit, different letters for different digits, and no number of several digits \
                 begins with 0. Find the digits that make the sum right.\n{} = {result}\n{known}\
                 Answer with every letter and its digit, such as X=1, Y=2, in \\boxed{{}}.",
                addends.join(" + ")
            ),
            solution: format!(
                "{} = {value}. \\boxed{{{}}}",
                added.join(" + "),
                reading(&all)
            ),
            gold,
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let answer = committed(completion);
        let is_right = answer
            .and_then(read_digits)
            .is_some_and(|digits| parse(gold).holds(&digits));
        Verdict::exact(is_right, answer.map(str::to_string))
    }

    /// Gives the unknown letters different digits that are still free.
    fn random_answer(&self, _level: u32, question: &str, draw: &mut Draw) -> String {
        let mut free: Vec<u8> = (0..=9).collect();
        shuffle(&mut free, draw);
        filled(question, &free)
    }

    /// Gives the unknown letters the free digits in ascending order.
    fn greedy_answer(&self, question: &str) -> String {
        filled(question, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(words: &[&str], known: &[(char, u8)]) -> Sum {
        Sum {
            words: words.iter().map(|word| word.to_string()).collect(),
            known: known.iter().copied().collect(),
        }
    }

    fn reward(sum: &Sum, answer: &str) -> f64 {
        let gold = serde_json::to_string(sum).expect("plain data");
        let verdict = Cryptarithm.grade(&gold, &format!("\\boxed{{{answer}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn send_more_money_has_its_one_reading() {
        // S E N D M O R Y as A B C D E F G H: 9567 + 1085 = 10652.
        let famous = sum(&["ABCD", "EFGB", "EFCBH"], &[]);
        let search = solve(&famous);
        assert_eq!(search.num_found, 1);
        let answer = "A=9, B=5, C=6, D=7, E=1, F=0, G=8, H=2";
        assert_eq!(reward(&famous, answer), 1.0);
        assert_eq!(reward(&famous, "h:2 g:8 F=0\nE=1;D=7 C = 6 B=5 A=9"), 1.0);
        for wrong in [
            "A=9, B=5, C=6, D=7, E=1, F=0, G=8",
            "A=9, B=5, C=6, D=7, E=1, F=0, G=8, H=3",
            "A=9, A=9, B=5, C=6, D=7, E=1, F=0, G=8, H=2",
            "A=9, B=5, C=6, D=7, E=1, F=0, G=8, H=2, I=3",
            "9567 + 1085 = 10652",
            "A=0, B=0, C=0, D=0, E=0, F=0, G=0, H=0",
        ] {
            assert_eq!(reward(&famous, wrong), 0.0, "{wrong}");
        }
    }

    #[test]
    fn any_reading_is_right_but_what_is_told_stays() {
        let open = sum(&["A", "B", "C"], &[]);
        assert_eq!(reward(&open, "A=1, B=2, C=3"), 1.0);
        assert_eq!(reward(&open, "A=4, B=5, C=9"), 1.0);
        assert_eq!(reward(&open, "A=1, B=1, C=2"), 0.0, "different letters");
        let told = sum(&["A", "B", "C"], &[('A', 1)]);
        assert_eq!(reward(&told, "A=1, B=2, C=3"), 1.0);
        assert_eq!(reward(&told, "A=4, B=5, C=9"), 0.0);
        let front = sum(&["AB", "CB", "DB"], &[]);
        assert_eq!(reward(&front, "A=1, B=0, C=2, D=3"), 1.0);
        assert_eq!(reward(&front, "A=0, B=0, C=2, D=2"), 0.0);
    }

    #[test]
    fn the_search_finds_a_reading_where_trying_everything_does() {
        for words in [
            ["AB", "BA", "CAC"],
            ["AA", "BB", "CC"],
            ["A", "A", "A"],
            ["AB", "C", "DE"],
        ] {
            let sum = sum(&words, &[]);
            let letters = sum.letters();
            let num_codes = 10u32.pow(letters.len() as u32);
            let readings = (0..num_codes).filter(|code| {
                let digit = |place: u32| (code / 10u32.pow(place) % 10) as u8;
                sum.holds(&letters.iter().copied().zip((0..).map(digit)).collect())
            });
            assert_eq!(readings.count().min(2), solve(&sum).num_found, "{words:?}");
        }
    }
}
