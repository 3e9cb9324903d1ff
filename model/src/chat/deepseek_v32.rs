//! DeepSeek-V3.2's encoding of conversations, as its release defines it (encoding_dsv32, MIT licence).
//!
//! ```text
//! prompt    = BOS turn*
//! user      = <User> content <Assistant> open            developer: tools and schema before the content
//! assistant = [reasoning </think>] content [calls] EOS   reasoning in thinking mode, of the last user turn
//! tool      = results block, after the last result of its calls: open
//! open      = <think> in thinking mode within the last user turn, else </think>
//! ```
//!
//! The last user turn begins at the last user or developer message. Everything is text: the tokenizer
//! turns the markers into single ids. Names and ids of calls and results are not shown; results are told
//! apart by their order.

use super::json::Json;
use super::message::{AssistantMessage, Instructions, Message, ToolCall};
use super::{ChatError, ChatOptions, HistoryReasoning, Thinking};
use crate::tokenizer::Tokenizer;

mod tools_prompt;

/// Begins a conversation.
pub const BEGIN: &str = "<｜begin▁of▁sentence｜>";
/// Ends an assistant's turn.
pub const END: &str = "<｜end▁of▁sentence｜>";
/// Before what a user says.
pub const USER: &str = "<｜User｜>";
/// After what a user says.
pub const ASSISTANT: &str = "<｜Assistant｜>";
/// Opens reasoning.
pub const THINK: &str = "<think>";
/// Ends reasoning, or says that there is none.
pub const END_THINK: &str = "</think>";
/// Marks the tags of tool calls.
pub const DSML: &str = "｜DSML｜";

/// Every token of the encoding.
pub const MARKERS: [&str; 7] = [BEGIN, END, USER, ASSISTANT, THINK, END_THINK, DSML];

/// A token of DeepSeek-V4, which has all [`MARKERS`] too, but another encoding.
pub(super) const OF_V4: &str = "<｜latest_reminder｜>";

/// Whether `tokenizer` has the tokens of this encoding, each as one id, and is not DeepSeek-V4's.
pub fn is_spoken_by(tokenizer: &Tokenizer) -> bool {
    let is_one_id = |marker: &str| {
        let id = tokenizer.token_id(marker);
        id.is_some_and(|id| tokenizer.encode(marker) == [id])
    };
    MARKERS.into_iter().all(is_one_id) && tokenizer.token_id(OF_V4).is_none()
}

/// The text of `messages[num_context..]`, as it follows on the text of the messages before; only with
/// `num_context` 0 it starts with [`BEGIN`].
///
/// # Errors
/// A message that the encoding can't show where it stands.
///
/// # Panics
/// If `num_context` exceeds the number of messages.
pub fn render(
    messages: &[Message],
    num_context: usize,
    options: &ChatOptions,
) -> Result<String, ChatError> {
    let encoder = Encoder {
        messages,
        options,
        last_user: messages.iter().rposition(Message::opens_user_turn),
    };
    let mut text = String::new();
    if num_context == 0 {
        text.push_str(BEGIN);
    }
    for (index, message) in messages.iter().enumerate().skip(num_context) {
        let turn = encoder.turn(index, message);
        text += &turn.map_err(|problem| ChatError::Message { index, problem })?;
    }
    assert!(
        num_context <= messages.len(),
        "the context is a part of the messages"
    );
    Ok(text)
}

struct Encoder<'a> {
    messages: &'a [Message],
    options: &'a ChatOptions,
    /// Where the last user turn begins; without one, everything belongs to it.
    last_user: Option<usize>,
}

impl Encoder<'_> {
    fn turn(&self, index: usize, message: &Message) -> Result<String, String> {
        match message {
            Message::System(instructions) => {
                Ok(instructions.content.clone() + &appendices(instructions))
            }
            Message::User { content } => Ok(self.user(index, content)),
            Message::Developer(instructions) if instructions.content.is_empty() => {
                Err("has no content; a developer message needs it".to_string())
            }
            Message::Developer(instructions) => {
                let content = format!(
                    "{}\n\n# The user's message is: {}",
                    appendices(instructions),
                    instructions.content
                );
                Ok(self.user(index, &content))
            }
            Message::Assistant(message) => self.assistant(index, message),
            Message::Tool { content, .. } => self.result(index, content),
        }
    }

    fn user(&self, index: usize, content: &str) -> String {
        format!("{USER}{content}{ASSISTANT}{}", self.open(index))
    }

    fn assistant(&self, index: usize, message: &AssistantMessage) -> Result<String, String> {
        let AssistantMessage {
            content,
            reasoning_content,
            tool_calls,
        } = message;
        let is_current = self.last_user.is_none_or(|last| index > last);
        let thinks = self.options.thinking == Thinking::On;
        if thinks && is_current && !has_thought(message) {
            return Err(
                "has neither reasoning_content nor tool_calls; in thinking mode an answer to \
                        the last user message needs one of them"
                    .to_string(),
            );
        }
        let shows_reasoning = match self.options.history {
            _ if !thinks => false,
            HistoryReasoning::LastUserTurn => is_current,
            HistoryReasoning::All => is_current || has_thought(message),
        };
        let mut text = String::new();
        if shows_reasoning {
            text = format!("{reasoning_content}{END_THINK}");
        }
        text += content;
        if !tool_calls.is_empty() {
            text += &calls(tool_calls)?;
        }
        Ok(text + END)
    }

    /// One result; the first opens the block, the last one that the calls ask for closes it.
    fn result(&self, index: usize, content: &str) -> Result<String, String> {
        let mut before = self.messages[..index].iter().enumerate().rev();
        let caller = before.find(|(_, message)| !matches!(message, Message::Tool { .. }));
        let Some((caller, Message::Assistant(AssistantMessage { tool_calls, .. }))) = caller else {
            return Err(
                "is a tool's result, but no assistant message with tool_calls comes before it"
                    .to_string(),
            );
        };
        let (rank, num_calls) = (index - caller, tool_calls.len());
        if rank > num_calls {
            return Err(format!(
                "is result number {rank}, but the assistant message before it makes {num_calls} call(s); \
                 give one result a call"
            ));
        }
        let mut text = String::new();
        if rank == 1 {
            text += "\n\n<function_results>";
        }
        text += &format!("\n<result>{content}</result>");
        if rank == num_calls {
            text += &format!("\n</function_results>\n\n{}", self.open(index));
        }
        Ok(text)
    }

    /// What opens the answer to the message at `index`.
    fn open(&self, index: usize) -> &'static str {
        let is_current = self.last_user.is_none_or(|last| index >= last);
        let is_kept = || match (self.options.history, self.messages.get(index + 1)) {
            (HistoryReasoning::All, Some(Message::Assistant(answer))) => has_thought(answer),
            _ => false,
        };
        match self.options.thinking {
            Thinking::On if is_current || is_kept() => THINK,
            _ => END_THINK,
        }
    }
}

/// Whether thinking mode can have made this answer.
fn has_thought(message: &AssistantMessage) -> bool {
    !message.reasoning_content.is_empty() || !message.tool_calls.is_empty()
}

/// Tools and schema, each after an empty line.
fn appendices(instructions: &Instructions) -> String {
    let mut text = String::new();
    if !instructions.tools.is_empty() {
        text += "\n\n";
        text += &tools_prompt::text(&instructions.tools);
    }
    if let Some(schema) = &instructions.response_format {
        text += &format!(
            "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{schema}"
        );
    }
    text
}

/// The block of tool calls with the empty line before it, as a turn shows it behind its content; nothing without calls.
///
/// # Errors
/// A call whose arguments are no JSON object.
pub fn calls_text(tool_calls: &[ToolCall]) -> Result<String, ChatError> {
    match tool_calls {
        [] => Ok(String::new()),
        _ => calls(tool_calls).map_err(|problem| ChatError::Wrong {
            place: "the turn".to_string(),
            problem,
        }),
    }
}

/// The block of tool calls with the empty line before it.
fn calls(tool_calls: &[ToolCall]) -> Result<String, String> {
    let invokes: Vec<String> = tool_calls
        .iter()
        .enumerate()
        .map(|(i, call)| {
            invoke(call).map_err(|problem| format!("tool_calls[{i}].function{problem}"))
        })
        .collect::<Result<_, _>>()
        .map_err(|problem| format!("has a call that can't be written: {problem}"))?;
    Ok(format!(
        "\n\n<{DSML}function_calls>\n{}\n</{DSML}function_calls>",
        invokes.join("\n")
    ))
}

fn invoke(call: &ToolCall) -> Result<String, String> {
    let ToolCall { name, .. } = call;
    if !is_tool_name(name) {
        return Err(format!(
            ".name {name:?} is empty or has a quote or line break in it"
        ));
    }
    let arguments = call
        .parsed_arguments()
        .map_err(|problem| format!(".arguments {problem}"))?;
    let parameters: Vec<String> = arguments
        .iter()
        .map(|(key, value)| {
            let (is_string, value) = match value {
                Json::Text(text) => (true, text.clone()),
                other => (false, other.to_string()),
            };
            format!(
                "<{DSML}parameter name=\"{key}\" string=\"{is_string}\">{value}</{DSML}parameter>"
            )
        })
        .collect();
    Ok(format!(
        "<{DSML}invoke name=\"{name}\">\n{}\n</{DSML}invoke>",
        parameters.join("\n")
    ))
}

/// Whether `name` can stand between the quotes of a tag.
pub(super) fn is_tool_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['"', '\n'])
}

#[cfg(test)]
mod tests;
