//! One episode, turn by turn: the rules that hold in every environment, around the [`Session`] that is its own.
//!
//! ```text
//! open -> (turn: calls -> tool messages | no calls -> a user's message or the end)* -> grade
//! ```
//!
//! What the policy does wrong it reads as a tool's message. Limits on turns, calls, bytes and time end an episode
//! as a valid sample, graded as it stands ([`Stop`]). A [`Fault`] of the service ends it as an invalid one. Nothing here
//! knows tokens: `rollout` samples the turns.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::session::{Called, Reply, Session};
use crate::task::Task;
use crate::tool::{ToolBox, ToolCall, ToolDef, ToolMessage, ToolOutput, head_and_tail};
use crate::verdict::{Fault, FaultKind, Verdict};

/// Bounds of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodeLimits {
    /// Turns of the assistant.
    pub max_turns: usize,
    /// Tool calls, over all turns.
    pub max_calls: usize,
    /// Bytes of one tool's message; the middle of a longer one is cut out.
    pub max_result_bytes: usize,
    /// Seconds of the whole episode that the environment may take, sampling left out.
    pub max_secs: f64,
}

impl Default for EpisodeLimits {
    fn default() -> EpisodeLimits {
        EpisodeLimits {
            max_turns: 32,
            max_calls: 64,
            max_result_bytes: 16 << 10,
            max_secs: 1800.0,
        }
    }
}

/// What the assistant said in a turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AssistantTurn {
    /// Text outside of reasoning and calls.
    pub content: String,
    /// Calls, in order.
    pub calls: Vec<ToolCall>,
}

/// Why an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The assistant answered.
    Answered,
    /// A call handed the answer in.
    Submitted,
    /// The limit on turns.
    Turns,
    /// The limit on calls.
    Calls,
    /// The limit on time.
    Time,
    /// A turn that is not of the chat format.
    Malformed,
    /// No token was left for another turn.
    Length,
}

/// What follows a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Results of the turn's calls, in order; the assistant goes on, its reasoning kept.
    Tools(Vec<ToolMessage>),
    /// A user's message; a new segment begins, reasoning dropped.
    User(String),
    /// The episode is over.
    Done(Stop),
}

/// See the module.
pub struct Episode {
    session: Box<dyn Session>,
    tools: ToolBox,
    limits: EpisodeLimits,
    num_turns: usize,
    num_calls: usize,
    num_bad_calls: usize,
    busy: Duration,
    answer: String,
    stop: Option<Stop>,
}

impl std::fmt::Debug for Episode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Episode")
            .field("num_turns", &self.num_turns)
            .field("num_calls", &self.num_calls)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

impl Episode {
    /// Opens a session of `task`.
    ///
    /// # Errors
    /// A fault of the service.
    pub fn open(task: &Task) -> Result<Episode, Fault> {
        let start = Instant::now();
        let mut episode = Episode::of_session(task.open()?, &task.tools, task.limits)?;
        episode.busy = start.elapsed();
        Ok(episode)
    }

    /// An episode of a session that is open.
    ///
    /// # Errors
    /// A tool whose schema is none.
    pub fn of_session(
        session: Box<dyn Session>,
        tools: &[ToolDef],
        limits: EpisodeLimits,
    ) -> Result<Episode, Fault> {
        let tools = ToolBox::new(tools);
        Ok(Episode {
            tools: tools.map_err(|problem| Fault::new(FaultKind::Protocol, problem))?,
            session,
            limits,
            num_turns: 0,
            num_calls: 0,
            num_bad_calls: 0,
            busy: Duration::ZERO,
            answer: String::new(),
            stop: None,
        })
    }

    /// What a whole episode of `task` earns in which the assistant makes `calls`, turn by turn, and then says `answer`,
    /// unless one of the calls has ended it.
    pub fn played(task: &Task, calls: &[Vec<ToolCall>], answer: &str) -> Verdict {
        let play = || {
            let mut episode = Episode::open(task)?;
            let calling = calls.iter().map(|calls| (String::new(), calls.clone()));
            let answering = std::iter::once((answer.to_string(), Vec::new()));
            for (content, calls) in calling.chain(answering) {
                if let Next::Done(_) = episode.step(&AssistantTurn { content, calls })? {
                    break;
                }
            }
            Ok(episode.grade())
        };
        play().unwrap_or_else(|fault: Fault| fault.into())
    }

    /// Answers a turn of the assistant.
    ///
    /// # Errors
    /// A fault of the service.
    ///
    /// # Panics
    /// When the episode is over.
    pub fn step(&mut self, turn: &AssistantTurn) -> Result<Next, Fault> {
        assert!(self.stop.is_none(), "the episode is over");
        let start = Instant::now();
        let next = self.answer(turn);
        self.busy += start.elapsed();
        let mut next = next?;
        if !matches!(next, Next::Done(_)) {
            if self.busy.as_secs_f64() > self.limits.max_secs {
                next = Next::Done(Stop::Time);
            } else if self.num_turns >= self.limits.max_turns {
                next = Next::Done(Stop::Turns);
            }
        }
        if let Next::Done(stop) = next {
            self.stop = Some(stop);
        }
        Ok(next)
    }

    fn answer(&mut self, turn: &AssistantTurn) -> Result<Next, Fault> {
        self.num_turns += 1;
        if turn.calls.is_empty() {
            self.answer.clone_from(&turn.content);
            return Ok(match self.session.hear(&turn.content)? {
                Reply::User(content) => Next::User(content),
                Reply::Done => Next::Done(Stop::Answered),
            });
        }
        self.session.begin_turn();
        let mut messages = Vec::with_capacity(turn.calls.len());
        for call in &turn.calls {
            if self.num_calls == self.limits.max_calls {
                return Ok(Next::Done(Stop::Calls));
            }
            self.num_calls += 1;
            let called = match self.tools.arguments(call) {
                Ok(arguments) => self.session.call(&call.name, &arguments)?,
                Err(problem) => ToolOutput::error(problem).into(),
            };
            let (output, is_final) = match called {
                Called::Output(output) => (output, false),
                Called::Final(output) => (output, true),
            };
            self.num_bad_calls += usize::from(output.is_error);
            if is_final {
                return Ok(Next::Done(Stop::Submitted));
            }
            let (content, is_truncated) =
                head_and_tail(&output.content, self.limits.max_result_bytes);
            messages.push(ToolMessage {
                call_id: call.id.clone(),
                content,
                is_error: output.is_error,
                is_truncated,
            });
        }
        Ok(Next::Tools(messages))
    }

    /// Ends the episode from outside: [`Stop::Malformed`] or [`Stop::Length`].
    pub fn end(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
    }

    /// The verdict on the episode as it stands.
    pub fn grade(&mut self) -> Verdict {
        match self.session.grade(&self.answer) {
            Ok(verdict) => verdict,
            Err(fault) => fault.into(),
        }
    }

    /// Turns of the assistant so far.
    pub fn num_turns(&self) -> usize {
        self.num_turns
    }

    /// Calls so far, and those among them that were errors.
    pub fn num_calls(&self) -> (usize, usize) {
        (self.num_calls, self.num_bad_calls)
    }

    /// Why it ended.
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }
}

#[cfg(test)]
mod tests;
