//! The task families and their shared interface.

use serde::{Deserialize, Serialize};

use crate::task::{Task, TaskKey, Verdict};

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
}

impl Family {
    /// The instance that `key` names.
    pub fn task(key: &TaskKey) -> Task {
        todo!()
    }

    /// Grades `completion`, the policy's text, exactly.
    pub fn verify(task: &Task, completion: &str) -> Verdict {
        todo!()
    }
}
