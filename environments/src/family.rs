//! The task families and their shared interface.
//!
//! An instance is drawn from (family, split, level, seed, attempt); attempts are repeated until the
//! instance's own hash puts it in the wanted split. Nothing else depends on the family: everything
//! that does is behind the trait `TaskFamily`, one file per family.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::agent::{lookup, order_desk, trip_planner};
use crate::arithmetic::{compare, countdown, gcd, products, sums};
use crate::draw::{Draw, Purpose};
use crate::instance::{Domain, Instance, TaskFamily, split_of};
use crate::logic::{colouring, cryptarithm, knights, mines, sat, sokoban, sudoku, zebra};
use crate::math::{
    computed_answer, congruences, diophantine, lattice_paths, matrix_inverse, partitions,
    polynomials, recurrences, waiting_time,
};
use crate::programming::{
    compose_function, efficient_program, invert_program, regex_synthesis, repair_program,
    table_answer,
};
use crate::task::{FamilyKey, Task, Verifier};

/// Attempts before a draw gives up. Of any level at least 1 draw in 100 lands in either split, so that
/// running out has probability (99/100)^10000 = 1e-44.
const MAX_ATTEMPTS: u32 = 10_000;

/// A family of procedurally generated tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Sums and differences.
    Sums,
    /// Products.
    Products,
    /// Which of two numbers is larger.
    Compare,
    /// Greatest common divisor.
    Gcd,
    /// Reach a target from given numbers.
    Countdown,
    /// Plan a trip from what tools tell.
    TripPlanner,
    /// Work a shop's ticket by its policy.
    OrderDesk,
    /// Look a key up.
    Lookup,
    /// Fill a square with digits.
    Sudoku,
    /// Who lives in which house.
    Zebra,
    /// Who is a knight, who a knave.
    Knights,
    /// Satisfy all clauses.
    Sat,
    /// Colour a graph.
    Colouring,
    /// Letters that stand for digits.
    Cryptarithm,
    /// Push boxes onto goals.
    Sokoban,
    /// What the numbers of a minefield prove.
    Mines,
    /// Systems of congruences.
    Congruences,
    /// Linear recurrences modulo a prime.
    Recurrences,
    /// Lattice paths around blocked points.
    LatticePaths,
    /// Restricted partitions.
    Partitions,
    /// Products, compositions and roots of polynomials.
    Polynomials,
    /// Inverse of a matrix modulo a prime.
    MatrixInverse,
    /// Any integer solution of an equation.
    Diophantine,
    /// Expected steps of a Markov chain.
    WaitingTime,
    /// Write a function from its description.
    ComposeFunction,
    /// Find an input for which a program gives a certain output.
    InvertProgram,
    /// Find a regular expression from examples.
    RegexSynthesis,
    /// Correct a function in which some lines are wrong.
    RepairProgram,
    /// Write a function that is fast on long lists.
    EfficientProgram,
    /// Questions whose answer takes a computation, with the code interpreter.
    ComputedAnswer,
    /// Questions about tables that the code interpreter reads.
    TableAnswer,
}

/// A name that no task family has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no task family is called {name:?}; the families are {}", Family::ALL.map(|family| family.name()).join(", "))]
pub struct UnknownFamily {
    /// What was asked for.
    pub name: String,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 31] = [
        Family::Sums,
        Family::Products,
        Family::Compare,
        Family::Gcd,
        Family::Countdown,
        Family::TripPlanner,
        Family::OrderDesk,
        Family::Lookup,
        Family::Sudoku,
        Family::Zebra,
        Family::Knights,
        Family::Sat,
        Family::Colouring,
        Family::Cryptarithm,
        Family::Sokoban,
        Family::Mines,
        Family::Congruences,
        Family::Recurrences,
        Family::LatticePaths,
        Family::Partitions,
        Family::Polynomials,
        Family::MatrixInverse,
        Family::Diophantine,
        Family::WaitingTime,
        Family::ComposeFunction,
        Family::InvertProgram,
        Family::RegexSynthesis,
        Family::RepairProgram,
        Family::EfficientProgram,
        Family::ComputedAnswer,
        Family::TableAnswer,
    ];

    /// What the family does: the only place that knows which file implements it.
    pub(crate) fn definition(self) -> &'static dyn TaskFamily {
        match self {
            Family::Sums => &sums::Sums,
            Family::Products => &products::Products,
            Family::Compare => &compare::Compare,
            Family::Gcd => &gcd::Gcd,
            Family::Countdown => &countdown::Countdown,
            Family::TripPlanner => &trip_planner::TripPlanner,
            Family::OrderDesk => &order_desk::OrderDesk,
            Family::Lookup => &lookup::Lookup,
            Family::Sudoku => &sudoku::Sudoku,
            Family::Zebra => &zebra::Zebra,
            Family::Knights => &knights::Knights,
            Family::Sat => &sat::Sat,
            Family::Colouring => &colouring::Colouring,
            Family::Cryptarithm => &cryptarithm::Cryptarithm,
            Family::Sokoban => &sokoban::Sokoban,
            Family::Mines => &mines::Mines,
            Family::Congruences => &congruences::Congruences,
            Family::Recurrences => &recurrences::Recurrences,
            Family::LatticePaths => &lattice_paths::LatticePaths,
            Family::Partitions => &partitions::Partitions,
            Family::Polynomials => &polynomials::Polynomials,
            Family::MatrixInverse => &matrix_inverse::MatrixInverse,
            Family::Diophantine => &diophantine::Diophantine,
            Family::WaitingTime => &waiting_time::WaitingTime,
            Family::ComposeFunction => &compose_function::ComposeFunction,
            Family::InvertProgram => &invert_program::InvertProgram,
            Family::RegexSynthesis => &regex_synthesis::RegexSynthesis,
            Family::RepairProgram => &repair_program::RepairProgram,
            Family::EfficientProgram => &efficient_program::EfficientProgram,
            Family::ComputedAnswer => &computed_answer::ComputedAnswer,
            Family::TableAnswer => &table_answer::TableAnswer,
        }
    }

    /// Name in configurations and metrics, such as `sums`.
    pub fn name(self) -> &'static str {
        self.definition().name()
    }

    /// What is asked, in a line.
    pub fn summary(self) -> &'static str {
        self.definition().summary()
    }

    /// Levels that exist, easiest first.
    pub fn levels(self) -> RangeInclusive<u32> {
        self.definition().levels()
    }

    /// What it trains.
    pub fn domain(self) -> Domain {
        self.definition().domain()
    }

    /// Grows whenever the same key gives other bytes than before.
    pub fn version(self) -> u32 {
        self.definition().version()
    }

    /// A thousand of its tasks are made and graded within a second or so.
    pub fn is_quick(self) -> bool {
        self.definition().is_quick()
    }

    /// It runs code that the policy wrote; see [`sandbox`](crate::sandbox).
    pub fn needs_sandbox(self) -> bool {
        self.definition().needs_sandbox()
    }

    /// Its tasks are episodes with tools, at some level at least.
    pub fn has_tools(self) -> bool {
        let mut levels = self.levels();
        levels.any(|level| !self.definition().tools(level).is_empty())
    }

    /// The instance that `key` names.
    ///
    /// # Panics
    /// When the family has no such level: check [`Family::levels`] where a level is read.
    pub fn task(key: &FamilyKey) -> Task {
        let instance = instance(key);
        let definition = key.family.definition();
        Task {
            key: key.clone().into(),
            system: instance.system,
            question: instance.question,
            tools: definition.tools(key.level),
            limits: definition.limits(key.level),
            witness: instance.witness,
            solution: instance.solution,
            gold: instance.gold,
            verifier: Verifier::Family(key.family),
        }
    }
}

/// Draws until the wanted split holds the instance.
fn instance(key: &FamilyKey) -> Instance {
    let definition = key.family.definition();
    assert!(
        definition.levels().contains(&key.level),
        "task family {} has levels {:?}, not {}",
        key.family,
        definition.levels(),
        key.level
    );
    (0..MAX_ATTEMPTS)
        .filter_map(|attempt| {
            definition.draw(key.level, &mut Draw::new(Purpose::Instance, key, attempt))
        })
        .find(|instance| split_of(definition.name(), &instance.canonical) == key.split)
        .unwrap_or_else(|| panic!("{key:?}: no instance in this split after {MAX_ATTEMPTS} draws"))
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Family {
    type Err = UnknownFamily;

    fn from_str(name: &str) -> Result<Family, UnknownFamily> {
        let named = Family::ALL.into_iter().find(|family| family.name() == name);
        named.ok_or_else(|| UnknownFamily {
            name: name.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
