//! What a task is: its name, what the policy sees of it, and what is sealed.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::dataset::AnswerGrader;
use crate::echo::without_question;
use crate::episode::EpisodeLimits;
use crate::family::Family;
use crate::instance::Domain;
use crate::session::{Called, OpenSession, Session};
use crate::tool::{ToolCall, ToolDef};
use crate::verdict::{Fault, FaultKind, Verdict};

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
    /// A task of an environment outside this program.
    External(ExternalKey),
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

/// Names one task of an environment outside this program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExternalKey {
    /// Name of the environment in the configuration.
    pub environment: String,
    /// Version that the environment itself states.
    pub version: u32,
    /// Train or held-out.
    pub split: Split,
    /// Difficulty, as the environment counts it.
    pub level: u32,
    /// Picks the task.
    pub seed: u64,
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

impl From<ExternalKey> for TaskKey {
    fn from(key: ExternalKey) -> TaskKey {
        TaskKey::External(key)
    }
}

impl TaskKey {
    /// What the task trains; datasets and environments of others are [`Domain::General`].
    pub fn domain(&self) -> Domain {
        match self {
            TaskKey::Family(key) => key.family.domain(),
            TaskKey::Row(_) | TaskKey::External(_) => Domain::General,
        }
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskKey::Family(key) => {
                write!(f, "{} level {} seed {}", key.family, key.level, key.seed)
            }
            TaskKey::Row(key) => key.fmt(f),
            TaskKey::External(key) => key.fmt(f),
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dataset {} row {}", self.dataset, self.row)
    }
}

impl fmt::Display for ExternalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExternalKey {
            environment,
            version,
            level,
            seed,
            ..
        } = self;
        write!(
            f,
            "environment {environment} version {version} level {level} seed {seed}"
        )
    }
}

/// One instance. Its `Debug` gives no answer away.
#[derive(Clone, PartialEq)]
pub struct Task {
    /// Its name.
    pub key: TaskKey,
    /// Rules of the place, for the system message: a policy document, the format of answers.
    pub system: Option<String>,
    /// What the policy is asked.
    pub question: String,
    /// What it may call; none for a task of one turn.
    pub tools: Vec<ToolDef>,
    /// Bounds of its episode.
    pub limits: EpisodeLimits,
    /// The calls, turn by turn, that come before [`Task::solution`] in a worked solution.
    pub witness: Vec<Vec<ToolCall>>,
    /// A worked solution that earns the full reward: text for warm-up and cold start.
    pub solution: String,
    /// Sealed: what the verifier compares with, or what a session is made of.
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
#[derive(Clone, Debug)]
pub(crate) enum Verifier {
    Family(Family),
    Answer(AnswerGrader),
    /// A session of its own, for a task of one turn as well.
    Session(Arc<dyn OpenSession>),
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Verifier) -> bool {
        match (self, other) {
            (Verifier::Family(a), Verifier::Family(b)) => a == b,
            (Verifier::Answer(a), Verifier::Answer(b)) => a == b,
            (Verifier::Session(a), Verifier::Session(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Task {
    /// A task whose sessions `opener` opens: one of an environment outside this program. It has no worked solution.
    pub fn external(
        key: ExternalKey,
        system: Option<String>,
        question: String,
        tools: Vec<ToolDef>,
        limits: EpisodeLimits,
        opener: Arc<dyn OpenSession>,
    ) -> Task {
        Task {
            key: key.into(),
            system,
            question,
            tools,
            limits,
            witness: Vec::new(),
            solution: String::new(),
            gold: String::new(),
            verifier: Verifier::Session(opener),
        }
    }

    /// This task with other tools, run by the sessions that `opener` opens. They may grade by [`Task::verify`] of the
    /// task as it was.
    #[must_use]
    pub fn with_tools(self, tools: Vec<ToolDef>, opener: Arc<dyn OpenSession>) -> Task {
        Task {
            tools,
            verifier: Verifier::Session(opener),
            ..self
        }
    }

    /// Grades `completion`, the policy's text, exactly. Repetitions of the question don't count; but a session of its
    /// own reads the text as it is. For a task of one turn; one with tools is graded by its
    /// [`Episode`](crate::Episode).
    pub fn verify(&self, completion: &str) -> Verdict {
        match &self.verifier {
            Verifier::Family(family) => {
                let answer = without_question(completion, &self.question);
                family.definition().grade(&self.gold, &answer)
            }
            Verifier::Answer(grader) => grader.grade(&self.question, &self.gold, completion),
            Verifier::Session(opener) => {
                let graded = opener.open().and_then(|mut open| open.grade(completion));
                graded.unwrap_or_else(Verdict::from)
            }
        }
    }

    /// Whether it is an episode of several turns: with tools, or with a user who may speak again.
    pub fn has_turns(&self) -> bool {
        let talks = match &self.verifier {
            Verifier::Family(family) => family.definition().talks(),
            Verifier::Answer(_) => false,
            // Who is behind it may always say something.
            Verifier::Session(_) => true,
        };
        talks || !self.tools.is_empty()
    }

    /// A fresh session.
    ///
    /// # Errors
    /// A fault of the service.
    pub(crate) fn open(&self) -> Result<Box<dyn Session>, Fault> {
        let opened = match (&self.verifier, &self.key) {
            (Verifier::Session(opener), _) => Some(opener.open()?),
            (_, TaskKey::Family(key)) => key.family.definition().open(key.level, &self.gold)?,
            (_, TaskKey::Row(_) | TaskKey::External(_)) => None,
        };
        Ok(opened.unwrap_or_else(|| Box::new(OneTurn(self.clone()))))
    }
}

/// The session of a task that is asked and answered: [`Task::verify`].
struct OneTurn(Task);

impl Session for OneTurn {
    fn call(&mut self, name: &str, _: &Map<String, Value>) -> Result<Called, Fault> {
        let problem = format!("{}: no session runs tool {name}", self.0.key);
        Err(Fault::new(FaultKind::Protocol, problem))
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        Ok(self.0.verify(answer))
    }
}
