//! Samples of several turns: the policy calls tools, they answer, and sampling goes on.
//!
//! ```text
//! Engine --turn ends--> parse --calls--> Episode on a thread of the pool --results--> Engine::resume
//!                                             '--a user speaks--> a new request: the next segment
//!                                             '--the end--> verdict
//! ```
//!
//! [`EpisodeHost`] holds what all episodes share; `driver.rs` moves samples between engine and pool, `talk.rs` is the
//! conversation of one sample, `pool.rs` the threads. What rules an episode has is
//! [`environments::Episode`]'s business.

mod driver;
mod pool;
mod talk;

use std::sync::Arc;

use environments::{DatasetError, Task, TaskKey, Tasks};
use model::Tokenizer;
use model::chat::{ChatOptions, Instructions, Message, ToolDefinition, json::Json};
use serde::{Deserialize, Serialize};

pub use self::driver::Driver;
use crate::error::RolloutError;

/// How episodes are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodesConfig {
    /// Threads that run tools, at most: so many episodes are in a tool at the same time.
    pub threads: usize,
    /// Seconds that the tools of one turn may take before the sample is invalid. Tools have deadlines of their own, which
    /// the policy is told of; this one is for those that hang.
    pub turn_timeout_secs: f64,
}

impl Default for EpisodesConfig {
    fn default() -> EpisodesConfig {
        EpisodesConfig {
            threads: 32,
            turn_timeout_secs: 300.0,
        }
    }
}

impl EpisodesConfig {
    /// Every value out of range, in words that name the key; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.threads == 0 {
            found.push("threads is 0; tools need at least one".to_string());
        }
        let secs = self.turn_timeout_secs;
        if !(secs > 0.0 && secs <= 86_400.0) {
            found.push(format!(
                "turn_timeout_secs ({secs}) must lie above 0 and at most at 86400, a day"
            ));
        }
        found
    }
}

/// What all episodes of a run share.
#[derive(Clone, Debug)]
pub struct EpisodeHost {
    /// Where tasks come from.
    pub tasks: Arc<Tasks>,
    /// The policy's.
    pub tokenizer: Tokenizer,
    /// How conversations are shown.
    pub chat: ChatOptions,
    /// System message of every prompt.
    pub system_prompt: Option<String>,
    /// Threads and deadlines.
    pub config: EpisodesConfig,
}

impl EpisodeHost {
    /// The task that `key` names, where it has turns.
    ///
    /// # Errors
    /// A task that is not there any more.
    fn task_with_turns(&self, key: &TaskKey) -> Result<Option<Arc<Task>>, DatasetError> {
        let task = self.tasks.task(key)?;
        Ok(task.has_turns().then_some(task))
    }
}

/// The conversation that asks `task`: system message (the run's, then the task's own, then its tools) and question.
///
/// # Errors
/// No chat format.
pub fn opening(
    task: &Task,
    system_prompt: Option<&str>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Message>, RolloutError> {
    let content: Vec<&str> = system_prompt
        .into_iter()
        .chain(task.system.as_deref())
        .collect();
    let tools = task.tools.iter().map(|tool| {
        let text = tool.to_json().to_string();
        let function = Json::parse(&text).expect("one library's JSON is another's");
        ToolDefinition { function }
    });
    let instructions = Instructions {
        content: content.join("\n\n"),
        tools: tools.collect(),
        response_format: None,
    };
    let is_empty = instructions.content.is_empty() && instructions.tools.is_empty();
    let system = (!is_empty).then_some(Message::System(instructions));
    let messages = system.into_iter().chain([Message::user(&task.question)]);
    Ok(tokenizer.with_tools_as_text(messages.collect())?)
}

#[cfg(test)]
mod tests;
