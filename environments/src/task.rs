//! What a task is, and what a grader says of an answer.

use serde::{Deserialize, Serialize};

use crate::family::Family;

/// Which half of the instances a key draws from. The halves can't overlap: membership is decided
/// by a hash of the instance itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Instances a run may train on.
    Train,
    /// Instances kept for evaluation.
    HeldOut,
}

/// Names one instance of a task family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskKey {
    /// Task family.
    pub family: Family,
    /// Train or held-out.
    pub split: Split,
    /// Difficulty, 1 is easiest.
    pub level: u32,
    /// Picks the instance; unlimited.
    pub seed: u64,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name.
    pub key: TaskKey,
    /// What the policy is asked, one or a few sentences.
    pub question: String,
    /// A worked solution that earns the full reward: text for warm-up and cold start.
    pub solution: String,
    /// Sealed: what the verifier compares with.
    pub(crate) gold: String,
}

/// What the grader says of a completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// Graded: reward in [0, 1].
    Graded {
        /// 1 is a full solution.
        reward: f64,
        /// The answer found in the completion, if any.
        extracted: Option<String>,
    },
    /// The sample failed through no fault of the policy; it carries no loss and no vote.
    Invalid {
        /// Why.
        reason: String,
    },
}

impl Verdict {
    /// Reward of a graded sample.
    pub fn reward(&self) -> Option<f64> {
        match self {
            Verdict::Graded { reward, .. } => Some(*reward),
            Verdict::Invalid { .. } => None,
        }
    }
}
