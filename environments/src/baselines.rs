//! Answers that take no skill, and what they earn.
//!
//! A family whose verifier pays these is not worth training on: a policy finds the shortcut first.
//! `cargo run -p environments --example baselines` prints the table of `docs/environments.md`.

use crate::draw::{Draw, Purpose};
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
            task.verify(&answer).reward().unwrap_or(0.0)
        };
        (0..num_seeds).map(reward).sum::<f64>() / f64::from(num_seeds)
    }
}

/// Mean rewards of every family, level and baseline, as the rows of a Markdown table.
pub fn table(num_seeds: u32) -> String {
    let mut rows = String::from(
        "| family | level | empty | echo | random | greedy |\n|---|---|---|---|---|---|\n",
    );
    for family in Family::ALL {
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

    #[test]
    fn answers_without_skill_earn_next_to_nothing() {
        for family in Family::ALL {
            for level in family.levels() {
                let reward = |baseline: Baseline| baseline.mean_reward(family, level, 1000);
                assert_eq!(reward(Baseline::Empty), 0.0, "{family} {level}");
                assert!(reward(Baseline::Echo) <= 0.01, "{family} {level}");
                assert!(reward(Baseline::Random) <= 0.1, "{family} {level}");
            }
        }
    }

    #[test]
    fn the_documented_table_is_the_measured_one() {
        let page = include_str!("../../docs/environments.md");
        assert!(
            page.contains(&table(1000)),
            "put this table into docs/environments.md:\n{}",
            table(1000)
        );
    }
}
