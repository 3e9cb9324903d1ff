//! Conversations to token ids, and completions back to messages.
//!
//! A tokenizer speaks one format: its own Jinja chat template, or the encoding of DeepSeek-V3.2, which has
//! tokens for it but no template. [`Tokenizer::chat`] takes care of which. Where the assistant's turn comes next, its
//! opening is written. Completions are read back by [`Tokenizer::parse_completion`]: of models with a template calls
//! between tags are expected. [`Tokenizer::follow_up`] gives what stands between two turns of the assistant.

mod completion;
mod conversation;
pub mod deepseek_v32;
mod follow_up;
pub mod json;
mod message;
pub mod tagged_calls;
mod template;

pub use self::completion::CompletionError;
pub use self::conversation::Conversation;
pub use self::message::{AssistantMessage, Instructions, Message, ToolCall, ToolDefinition};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Whether the model reasons before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thinking {
    /// The answer comes at once (DeepSeek's mode "chat").
    #[default]
    Off,
    /// Reasoning comes first (mode "thinking").
    On,
}

/// Which reasoning of earlier answers a thinking model sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HistoryReasoning {
    /// That since the last user or developer message: a new one removes all reasoning before it, while
    /// tool results keep it. Tool calls and results always stay. The report's rule (section 3.2.1); the
    /// release's `drop_thinking` follows it in either setting.
    #[default]
    LastUserTurn,
    /// All of it: each answer stays as it was sampled, and a conversation only ever grows at its end. Not
    /// official: DeepSeek-V3.2 was not trained on such prompts.
    All,
}

/// How a conversation is shown to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatOptions {
    /// Mode of the next answer.
    pub thinking: Thinking,
    /// Reasoning of earlier answers.
    pub history: HistoryReasoning,
}

/// A conversation can't be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] json::JsonError),
    /// The JSON is no conversation.
    #[error("{place} {problem}")]
    Wrong {
        /// Which part: `messages[2].content`.
        place: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A message can't be shown where it stands.
    #[error("messages[{index}] {problem}")]
    Message {
        /// Which message, from 0.
        index: usize,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

impl ChatError {
    /// The same error, with message numbers of a conversation without its first `num_added` messages.
    pub fn without_added(self, num_added: usize) -> ChatError {
        match self {
            ChatError::Message { index, problem } if index >= num_added => ChatError::Message {
                index: index - num_added,
                problem,
            },
            other => other,
        }
    }
}

/// How a tokenizer's model is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat<'a> {
    /// [`deepseek_v32`].
    DeepSeekV32,
    /// This Jinja template.
    Template(&'a str),
}

impl Tokenizer {
    /// The tokenizer's chat template; without one the encoding of DeepSeek-V3.2, where the vocabulary has
    /// its tokens.
    ///
    /// # Errors
    /// Neither is there.
    pub fn chat_format(&self) -> Result<ChatFormat<'_>, TokenizerError> {
        match self.chat_template() {
            Some(template) => Ok(ChatFormat::Template(template)),
            None if deepseek_v32::is_spoken_by(self) => Ok(ChatFormat::DeepSeekV32),
            None => Err(TokenizerError::NoChatTemplate),
        }
    }

    /// Token ids of a conversation, with the opening of the assistant's next turn unless the last message
    /// is the assistant's.
    ///
    /// # Errors
    /// No chat format, or a conversation that it can't show.
    pub fn chat(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encode(&self.render_chat(messages, options)?))
    }

    /// The text that [`Tokenizer::chat`] encodes.
    ///
    /// # Errors
    /// No chat format, or a conversation that it can't show.
    pub fn render_chat(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<String, TokenizerError> {
        match self.chat_format()? {
            ChatFormat::Template(template) => template::render(self, template, messages, options),
            ChatFormat::DeepSeekV32 => Ok(deepseek_v32::render(messages, 0, options)?),
        }
    }

    /// The message that a completion says, `text` being what was sampled with its special tokens
    /// ([`Tokenizer::decode_with_special`]) after a prompt with the same `thinking`.
    ///
    /// # Errors
    /// A completion that is not of the format, or a tokenizer whose format has no parser.
    pub fn parse_completion(
        &self,
        text: &str,
        thinking: Thinking,
    ) -> Result<AssistantMessage, TokenizerError> {
        match self.chat_format()? {
            ChatFormat::DeepSeekV32 => Ok(completion::parse(text, thinking)?),
            ChatFormat::Template(_) => {
                let text = self
                    .eos_token()
                    .and_then(|end| text.strip_suffix(end))
                    .unwrap_or(text);
                Ok(tagged_calls::parse(text, thinking)?)
            }
        }
    }
}

#[cfg(test)]
mod tests;
