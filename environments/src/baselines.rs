//! Answers that take no skill, and what they earn.
//!
//! A family whose verifier pays these is not worth training on: a policy finds the shortcut first.
//! `cargo run -p environments --example baselines [FAMILY...]` prints the tables of `docs/environments.md` and of the
//! pages it names.

use std::fmt;

use crate::draw::{Draw, Purpose};
use crate::episode::Episode;
use crate::family::Family;
use crate::task::{FamilyKey, Split};

/// A way of answering without skill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Baseline {
    /// Says nothing.
    Empty,
    /// Repeats the question.
    Echo,
    /// A random answer of the right form: an integer of the level's range, or an expression.
    Random,
    /// The cheapest shortcut known: names the question's last number; countdown adds up all numbers
    /// but the smallest, which it subtracts.
    Greedy,
}

impl Baseline {
    /// Every baseline, in the order of the table.
    pub const ALL: [Baseline; 4] = [
        Baseline::Empty,
        Baseline::Echo,
        Baseline::Random,
        Baseline::Greedy,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Baseline::Empty => "empty",
            Baseline::Echo => "echo",
            Baseline::Random => "random",
            Baseline::Greedy => "greedy",
        }
    }

    /// The mean reward that it may earn; a shortcut may earn anything, and is told.
    pub fn limit(self) -> Option<f64> {
        match self {
            Baseline::Empty => Some(0.0),
            Baseline::Echo => Some(0.01),
            Baseline::Random => Some(0.1),
            Baseline::Greedy => None,
        }
    }

    /// Its answer to the task that `key` names, which asks `question`; the same on every call.
    pub fn answer(self, key: &FamilyKey, question: &str) -> String {
        let family = key.family.definition();
        match self {
            Baseline::Empty => String::new(),
            Baseline::Echo => question.to_string(),
            Baseline::Random => {
                let mut draw = Draw::new(Purpose::Baseline, key, 0);
                family.random_answer(key.level, question, &mut draw)
            }
            Baseline::Greedy => family.greedy_answer(question),
        }
    }

    /// Mean reward over the training tasks of seeds `0..num_seeds`.
    pub fn mean_reward(self, family: Family, level: u32, num_seeds: u32) -> f64 {
        let reward = |seed| {
            let key = FamilyKey {
                family,
                split: Split::Train,
                level,
                seed: u64::from(seed),
            };
            let task = Family::task(&key);
            let answer = self.answer(&key, &task.question);
            let verdict = Episode::played(&task, &[], &answer);
            // A fault counts in full, so that a grader that is not there can't pass for a hard one.
            verdict.reward().unwrap_or(1.0)
        };
        (0..num_seeds).map(reward).sum::<f64>() / f64::from(num_seeds)
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Mean rewards of `families`, by level and baseline, as the rows of a Markdown table. Those that are not quick get a
/// twentieth of the seeds.
pub fn table(families: impl IntoIterator<Item = Family>, num_seeds: u32) -> String {
    let mut rows = String::from(
        "| family | level | empty | echo | random | greedy |\n|---|---|---|---|---|---|\n",
    );
    for family in families {
        let num_seeds = match family.is_quick() {
            true => num_seeds,
            false => num_seeds.div_ceil(20),
        };
        for level in family.levels() {
            let rewards = Baseline::ALL
                .map(|baseline| format!("{:.3}", baseline.mean_reward(family, level, num_seeds)));
            rows += &format!("| {family} | {level} | {} |\n", rewards.join(" | "));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every page with a table, and whose.
    const PAGES: [(&str, &[Family]); 6] = [
        (
            include_str!("../../docs/environments.md"),
            &[
                Family::Sums,
                Family::Products,
                Family::Compare,
                Family::Gcd,
                Family::Countdown,
            ],
        ),
        (
            include_str!("../../docs/families/agent.md"),
            &[Family::TripPlanner, Family::OrderDesk, Family::Lookup],
        ),
        (
            include_str!("../../docs/families/logic.md"),
            &crate::logic::levels::FAMILIES,
        ),
        (
            include_str!("../../docs/families/math.md"),
            &[
                Family::Congruences,
                Family::Recurrences,
                Family::LatticePaths,
                Family::Partitions,
                Family::Polynomials,
                Family::MatrixInverse,
                Family::Diophantine,
                Family::WaitingTime,
            ],
        ),
        (
            include_str!("../../docs/families/programming.md"),
            &[
                Family::ComposeFunction,
                Family::InvertProgram,
                Family::RegexSynthesis,
                Family::RepairProgram,
                Family::EfficientProgram,
            ],
        ),
        (
            include_str!("../../docs/families/interpreter.md"),
            &[Family::ComputedAnswer, Family::TableAnswer],
        ),
    ];

    #[test]
    fn answers_without_skill_earn_next_to_nothing() {
        for family in Family::ALL {
            let num_seeds = match (family.is_quick(), family.needs_sandbox()) {
                (true, _) => 1000,
                (false, false) => 20,
                (false, true) if crate::sandboxed::tests::has_sandbox() => 5,
                (false, true) => continue,
            };
            for level in family.levels() {
                for baseline in Baseline::ALL {
                    let reward = || baseline.mean_reward(family, level, num_seeds);
                    let is_low = baseline.limit().is_none_or(|limit| reward() <= limit);
                    assert!(is_low, "{family} {level} {baseline}");
                }
            }
        }
    }

    #[test]
    fn the_documented_tables_are_the_measured_ones() {
        for (page, families) in PAGES {
            // What runs code takes minutes: the example alone prints it.
            let quick = families
                .iter()
                .copied()
                .filter(|family| !family.needs_sandbox());
            let table = table(quick, 1000);
            for row in table.lines() {
                assert!(page.contains(row), "put this table on the page:\n{table}");
            }
        }
        let on_pages: Vec<Family> = PAGES.iter().flat_map(|(_, on)| on.to_vec()).collect();
        assert_eq!(on_pages, Family::ALL, "every family has its page, in order");
    }
}
