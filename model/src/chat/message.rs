//! The turns of a conversation.
//!
//! A [`Message`] is one of five roles, each with what belongs to it and nothing else. Tool calls and
//! tool definitions are those of OpenAI's chat API: the arguments of a call are a JSON object as text.
//! Reading messages from JSON is in `conversation.rs`, writing them for a model in `deepseek_v32.rs`
//! and `template.rs`.

use super::json::Json;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Instructions before the conversation.
    System(Instructions),
    /// A user's turn that carries tools (DeepSeek's search agent).
    Developer(Instructions),
    /// What a user says.
    User {
        /// Text.
        content: String,
    },
    /// What the model answered.
    Assistant(AssistantMessage),
    /// What a tool returned.
    Tool {
        /// Text.
        content: String,
        /// Id of the call that it answers; results are matched by order, not by it.
        tool_call_id: Option<String>,
    },
}

/// Content of a system or developer message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instructions {
    /// Text.
    pub content: String,
    /// Tools that the model may call.
    pub tools: Vec<ToolDefinition>,
    /// JSON schema that answers must follow.
    pub response_format: Option<Json>,
}

/// A tool: the `function` of OpenAI's format, with its name, description and parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolDefinition {
    /// An object.
    pub function: Json,
}

/// An answer of the model. A text that is not there is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AssistantMessage {
    /// Text for the user.
    pub content: String,
    /// Reasoning before it.
    pub reasoning_content: String,
    /// Calls after it.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Names the call within the conversation.
    pub id: Option<String>,
    /// Name of the tool.
    pub name: String,
    /// Arguments: a JSON object as text.
    pub arguments: String,
}

impl Message {
    /// A system message without tools.
    pub fn system(content: impl Into<String>) -> Message {
        Message::System(Instructions::new(content))
    }

    /// A developer message without tools.
    pub fn developer(content: impl Into<String>) -> Message {
        Message::Developer(Instructions::new(content))
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Message {
        Message::User {
            content: content.into(),
        }
    }

    /// An assistant message of content alone.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::Assistant(AssistantMessage {
            content: content.into(),
            ..AssistantMessage::default()
        })
    }

    /// A tool's result.
    pub fn tool(content: impl Into<String>) -> Message {
        Message::Tool {
            content: content.into(),
            tool_call_id: None,
        }
    }

    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub fn role(&self) -> &'static str {
        match self {
            Message::System(_) => "system",
            Message::Developer(_) => "developer",
            Message::User { .. } => "user",
            Message::Assistant(_) => "assistant",
            Message::Tool { .. } => "tool",
        }
    }

    /// Text of the turn.
    pub fn content(&self) -> &str {
        match self {
            Message::System(instructions) | Message::Developer(instructions) => {
                &instructions.content
            }
            Message::Assistant(message) => &message.content,
            Message::User { content } | Message::Tool { content, .. } => content,
        }
    }

    /// Whether a user's turn begins here: the place from which on reasoning is kept.
    pub fn opens_user_turn(&self) -> bool {
        matches!(self, Message::User { .. } | Message::Developer(_))
    }
}

impl Instructions {
    /// Text alone.
    pub fn new(content: impl Into<String>) -> Instructions {
        Instructions {
            content: content.into(),
            ..Instructions::default()
        }
    }
}

impl ToolCall {
    /// The arguments by name, in the order of the text.
    ///
    /// # Errors
    /// What keeps the text from being a JSON object.
    pub fn parsed_arguments(&self) -> Result<Vec<(String, Json)>, String> {
        match Json::parse(&self.arguments) {
            Ok(Json::Object(arguments)) => Ok(arguments),
            Ok(other) => Err(format!(
                "is {}; the arguments of a call are a JSON object as text, such as \"{{\\\"a\\\": 1}}\"",
                other.kind()
            )),
            Err(_) if self.arguments.is_empty() => {
                Err("is empty; a call without arguments has \"{}\"".to_string())
            }
            Err(error) => Err(format!("is not JSON: {error}")),
        }
    }
}

impl AssistantMessage {
    /// The message as an object of OpenAI's format; every key is there, ids are not.
    pub fn to_json(&self) -> Json {
        let text = |text: &str| Json::Text(text.to_string());
        let object = |entries: Vec<(&str, Json)>| {
            let entries = entries.into_iter().map(|(k, v)| (k.to_string(), v));
            Json::Object(entries.collect())
        };
        let calls = self.tool_calls.iter().map(|call| {
            let function = vec![
                ("name", text(&call.name)),
                ("arguments", text(&call.arguments)),
            ];
            object(vec![
                ("type", text("function")),
                ("function", object(function)),
            ])
        });
        object(vec![
            ("role", text("assistant")),
            ("content", text(&self.content)),
            ("reasoning_content", text(&self.reasoning_content)),
            ("tool_calls", Json::List(calls.collect())),
        ])
    }
}
