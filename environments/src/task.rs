//! What a task is, and what a grader says of an answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dataset::AnswerGrader;
use crate::echo::without_question;
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

/// Names a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKey {
    /// An instance of a task family.
    Family(FamilyKey),
    /// A row of a dataset.
    Row(RowKey),
}

/// Names one instance of a task family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FamilyKey {
    /// Task family.
    pub family: Family,
    /// Train or held-out.
    pub split: Split,
    /// Difficulty, 1 is easiest.
    pub level: u32,
    /// Picks the instance; unlimited.
    pub seed: u64,
}

/// Names one row of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowKey {
    /// Name of the dataset.
    pub dataset: String,
    /// Train or held-out.
    pub split: Split,
    /// Line of the JSONL file or row of the parquet file, from 1.
    pub row: u64,
}

impl From<FamilyKey> for TaskKey {
    fn from(key: FamilyKey) -> TaskKey {
        TaskKey::Family(key)
    }
}

impl From<RowKey> for TaskKey {
    fn from(key: RowKey) -> TaskKey {
        TaskKey::Row(key)
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskKey::Family(key) => {
                write!(f, "{} level {} seed {}", key.family, key.level, key.seed)
            }
            TaskKey::Row(key) => key.fmt(f),
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dataset {} row {}", self.dataset, self.row)
    }
}

/// One instance. Its `Debug` gives no answer away.
#[derive(Clone, PartialEq, Eq)]
pub struct Task {
    /// Its name.
    pub key: TaskKey,
    /// What the policy is asked.
    pub question: String,
    /// A worked solution that earns the full reward: text for warm-up and cold start.
    pub solution: String,
    /// Sealed: what the verifier compares with.
    pub(crate) gold: String,
    pub(crate) verifier: Verifier,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("key", &self.key)
            .field("question", &self.question)
            .finish_non_exhaustive()
    }
}

/// What grades the answers to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verifier {
    Family(Family),
    Answer(AnswerGrader),
}

impl Task {
    /// Grades `completion`, the policy's text, exactly. Repetitions of the question don't count.
    pub fn verify(&self, completion: &str) -> Verdict {
        match self.verifier {
            Verifier::Family(family) => {
                let answer = without_question(completion, &self.question);
                family.definition().grade(&self.gold, &answer)
            }
            Verifier::Answer(grader) => grader.grade(&self.question, &self.gold, completion),
        }
    }
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
