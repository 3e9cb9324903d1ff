//! What a graded sample is paid: its outcome, and what else a run wants of a completion, each a part with a name.
//!
//! ```text
//! reward = outcome + format + length + language
//! outcome  =  w_o * r                                   r: the verdict's reward, in [0, 1]
//! format   = -w_o * r where the format is broken, else 0: the gate
//! length   = -w_n * clamp((n - (N - b)) / b, 0, 1)      n of at most N tokens drawn, b the buffer
//! language = -w_l * (letters of another script than the question's) / letters
//! ```
//!
//! Weights belong to a [`Domain`]; as they come, the reward is the verdict's. w_n + w_l < w_o, so that every full solution
//! in sound format is paid more than anything wrong, and the reward lies in [-(w_n + w_l), w_o]. An invalid sample has no
//! reward: the K of a group's mean counts graded samples alone.
//!
//! Clauses and measures of a verdict ([`Verdict::Graded`], `parts`) are shown and never paid here.

mod format;
mod language;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::episode::Stop;
use crate::instance::Domain;
use crate::verdict::Verdict;

pub use format::{FormatProblem, ReasonedText};
pub use language::off_language_share;

/// What the completions of each domain are paid for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Mathematics.
    pub math: RewardWeights,
    /// Logic puzzles.
    pub logic: RewardWeights,
    /// Programs.
    pub programming: RewardWeights,
    /// Agents.
    pub agent: RewardWeights,
    /// Datasets, and environments of others.
    pub general: RewardWeights,
}

/// The weights of one domain. By default the verdict's reward is paid and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardWeights {
    /// w_o.
    pub outcome: f64,
    /// Pay no outcome where the format is broken: see [`FormatProblem`].
    pub format_gate: bool,
    /// w_n; 0 leaves length alone.
    pub length: f64,
    /// b, in tokens: how far below the limit the length penalty begins. At the limit it is w_n in full.
    pub length_buffer_tokens: usize,
    /// w_l; 0 leaves the language alone.
    pub language: f64,
}

impl Default for RewardWeights {
    fn default() -> RewardWeights {
        RewardWeights {
            outcome: 1.0,
            format_gate: false,
            length: 0.0,
            length_buffer_tokens: 4096,
            language: 0.0,
        }
    }
}

/// What is known of a completion beside its verdict.
#[derive(Clone, Copy, Debug)]
pub struct CompletionFacts<'a> {
    /// What was asked, without system message and template.
    pub question: &'a str,
    /// Text of the last turn, outside of reasoning and calls.
    pub answer: &'a str,
    /// Reasoning of all turns.
    pub reasoning: &'a str,
    /// The reasoning of the last turn was not closed.
    pub is_reasoning_open: bool,
    /// Tokens drawn, what tools and template gave left out.
    pub num_tokens: usize,
    /// N: how many might have been drawn.
    pub max_tokens: usize,
    /// Why it ended: for a task of one turn [`Stop::Answered`] where the policy ended it and [`Stop::Length`] where the
    /// limit did.
    pub stop: Stop,
}

/// What a sample is paid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// The sum of the parts, which enters the advantages.
    pub reward: f64,
    /// `outcome`, and of `format`, `length` and `language` those that the domain has.
    pub parts: BTreeMap<String, f64>,
}

impl RewardConfig {
    /// The weights of a domain.
    pub fn of(&self, domain: Domain) -> &RewardWeights {
        match domain {
            Domain::Math => &self.math,
            Domain::Logic => &self.logic,
            Domain::Programming => &self.programming,
            Domain::Agent => &self.agent,
            Domain::General => &self.general,
        }
    }

    /// What a completion of `domain` with this verdict is paid; `None` for an invalid one.
    pub fn reward(
        &self,
        domain: Domain,
        verdict: &Verdict,
        facts: &CompletionFacts,
    ) -> Option<Reward> {
        Some(self.of(domain).reward(verdict.reward()?, facts))
    }

    /// Every value out of range, in words that name the key; empty when the config is sound. `max_tokens` is the limit of
    /// a completion.
    pub fn problems(&self, max_tokens: usize) -> Vec<String> {
        let domains = [
            ("math", &self.math),
            ("logic", &self.logic),
            ("programming", &self.programming),
            ("agent", &self.agent),
            ("general", &self.general),
        ];
        let found = domains.into_iter().flat_map(|(domain, weights)| {
            let problems = weights.problems(max_tokens).into_iter();
            problems.map(move |problem| format!("{domain}: {problem}"))
        });
        found.collect()
    }
}

impl RewardWeights {
    /// Whether what is paid is the verdict's reward itself, so that nothing need be known of a completion.
    pub fn is_outcome_alone(&self) -> bool {
        let RewardWeights {
            outcome,
            format_gate,
            length,
            length_buffer_tokens: _,
            language,
        } = *self;
        outcome == 1.0 && !format_gate && length == 0.0 && language == 0.0
    }

    fn reward(&self, graded: f64, facts: &CompletionFacts) -> Reward {
        let outcome = self.outcome * graded;
        let mut parts = BTreeMap::from([("outcome".to_string(), outcome)]);
        if self.format_gate {
            let is_broken = facts.format_problem().is_some();
            parts.insert(
                "format".to_string(),
                taken(if is_broken { outcome } else { 0.0 }),
            );
        }
        if self.length > 0.0 {
            let share = overlong_share(
                facts.num_tokens,
                facts.max_tokens,
                self.length_buffer_tokens,
            );
            parts.insert("length".to_string(), taken(self.length * share));
        }
        if self.language > 0.0 {
            let share = off_language_share(facts.question, &[facts.reasoning, facts.answer]);
            parts.insert("language".to_string(), taken(self.language * share));
        }
        Reward {
            // In the order of the names, so that the same parts give the same bits.
            reward: parts.values().sum::<f64>() + 0.0,
            parts,
        }
    }

    fn problems(&self, max_tokens: usize) -> Vec<String> {
        let mut found = Vec::new();
        if !(self.outcome.is_finite() && self.outcome > 0.0) {
            found.push(format!(
                "outcome ({}) must be a number above 0; a weight of the environment leaves tasks out",
                self.outcome
            ));
        }
        for (key, weight) in [("length", self.length), ("language", self.language)] {
            if !(weight.is_finite() && weight >= 0.0) {
                found.push(format!(
                    "{key} ({weight}) must be a number of at least 0; it is taken off the reward"
                ));
            }
        }
        if found.is_empty() && self.length + self.language >= self.outcome {
            found.push(format!(
                "length ({}) and language ({}) together must lie below outcome ({}), or a wrong answer could be paid more than a right one",
                self.length, self.language, self.outcome
            ));
        }
        let is_buffer_sound = (1..=max_tokens).contains(&self.length_buffer_tokens);
        if self.length > 0.0 && !is_buffer_sound {
            found.push(format!(
                "length_buffer_tokens ({}) must lie from 1 to the limit of a completion ({max_tokens})",
                self.length_buffer_tokens
            ));
        }
        found
    }
}

/// What is taken off: never -0, which files would show.
fn taken(amount: f64) -> f64 {
    0.0 - amount
}

/// clamp((n - (N - b)) / b, 0, 1): 0 up to `buffer` tokens below the limit, 1 at the limit, a straight line between.
///
/// # Panics
/// When the buffer is 0.
pub fn overlong_share(num_tokens: usize, max_tokens: usize, buffer: usize) -> f64 {
    assert!(buffer > 0, "a buffer of 0 tokens");
    let over = (num_tokens + buffer).saturating_sub(max_tokens);
    (over as f64 / buffer as f64).min(1.0)
}

#[cfg(test)]
mod tests;
