//! One episode's live state: what a family with tools or with a user to talk to implements.
//!
//! Calls reach a session already checked against the schemas of its tools; limits, deadlines and cuts are
//! [`Episode`](crate::Episode)'s. Dropping a session ends it and whatever it started.

use std::fmt;

use serde_json::{Map, Value};

use crate::tool::ToolOutput;
use crate::verdict::{Fault, Verdict};

/// What follows a turn of the assistant without calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A user says this; the policy answers in a new segment.
    User(String),
    /// The episode is over.
    Done,
}

/// What a tool's call left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// The episode goes on.
    Output(ToolOutput),
    /// This was the last call: the answer has been handed in.
    Final(ToolOutput),
}

/// See the module.
pub trait Session: Send {
    /// A turn of the assistant with calls begins.
    fn begin_turn(&mut self) {}

    /// Runs tool `name`, one of the task's, with arguments that its schema allows.
    ///
    /// # Errors
    /// A fault of the service. What the policy did wrong is a [`ToolOutput::error`].
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault>;

    /// Hears what the assistant said in a turn without calls.
    ///
    /// # Errors
    /// A fault of the service.
    fn hear(&mut self, _content: &str) -> Result<Reply, Fault> {
        Ok(Reply::Done)
    }

    /// Grades the episode. `answer` is the content of the assistant's last turn without calls, reasoning left out;
    /// empty where a limit ended the episode before one. Asked once.
    ///
    /// # Errors
    /// A fault of the service.
    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault>;
}

/// Opens the sessions of one task, where they are not a family's: those of another program, or those with tools of
/// other servers.
pub trait OpenSession: fmt::Debug + Send + Sync {
    /// A fresh session.
    ///
    /// # Errors
    /// A fault of the service.
    fn open(&self) -> Result<Box<dyn Session>, Fault>;
}

impl From<ToolOutput> for Called {
    fn from(output: ToolOutput) -> Called {
        Called::Output(output)
    }
}
