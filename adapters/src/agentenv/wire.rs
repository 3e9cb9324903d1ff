//! What goes over the wire, as types, and what its errors mean.

use std::collections::BTreeMap;

use environments::{EpisodeLimits, Fault, FaultKind, Split, ToolDef};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The protocol's name, in the reply to `env/describe`.
pub(crate) const PROTOCOL: &str = "agentenv/1";
/// Characters of a server's words that reach a fault's reason.
const MAX_REASON_CHARS: usize = 300;
/// Longest name of a tool.
const MAX_TOOL_NAME: usize = 64;

/// Reply to `env/describe`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Description {
    pub(crate) protocol: String,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) levels: Levels,
    pub(crate) deterministic: bool,
}

/// Levels that exist, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Levels {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// Parameters of `env/make`.
#[derive(Serialize)]
pub(crate) struct Make {
    pub(crate) seed: u64,
    pub(crate) level: u32,
    pub(crate) split: Split,
}

/// Reply to `env/make`.
#[derive(Deserialize)]
pub(crate) struct Made {
    pub(crate) task: MadeTask,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct MadeTask {
    pub(crate) id: String,
    pub(crate) messages: Vec<Message>,
    #[serde(default)]
    pub(crate) tools: Vec<Tool>,
    pub(crate) limits: Option<EpisodeLimits>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    System,
    User,
}

/// A tool as MCP lists it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Tool {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) description: String,
    #[serde(rename = "inputSchema")]
    pub(crate) input_schema: Value,
}

/// Reply to `env/open`.
#[derive(Deserialize)]
pub(crate) struct Opened {
    pub(crate) session: String,
    pub(crate) messages: Vec<Message>,
    #[serde(default)]
    pub(crate) tools: Vec<Tool>,
}

/// Reply to `tools/call`, MCP's `CallToolResult`.
#[derive(Deserialize)]
pub(crate) struct CallResult {
    #[serde(default)]
    pub(crate) content: Vec<Block>,
    #[serde(default, rename = "isError")]
    pub(crate) is_error: bool,
    #[serde(default, rename = "_meta")]
    pub(crate) meta: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
pub(crate) struct Block {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

/// Key of `_meta` in a call's parameters: the session.
pub(crate) const SESSION: &str = "agentenv/session";
/// Key of `_meta` in a call's parameters: the call's number.
pub(crate) const CALL: &str = "agentenv/call";
/// Key of `_meta` in a call's result: the answer has been handed in.
pub(crate) const FINAL: &str = "agentenv/final";

impl CallResult {
    /// Its text.
    pub(crate) fn text(&self) -> String {
        let texts = self.content.iter().map(|block| match &*block.kind {
            "text" => block.text.clone(),
            other => format!("[{other} left out]"),
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn is_final(&self) -> bool {
        self.meta.get(FINAL) == Some(&Value::Bool(true))
    }
}

/// Reply to `env/observe`.
#[derive(Deserialize)]
#[serde(tag = "next", rename_all = "snake_case")]
pub(crate) enum Observed {
    User { content: String },
    Done,
}

/// Reply to `env/grade`.
#[derive(Deserialize)]
pub(crate) struct Graded {
    pub(crate) reward: f64,
    pub(crate) extracted: Option<String>,
    #[serde(default)]
    pub(crate) parts: BTreeMap<String, f64>,
    #[serde(default)]
    pub(crate) tamper: Vec<String>,
}

/// A JSON-RPC error.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    #[serde(default)]
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) data: Value,
}

/// No room for another session.
const CAPACITY: i64 = -32000;
const SESSION_LOST: i64 = -32001;
const GRADER_FAILED: i64 = -32002;
const INFRA: i64 = -32003;
const INTERNAL: i64 = -32603;

impl RpcError {
    /// What failed.
    pub(crate) fn kind(&self) -> FaultKind {
        match self.code {
            CAPACITY => FaultKind::Capacity,
            SESSION_LOST | INFRA | INTERNAL => FaultKind::Infra,
            GRADER_FAILED => FaultKind::Grader,
            _ => FaultKind::Protocol,
        }
    }

    /// Milliseconds after which there may be room.
    pub(crate) fn retry_after_ms(&self) -> Option<u64> {
        (self.code == CAPACITY).then(|| self.data["retry_after_ms"].as_u64().unwrap_or(100))
    }
}

/// Why a request got no result.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// The other side is gone, before or after it read the request.
    Lost(String),
    /// No reply in time.
    Timeout,
    /// The reply is an error.
    Refused(RpcError),
    /// The reply is nonsense.
    Nonsense(String),
}

impl CallError {
    /// As a fault of server `name` at `method`.
    pub(crate) fn fault(&self, name: &str, method: &str) -> Fault {
        let (kind, words) = match self {
            CallError::Lost(words) => (FaultKind::Infra, words.clone()),
            CallError::Timeout => (FaultKind::Timeout, "no reply in time".to_string()),
            CallError::Nonsense(words) => (FaultKind::Protocol, words.clone()),
            CallError::Refused(error) => {
                let words: String = error.message.chars().take(MAX_REASON_CHARS).collect();
                (error.kind(), format!("error {}: {words}", error.code))
            }
        };
        Fault::new(kind, format!("server {name}, {method}: {words}"))
    }
}

/// What a task shows, checked.
pub(crate) struct Shown {
    pub(crate) system: Option<String>,
    pub(crate) question: String,
    pub(crate) tools: Vec<ToolDef>,
}

/// # Errors
/// What is wrong with it.
pub(crate) fn shown(messages: &[Message], tools: &[Tool]) -> Result<Shown, String> {
    let (system, question) = match messages {
        [user] if user.role == Role::User => (None, &user.content),
        [system, user] if (system.role, user.role) == (Role::System, Role::User) => {
            (Some(system.content.clone()), &user.content)
        }
        _ => {
            return Err(
                "`messages` must be one of role user, with one of role system before it or none"
                    .to_string(),
            );
        }
    };
    let mut defs: Vec<ToolDef> = Vec::with_capacity(tools.len());
    for tool in tools {
        if let Some(problem) = name_problem(&tool.name) {
            return Err(problem);
        }
        if defs.iter().any(|known| known.name == tool.name) {
            return Err(format!("tool {} comes twice", tool.name));
        }
        defs.push(ToolDef {
            name: tool.name.clone(),
            description: tool.description.clone(),
            parameters: tool.input_schema.clone(),
        });
    }
    Ok(Shown {
        system,
        question: question.clone(),
        tools: defs,
    })
}

/// What is wrong with a tool's name.
pub(crate) fn name_problem(name: &str) -> Option<String> {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let is_fine = !name.is_empty() && name.len() <= MAX_TOOL_NAME && name.bytes().all(is_sound);
    (!is_fine).then(|| {
        format!("the tool's name {name:?} is not 1 to {MAX_TOOL_NAME} letters, digits, `_` and `-`")
    })
}
