//! What a task family provides, and which split an instance belongs to.
//!
//! held-out iff blake3(family, canonical) mod 4 = 0. `canonical` is the instance's content without
//! level, wording or operand order, so one instance is on one side however it is drawn.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::episode::EpisodeLimits;
use crate::integer_answer;
use crate::session::Session;
use crate::task::Split;
use crate::tool::{ToolCall, ToolDef};
use crate::verdict::{Fault, Verdict};

/// One in this many instances is held out.
const HELD_OUT_EVERY: u64 = 4;

/// Keys the hash. Of six names tried, the one that holds out closest to a quarter of the two smallest
/// sets, products up to 5 and up to 12: another would leave as few as 1 of 15.
const SPLIT_CONTEXT: &str = "baleen environments 1: train or held-out";

/// One instance, before it is known whether the wanted split holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instance {
    /// What is asked, free of wording and order. Equal for instances a policy would call the same.
    pub(crate) canonical: String,
    /// Rules of the place, for the system message.
    pub(crate) system: Option<String>,
    /// What the policy is asked.
    pub(crate) question: String,
    /// The calls, turn by turn, of the worked solution.
    pub(crate) witness: Vec<Vec<ToolCall>>,
    /// Its answer; with the calls before it, it earns reward 1.
    pub(crate) solution: String,
    /// What [`TaskFamily::grade`] compares with, or what [`TaskFamily::open`] makes a session of (JSON).
    pub(crate) gold: String,
}

/// What a task trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// Mathematics.
    Math,
    /// Logic puzzles.
    Logic,
    /// Programs.
    Programming,
    /// Agents with tools and a state to change.
    Agent,
    /// The user's own prompts, and whatever else.
    General,
}

impl Domain {
    /// Every domain.
    pub const ALL: [Domain; 5] = [
        Domain::Math,
        Domain::Logic,
        Domain::Programming,
        Domain::Agent,
        Domain::General,
    ];

    /// Name in metrics, such as `math`.
    pub fn name(self) -> &'static str {
        match self {
            Domain::Math => "math",
            Domain::Logic => "logic",
            Domain::Programming => "programming",
            Domain::Agent => "agent",
            Domain::General => "general",
        }
    }
}

/// A family of tasks: one implementation per file.
pub(crate) trait TaskFamily {
    /// Name in configurations and metrics.
    fn name(&self) -> &'static str;

    /// What is asked, in a line.
    fn summary(&self) -> &'static str;

    /// Levels that exist, easiest first.
    fn levels(&self) -> RangeInclusive<u32>;

    /// What it trains.
    fn domain(&self) -> Domain {
        Domain::Math
    }

    /// Grows by one whenever the same key gives other bytes than before.
    fn version(&self) -> u32 {
        1
    }

    /// It runs code that the policy wrote, so a machine without a working sandbox can't have it.
    fn needs_sandbox(&self) -> bool {
        false
    }

    /// A thousand instances of any level are drawn and graded within a second or so: tests draw a twentieth of the
    /// others.
    fn is_quick(&self) -> bool {
        true
    }

    /// What the policy may call.
    fn tools(&self, _level: u32) -> Vec<ToolDef> {
        Vec::new()
    }

    /// A user may speak again, so that it is an episode even without tools.
    fn talks(&self) -> bool {
        false
    }

    /// Bounds of an episode.
    fn limits(&self, _level: u32) -> EpisodeLimits {
        EpisodeLimits::default()
    }

    /// A session, for a family with tools or with a user to talk to; `None` is a task of one turn, which
    /// [`TaskFamily::grade`] grades.
    ///
    /// # Errors
    /// A fault of the service.
    fn open(&self, _level: u32, _gold: &str) -> Result<Option<Box<dyn Session>>, Fault> {
        Ok(None)
    }

    /// Draws an instance of `level`, which lies in [`levels`](TaskFamily::levels); `None` asks for a
    /// fresh attempt.
    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance>;

    /// Grades a completion from which the question's own text has been cut.
    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        integer_answer::grade(gold, completion)
    }

    /// A well-formed answer drawn at random, without working anything out.
    fn random_answer(&self, level: u32, question: &str, draw: &mut Draw) -> String;

    /// The cheapest shortcut known: here, copying the last number of the question.
    fn greedy_answer(&self, question: &str) -> String {
        let last = integer_answer::integers(question).pop();
        last.map_or_else(String::new, |number| number.to_string())
    }
}

/// Canonical content of an arithmetic instance: its operands in ascending order and the result.
///
/// Order is dropped for every operation. `8 - 5` and `8 + 5` differ in the result, so they are two
/// instances; `3 + 5` and `5 + 3` are one.
pub(crate) fn canonical(operands: &[i64], result: i64) -> String {
    let mut operands = operands.to_vec();
    operands.sort_unstable();
    let operands: Vec<String> = operands.iter().map(i64::to_string).collect();
    format!("{} -> {result}", operands.join(" "))
}

/// The split that an instance belongs to.
pub(crate) fn split_of(family: &str, canonical: &str) -> Split {
    let mut hasher = blake3::Hasher::new_derive_key(SPLIT_CONTEXT);
    hasher.update(family.as_bytes());
    hasher.update(&[0]);
    hasher.update(canonical.as_bytes());
    let digest = hasher.finalize();
    let (first, _) = digest
        .as_bytes()
        .split_first_chunk::<8>()
        .expect("a digest has 32 bytes");
    if u64::from_le_bytes(*first).is_multiple_of(HELD_OUT_EVERY) {
        Split::HeldOut
    } else {
        Split::Train
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operand_order_does_not_make_a_new_instance() {
        assert_eq!(canonical(&[3, 5], 8), "3 5 -> 8");
        assert_eq!(canonical(&[5, 3], 8), "3 5 -> 8");
        assert_eq!(canonical(&[5, 3], 2), "3 5 -> 2");
    }

    #[test]
    fn a_quarter_of_the_instances_is_held_out() {
        let held_out = (0..4000)
            .filter(|i| split_of("sums", &canonical(&[*i, 1], i + 1)) == Split::HeldOut)
            .count();
        // 1000 expected, standard deviation 27.
        assert!((900..1100).contains(&held_out), "{held_out}");
    }
}
