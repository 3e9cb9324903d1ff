//! Conversations from JSON: OpenAI's messages plus DeepSeek's keys.
//!
//! A text is a list of messages, or an object with `messages` and, for the whole request, `tools`; such
//! tools go into the leading system message, an empty one where there is none. A key that is null
//! counts as absent. An unknown key that says something, or a known one at the wrong role, is an error:
//! nothing that a file says is dropped silently but `name` and `type`, which no prompt shows.

use super::ChatError;
use super::json::Json;
use super::message::{AssistantMessage, Instructions, Message, ToolCall, ToolDefinition};

/// What each role's message may have, apart from `role`, `content` and `name`.
const ROLES: [(&str, &[&str]); 5] = [
    ("system", &["tools", "response_format"]),
    ("developer", &["tools", "response_format"]),
    ("user", &[]),
    ("assistant", &["reasoning_content", "tool_calls"]),
    ("tool", &["tool_call_id"]),
];

/// A conversation as a file tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Its turns.
    pub messages: Vec<Message>,
    /// Messages put in front of the file's own, to carry the tools of the request: 0 or 1.
    pub num_added: usize,
}

type Entries = [(String, Json)];

impl Conversation {
    /// Reads a list of messages, or an object with `messages` and `tools`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place: `messages[2].tool_calls[0].function.name`.
    pub fn parse(text: &str) -> Result<Conversation, ChatError> {
        let json = Json::parse(text)?;
        let (messages, tools) = match &json {
            Json::List(messages) => (messages, Vec::new()),
            Json::Object(entries) => {
                only_keys(
                    entries,
                    "the file",
                    &["messages", "tools"],
                    "a conversation has",
                )?;
                let Some(Json::List(messages)) = json.get("messages") else {
                    return Err(wrong("messages", "is missing or not a list"));
                };
                (messages, tools(entries, "tools")?)
            }
            other => {
                let problem = format!(
                    "is {}; a conversation is a list of messages, or {{\"messages\": [...], \"tools\": [...]}}",
                    other.kind()
                );
                return Err(wrong("the file", problem));
            }
        };
        let messages = messages.iter().enumerate();
        let messages: Vec<Message> = messages
            .map(|(i, entry)| message(entry, &format!("messages[{i}]")))
            .collect::<Result<_, _>>()?;
        if messages.is_empty() {
            return Err(wrong("messages", "is empty; give at least one message"));
        }
        Conversation::with_tools(messages, tools)
    }

    /// Attaches the tools of a request to the leading system message.
    fn with_tools(
        messages: Vec<Message>,
        tools: Vec<ToolDefinition>,
    ) -> Result<Conversation, ChatError> {
        if tools.is_empty() {
            let num_added = 0;
            return Ok(Conversation {
                messages,
                num_added,
            });
        }
        let (mut leading, others, num_added) = match messages.split_first() {
            Some((Message::System(own), others)) => (own.clone(), others, 0),
            _ => (Instructions::default(), messages.as_slice(), 1),
        };
        if !leading.tools.is_empty() {
            let problem = "are given for the request and in messages[0] too; give them once";
            return Err(wrong("tools", problem));
        }
        leading.tools = tools;
        let messages = [Message::System(leading)].into_iter();
        Ok(Conversation {
            messages: messages.chain(others.iter().cloned()).collect(),
            num_added,
        })
    }
}

fn wrong(place: &str, problem: impl Into<String>) -> ChatError {
    ChatError::Wrong {
        place: place.to_string(),
        problem: problem.into(),
    }
}

fn message(value: &Json, place: &str) -> Result<Message, ChatError> {
    let entries = object(value, place, "a message is an object with role and content")?;
    let role_names = || ROLES.map(|(name, _)| name).join(", ");
    let role = text(entries, place, "role")?
        .ok_or_else(|| wrong(place, format!("has no role; it is one of {}", role_names())))?;
    let Some((_, own)) = ROLES.iter().find(|(name, _)| *name == role) else {
        let problem = format!("is '{role}'; it is one of {}", role_names());
        return Err(wrong(&format!("{place}.role"), problem));
    };
    misplaced_keys(entries, place, &role, own)?;
    let known: Vec<&str> = ["role", "content", "name"]
        .into_iter()
        .chain(own.iter().copied())
        .collect();
    only_keys(
        entries,
        place,
        &known,
        &format!("a message of role {role} has"),
    )?;
    let content = text(entries, place, "content")?;
    let required = |content: Option<String>| {
        content.ok_or_else(|| wrong(place, format!("has no content; a {role} message needs it")))
    };
    Ok(match role.as_str() {
        "system" => Message::System(instructions(entries, place, content.unwrap_or_default())?),
        "developer" => {
            let content = required(content.filter(|content| !content.is_empty()))?;
            Message::Developer(instructions(entries, place, content)?)
        }
        "user" => Message::User {
            content: required(content)?,
        },
        "assistant" => Message::Assistant(AssistantMessage {
            content: content.unwrap_or_default(),
            reasoning_content: text(entries, place, "reasoning_content")?.unwrap_or_default(),
            tool_calls: tool_calls(entries, place)?,
        }),
        _ => Message::Tool {
            content: required(content)?,
            tool_call_id: text(entries, place, "tool_call_id")?,
        },
    })
}

fn instructions(
    entries: &Entries,
    place: &str,
    content: String,
) -> Result<Instructions, ChatError> {
    let response_format = match present(entries, "response_format") {
        Some(schema @ Json::Object(_)) if !schema.is_falsy() => Some(schema.clone()),
        Some(Json::Object(_)) | None => None,
        Some(other) => {
            let problem = format!("is {}; it is a JSON schema, an object", other.kind());
            return Err(wrong(&format!("{place}.response_format"), problem));
        }
    };
    Ok(Instructions {
        content,
        tools: tools(entries, &format!("{place}.tools"))?,
        response_format,
    })
}

/// The key `tools` of `entries`, which lies at `place`.
fn tools(entries: &Entries, place: &str) -> Result<Vec<ToolDefinition>, ChatError> {
    let form =
        "a tool is {\"type\": \"function\", \"function\": {\"name\": ..., \"parameters\": ...}}";
    list(entries, "tools", place)?
        .iter()
        .enumerate()
        .map(|(i, tool)| {
            let place = format!("{place}[{i}]");
            let tool = object(tool, &place, form)?;
            function_type(tool, &place)?;
            let function = present(tool, "function")
                .ok_or_else(|| wrong(&place, format!("has no function; {form}")))?;
            only_keys(tool, &place, &["type", "function"], "a tool has")?;
            let place = format!("{place}.function");
            let entries = object(function, &place, form)?;
            text(entries, &place, "name")?
                .ok_or_else(|| wrong(&place, "has no name; a tool needs it"))?;
            let function = function.clone();
            Ok(ToolDefinition { function })
        })
        .collect()
}

fn tool_calls(entries: &Entries, place: &str) -> Result<Vec<ToolCall>, ChatError> {
    let form = "a call is {\"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": \"{...}\"}}";
    let place = format!("{place}.tool_calls");
    list(entries, "tool_calls", &place)?
        .iter()
        .enumerate()
        .map(|(i, call)| {
            let place = format!("{place}[{i}]");
            let call = object(call, &place, form)?;
            function_type(call, &place)?;
            let function = present(call, "function")
                .ok_or_else(|| wrong(&place, format!("has no function; {form}")))?;
            only_keys(call, &place, &["id", "type", "function"], "a call has")?;
            let id = text(call, &place, "id")?;
            let place = format!("{place}.function");
            let function = object(function, &place, form)?;
            only_keys(
                function,
                &place,
                &["name", "arguments"],
                "a call's function has",
            )?;
            let needed = |key: &str| {
                text(function, &place, key)?
                    .ok_or_else(|| wrong(&place, format!("has no {key}; {form}")))
            };
            let call = ToolCall {
                id,
                name: needed("name")?,
                arguments: needed("arguments")?,
            };
            match call.parsed_arguments() {
                Ok(_) => Ok(call),
                Err(problem) => Err(wrong(&format!("{place}.arguments"), problem)),
            }
        })
        .collect()
}

/// `type`, where it is given, must be `function`.
fn function_type(entries: &Entries, place: &str) -> Result<(), ChatError> {
    match text(entries, place, "type")?.as_deref() {
        None | Some("function") => Ok(()),
        Some(other) => {
            let problem = format!("is '{other}'; \"function\" is the only type there is");
            Err(wrong(&format!("{place}.type"), problem))
        }
    }
}

/// The value of a key that is there and not null.
fn present<'a>(entries: &'a Entries, key: &str) -> Option<&'a Json> {
    let value = entries.iter().find(|(name, _)| name == key);
    value
        .map(|(_, value)| value)
        .filter(|value| **value != Json::Null)
}

fn object<'a>(value: &'a Json, place: &str, form: &str) -> Result<&'a Entries, ChatError> {
    match value {
        Json::Object(entries) => Ok(entries),
        other => Err(wrong(place, format!("is {}; {form}", other.kind()))),
    }
}

fn list<'a>(entries: &'a Entries, key: &str, place: &str) -> Result<&'a [Json], ChatError> {
    match present(entries, key) {
        None => Ok(&[]),
        Some(Json::List(items)) => Ok(items),
        Some(other) => Err(wrong(place, format!("is {}; it is a list", other.kind()))),
    }
}

fn text(entries: &Entries, place: &str, key: &str) -> Result<Option<String>, ChatError> {
    let advice = match key {
        "content" => "; join the parts of a message, or write an object as JSON, into one string",
        "arguments" => "; the arguments of a call are a JSON object as text",
        _ => "; it is a string",
    };
    match present(entries, key) {
        None => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text.clone())),
        Some(other) => {
            let problem = format!("is {}{advice}", other.kind());
            Err(wrong(&format!("{place}.{key}"), problem))
        }
    }
}

/// A key of another role says where it belongs.
fn misplaced_keys(
    entries: &Entries,
    place: &str,
    role: &str,
    own: &[&str],
) -> Result<(), ChatError> {
    for (key, value) in entries {
        let homes: Vec<&str> = ROLES
            .iter()
            .filter(|(_, keys)| keys.contains(&key.as_str()))
            .map(|(name, _)| *name)
            .collect();
        if !homes.is_empty() && !own.contains(&key.as_str()) && !value.is_falsy() {
            let problem = format!(
                "belongs to a message of role {}, not {role}",
                homes.join(" or ")
            );
            return Err(wrong(&format!("{place}.{key}"), problem));
        }
    }
    Ok(())
}

/// Refuses an unknown key that says something.
fn only_keys(entries: &Entries, place: &str, known: &[&str], owner: &str) -> Result<(), ChatError> {
    let unknown = entries
        .iter()
        .find(|(key, value)| !known.contains(&key.as_str()) && !value.is_falsy());
    match unknown {
        None => Ok(()),
        Some((key, _)) => {
            let problem = format!("has the unknown key '{key}'; {owner} {}", known.join(", "));
            Err(wrong(place, problem))
        }
    }
}

#[cfg(test)]
mod tests;
