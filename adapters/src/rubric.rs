//! Grades answers against a rubric by a language model behind an OpenAI-compatible endpoint, `POST {url}/chat/completions`.
//!
//! ```text
//! question, rubric, answer between marks -> {"reason": "...", "score": 0..1}         a rubric in words
//!                                        -> {"reason": "...", "met": [true, ...]}    a list of items: the share met
//! ```
//!
//! A reply that is anything else makes no reward: whatever goes wrong on the way (status, time, words that are no verdict, a
//! refusal) is [`Verdict::Invalid`], never 0. The answer is the only thing the policy has a hand in. It goes in as data between
//! marks that it can't know; see `rubric/prompt.rs`. What follows from a grader that can be talked round is not held
//! back here: screen tasks by [`screening`](crate::screening), and watch the reward against length.
//!
//! There is no TLS: the endpoint is this machine's own, or a proxy's on it.

mod ask;
mod prompt;
mod reply;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use environments::{Called, Fault, FaultKind, OpenSession, Session, Task, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::runtime;
use ask::Endpoint;
use prompt::Prompt;

/// Longest `timeout_seconds`: a day.
const MAX_SECS: f64 = 86_400.0;

/// Where the grading model is and what it grades by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RubricConfig {
    /// Up to before `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The variable of this program's environment that holds the key, if the endpoint asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// What an answer is graded by.
    pub rubric: Rubric,
    /// Seconds for a verdict, waiting for room and all attempts included.
    #[serde(default = "a_minute")]
    pub timeout_seconds: f64,
    /// How often a request is repeated that met no server, a status of 429 or one from 500 on.
    #[serde(default = "two")]
    pub retries: u32,
    /// Requests at the same time; more wait.
    #[serde(default = "eight")]
    pub max_in_flight: usize,
    /// Bytes of the answer that are shown; the middle of a longer one is left out, and the grader told so.
    #[serde(default = "some_bytes")]
    pub max_answer_bytes: usize,
}

/// What an answer is graded by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rubric {
    /// In words; the grader gives a score from 0 to 1.
    Words(String),
    /// Items that are met or not; the reward is the share of those that are.
    Items(Vec<String>),
}

fn a_minute() -> f64 {
    60.0
}

fn two() -> u32 {
    2
}

fn eight() -> usize {
    8
}

fn some_bytes() -> usize {
    32 << 10
}

/// Why there is no such grader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RubricError {
    /// A value that can't be.
    #[error("rubric grader: {0}")]
    Config(String),
    /// The key is not there.
    #[error(
        "rubric grader: the variable {0} of api_key_env is not set; set it to the endpoint's key"
    )]
    NoKey(String),
    /// No random bytes, or no HTTP client.
    #[error("rubric grader: {0}")]
    System(String),
}

impl RubricConfig {
    /// Every value out of range, in words that name the key; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.url.starts_with("http://") {
            found.push(format!(
                "url ({:?}) must begin with http://; there is no TLS, so that an endpoint elsewhere needs a proxy on this machine",
                self.url
            ));
        }
        if self.model.is_empty() {
            found.push("model is empty; name the endpoint's model".to_string());
        }
        if !(self.timeout_seconds > 0.0 && self.timeout_seconds <= MAX_SECS) {
            found.push(format!(
                "timeout_seconds ({}) must lie above 0 and at most at {MAX_SECS}, a day",
                self.timeout_seconds
            ));
        }
        if self.max_in_flight == 0 || self.max_in_flight > Semaphore::MAX_PERMITS {
            found.push(format!(
                "max_in_flight ({}) must be at least 1",
                self.max_in_flight
            ));
        }
        if self.max_answer_bytes < 100 {
            found.push(format!(
                "max_answer_bytes ({}) must be at least 100",
                self.max_answer_bytes
            ));
        }
        found.extend(self.rubric.problem());
        found
    }
}

impl Rubric {
    /// What is wrong with it.
    fn problem(&self) -> Option<String> {
        let is_blank = |text: &String| text.trim().is_empty();
        match self {
            Rubric::Words(words) if is_blank(words) => {
                Some("rubric is empty; say what a good answer is".to_string())
            }
            Rubric::Items(items) if items.is_empty() || items.iter().any(is_blank) => {
                Some("rubric has no items, or an empty one".to_string())
            }
            _ => None,
        }
    }
}

/// See the module. Threads may share it.
pub struct RubricGrader {
    config: RubricConfig,
    endpoint: Endpoint,
    room: Arc<Semaphore>,
    /// Keys the marks around answers: nobody knows it, and it is another in each process.
    secret: [u8; 32],
}

impl fmt::Debug for RubricGrader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        f.debug_struct("RubricGrader")
            .field("config", config)
            .finish_non_exhaustive()
    }
}

impl RubricGrader {
    /// A grader; nothing is asked yet.
    ///
    /// # Errors
    /// A value out of range, a key that is not there.
    pub fn new(config: RubricConfig) -> Result<RubricGrader, RubricError> {
        if let Some(problem) = config.problems().into_iter().next() {
            return Err(RubricError::Config(problem));
        }
        let key = config.api_key_env.as_ref().map(|name| {
            let key = std::env::var(name);
            key.map_err(|_| RubricError::NoKey(name.clone()))
        });
        Ok(RubricGrader {
            endpoint: Endpoint::new(&config.url, key.transpose()?).map_err(RubricError::System)?,
            room: Arc::new(Semaphore::new(config.max_in_flight)),
            secret: prompt::secret()
                .map_err(|error| RubricError::System(format!("no random bytes: {error}")))?,
            config,
        })
    }

    /// The verdict on an answer by the configured rubric.
    pub fn grade(&self, question: &str, answer: &str) -> Verdict {
        self.grade_by(&self.config.rubric, question, answer)
    }

    /// The verdict by another rubric, such as a prompt's own. `extracted` is the grader's reason; the parts are `score`, or of a
    /// list `item_1` and so on.
    ///
    /// An answer without a letter or a digit is worth 0 and nobody is asked: graders have been seen to pay for punctuation.
    pub fn grade_by(&self, rubric: &Rubric, question: &str, answer: &str) -> Verdict {
        if let Some(problem) = rubric.problem() {
            return Verdict::invalid(FaultKind::Grader, problem);
        }
        if !answer.chars().any(char::is_alphanumeric) {
            return Verdict::exact(false, None);
        }
        let mark = prompt::mark(&self.secret, question, answer);
        let prompt = Prompt {
            mark: &mark,
            rubric,
            question,
            answer,
            max_answer_bytes: self.config.max_answer_bytes,
        };
        if let Some(verdict) = prompt.tamper() {
            return verdict;
        }
        let body = prompt.request(&self.config.model).to_string();
        match self.ask(body) {
            Ok(reply) => match reply::verdict(&reply, rubric) {
                Ok(verdict) => verdict,
                Err(problem) => {
                    Verdict::invalid(FaultKind::Grader, format!("rubric grader: {problem}"))
                }
            },
            Err(fault) => fault.into(),
        }
    }

    /// The body of a reply.
    fn ask(&self, body: String) -> Result<Vec<u8>, Fault> {
        let secs = self.config.timeout_seconds;
        let (room, endpoint) = (self.room.clone(), self.endpoint.clone());
        let retries = self.config.retries;
        let asked = async move {
            let _place = room.acquire().await.map_err(|error| error.to_string())?;
            endpoint.ask(&body, retries).await
        };
        match runtime::within(Duration::from_secs_f64(secs), asked)? {
            Some(reply) => reply.map_err(|problem| {
                Fault::new(FaultKind::Grader, format!("rubric grader: {problem}"))
            }),
            None => Err(Fault::new(
                FaultKind::Timeout,
                format!("rubric grader: no verdict within timeout_seconds ({secs} s)"),
            )),
        }
    }

    /// `task`, a task of one turn, graded by the rubric and by nothing else.
    ///
    /// # Panics
    /// When the task has several turns: its session is what grades it.
    #[must_use]
    pub fn equip(self: &Arc<Self>, task: Task) -> Task {
        assert!(!task.has_turns(), "{} is no task of one turn", task.key);
        let opener = Arc::new(Graded {
            grader: self.clone(),
            question: task.question.clone(),
        });
        task.with_tools(Vec::new(), opener)
    }
}

/// Opens the sessions of one task.
#[derive(Clone, Debug)]
struct Graded {
    grader: Arc<RubricGrader>,
    question: String,
}

impl OpenSession for Graded {
    fn open(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.clone()))
    }
}

impl Session for Graded {
    fn call(&mut self, name: &str, _: &Map<String, Value>) -> Result<Called, Fault> {
        let problem = format!("no session runs tool {name}");
        Err(Fault::new(FaultKind::Protocol, problem))
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        Ok(self.grader.grade(&self.question, answer))
    }
}
