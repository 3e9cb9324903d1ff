//! Knights and knaves: knights only say what is true, knaves only what is false; who is what?
//!
//! Everyone says one thing, and one assignment alone fits all that is said. Effort is the number of people that a search
//! places, in the order of the names, which drops an assignment at the first statement that can't be.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::Puzzle;
use crate::logic::answer::words;
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Knights;

const NAMES: [&str; 12] = [
    "Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hope", "Ian", "Joy", "Kim", "Leo",
];
/// Draws of all statements before an attempt is given up.
const MAX_TRIES: u32 = 60;

/// What somebody says; people are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Said {
    Is(usize, bool),
    /// The speaker and this one are of one kind.
    LikeMe(usize),
    /// The speaker and this one are of different kinds.
    UnlikeMe(usize),
    Same(usize, usize),
    Differ(usize, usize),
    AnyKnave(usize, usize),
    If(usize, usize),
    Exactly(usize),
    AtLeast(usize),
}

impl Said {
    /// Whether it holds; `knights` has a bit for every knight among `num_people`.
    fn holds(self, speaker: usize, knights: u32) -> bool {
        let is_knight = |person: usize| knights >> person & 1 == 1;
        match self {
            Said::Is(person, knight) => is_knight(person) == knight,
            Said::LikeMe(person) => is_knight(person) == is_knight(speaker),
            Said::UnlikeMe(person) => is_knight(person) != is_knight(speaker),
            Said::Same(one, other) => is_knight(one) == is_knight(other),
            Said::Differ(one, other) => is_knight(one) != is_knight(other),
            Said::AnyKnave(one, other) => !is_knight(one) || !is_knight(other),
            Said::If(one, other) => !is_knight(one) || is_knight(other),
            Said::Exactly(count) => knights.count_ones() as usize == count,
            Said::AtLeast(count) => knights.count_ones() as usize >= count,
        }
    }

    /// The last of those whose kind decides it.
    fn last(self, num_people: usize) -> usize {
        match self {
            Said::Is(person, _) | Said::LikeMe(person) | Said::UnlikeMe(person) => person,
            Said::Same(one, other)
            | Said::Differ(one, other)
            | Said::AnyKnave(one, other)
            | Said::If(one, other) => one.max(other),
            Said::Exactly(_) | Said::AtLeast(_) => num_people - 1,
        }
    }

    fn text(self) -> String {
        let kind = |is_knight: bool| if is_knight { "knight" } else { "knave" };
        match self {
            Said::Is(person, knight) => format!("{} is a {}", NAMES[person], kind(knight)),
            Said::LikeMe(person) => format!("{} and I are of the same kind", NAMES[person]),
            Said::UnlikeMe(person) => format!("{} and I are of different kinds", NAMES[person]),
            Said::Same(one, other) => {
                format!("{} and {} are of the same kind", NAMES[one], NAMES[other])
            }
            Said::Differ(one, other) => {
                format!("{} and {} are of different kinds", NAMES[one], NAMES[other])
            }
            Said::AnyKnave(one, other) => {
                format!(
                    "at least one of {} and {} is a knave",
                    NAMES[one], NAMES[other]
                )
            }
            Said::If(one, other) => {
                format!("if {} is a knight, then so is {}", NAMES[one], NAMES[other])
            }
            Said::Exactly(count) => format!("exactly {count} of us are knights"),
            Said::AtLeast(count) => format!("at least {count} of us are knights"),
        }
    }

    /// A random statement of the kinds that `level` has.
    fn random(level: u32, speaker: usize, num_people: usize, draw: &mut Draw) -> Said {
        let mut other_than = |taken: &[usize]| loop {
            let person = draw.index(num_people);
            if !taken.contains(&person) {
                break person;
            }
        };
        let one = other_than(&[speaker]);
        let other = other_than(&[speaker, one]);
        let count = 2 + draw.index(num_people - 2);
        let kinds: &[Said] = match level {
            1 => &[
                Said::LikeMe(one),
                Said::UnlikeMe(one),
                Said::Is(one, true),
                Said::Is(one, false),
            ],
            2 => &[
                Said::LikeMe(one),
                Said::Is(one, false),
                Said::Same(one, other),
                Said::Differ(one, other),
                Said::AnyKnave(one, other),
            ],
            _ => &[
                Said::Is(one, false),
                Said::Same(one, other),
                Said::Differ(one, other),
                Said::AnyKnave(one, other),
                Said::If(one, other),
                Said::Exactly(count),
                Said::AtLeast(count),
            ],
        };
        draw.choose(kinds)
    }
}

fn num_people(level: u32) -> usize {
    match level {
        1 | 2 => 4,
        3 => 5,
        4 => 7,
        5 => 9,
        _ => 12,
    }
}

/// All assignments that fit, and how many people were placed on the way.
fn solve(said: &[Said]) -> (Vec<u32>, u64) {
    let num_people = said.len();
    // Statements that are decided once a person is placed.
    let mut decided = vec![Vec::new(); num_people];
    for (speaker, &what) in said.iter().enumerate() {
        decided[what.last(num_people).max(speaker)].push(speaker);
    }
    let (mut found, mut num_placed) = (Vec::new(), 0);
    let mut open = vec![(0usize, 0u32)];
    while let Some((placed, knights)) = open.pop() {
        if placed == num_people {
            found.push(knights);
            continue;
        }
        for kind in [0, 1] {
            let knights = knights | kind << placed;
            num_placed += 1;
            let fits = |&speaker: &usize| {
                said[speaker].holds(speaker, knights) == (knights >> speaker & 1 == 1)
            };
            if decided[placed].iter().all(fits) {
                open.push((placed + 1, knights));
            }
        }
    }
    (found, num_placed)
}

fn parse(gold: &str) -> Vec<Said> {
    serde_json::from_str(gold).expect("we wrote it")
}

fn kinds(num_people: usize, knights: u32) -> String {
    let kind = |person| match knights >> person & 1 {
        1 => "knight",
        _ => "knave",
    };
    (0..num_people).map(kind).collect::<Vec<_>>().join(", ")
}

impl Puzzle for Knights {
    fn unit(&self) -> &'static str {
        "people placed"
    }

    fn effort(&self, gold: &str) -> u64 {
        solve(&parse(gold)).1
    }
}

impl TaskFamily for Knights {
    fn name(&self) -> &'static str {
        "knights"
    }

    fn summary(&self) -> &'static str {
        "who is a knight and who a knave, from what they say"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Logic
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let num_people = num_people(level);
        let (said, knights) = (0..MAX_TRIES).find_map(|_| {
            let said: Vec<Said> = (0..num_people)
                .map(|speaker| Said::random(level, speaker, num_people, draw))
                .collect();
            match solve(&said).0[..] {
                [knights] => Some((said, knights)),
                _ => None,
            }
        })?;
        let lines: Vec<String> = said
            .iter()
            .enumerate()
            .map(|(speaker, what)| format!("{}: \"{}.\"", NAMES[speaker], what.text()))
            .collect();
        let checks: Vec<String> = said
            .iter()
            .enumerate()
            .map(|(speaker, what)| {
                let truth = if what.holds(speaker, knights) {
                    "true"
                } else {
                    "false"
                };
                let kind = if knights >> speaker & 1 == 1 {
                    "knight"
                } else {
                    "knave"
                };
                format!("{}, {kind}: {truth}.", NAMES[speaker])
            })
            .collect();
        let gold = serde_json::to_string(&said).expect("plain data");
        Some(Instance {
            canonical: gold.clone(),
            question: format!(
                "Each of {} is a knight or a knave. All that a knight says is true; all that a knave says is false.\n{}\n\
                 Answer with the word knight or knave for each of them, in this order, in \\boxed{{}}.",
                NAMES[..num_people].join(", "),
                lines.join("\n")
            ),
            solution: format!(
                "{} \\boxed{{{}}}",
                checks.join(" "),
                kinds(num_people, knights)
            ),
            gold,
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let said = parse(gold);
        let answer = words(completion);
        let knights = answer.as_deref().and_then(|answer| {
            let bit = |(person, word): (usize, &String)| match word.as_str() {
                "knight" => Some(1u32 << person),
                "knave" => Some(0),
                _ => None,
            };
            let is_whole = answer.len() == said.len();
            is_whole.then(|| answer.iter().enumerate().map(bit).sum::<Option<u32>>())?
        });
        let is_right = knights.is_some_and(|knights| {
            let fits = |(speaker, what): (usize, &Said)| {
                what.holds(speaker, knights) == (knights >> speaker & 1 == 1)
            };
            said.iter().enumerate().all(fits)
        });
        Verdict::exact(is_right, answer.map(|words| words.join(" ")))
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let num_people = num_people(level);
        let knights =
            (0..num_people).fold(0, |bits, person| bits | u32::from(draw.coin()) << person);
        format!("\\boxed{{{}}}", kinds(num_people, knights))
    }

    /// Believes everybody.
    fn greedy_answer(&self, question: &str) -> String {
        let num_people = question
            .lines()
            .filter(|line| line.ends_with(".\""))
            .count();
        format!("\\boxed{{{}}}", kinds(num_people, u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    fn reward(said: &[Said], answer: &str) -> f64 {
        let gold = serde_json::to_string(said).expect("plain data");
        let verdict = Knights.grade(&gold, &format!("So \\boxed{{{answer}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn the_classic_two_are_solved() {
        // "At least one of us is a knave" can only be said by a knight beside a knave.
        let said = [Said::AnyKnave(0, 1), Said::Is(0, false)];
        assert_eq!(solve(&said).0, [0b01]);
        assert_eq!(reward(&said, "knight, knave"), 1.0);
        assert_eq!(reward(&said, "Knight\nKnave"), 1.0);
        for wrong in [
            "knave, knight",
            "knight",
            "knight, knight",
            "knight, knave, knave",
            "knight, liar",
        ] {
            assert_eq!(reward(&said, wrong), 0.0, "{wrong}");
        }
    }

    #[test]
    fn every_assignment_that_fits_is_right() {
        let said = [Said::Is(1, true), Said::Is(0, true)];
        assert_eq!(reward(&said, "knight knight"), 1.0);
        assert_eq!(reward(&said, "knave knave"), 1.0);
        assert_eq!(reward(&said, "knave knight"), 0.0);
    }

    #[test]
    fn the_search_finds_what_trying_everything_finds() {
        for seed in 0..200 {
            let key = FamilyKey {
                family: Family::Knights,
                split: Split::Train,
                level: 3,
                seed,
            };
            let said = parse(&Family::task(&key).gold);
            let fits = |&knights: &u32| {
                (0..said.len()).all(|i| said[i].holds(i, knights) == (knights >> i & 1 == 1))
            };
            let all: Vec<u32> = (0..1 << said.len()).filter(fits).collect();
            assert_eq!(all, solve(&said).0, "{said:?}");
            assert_eq!(all.len(), 1);
        }
    }
}
