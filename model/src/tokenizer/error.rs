//! What can go wrong between text, conversations and token ids.

use std::path::PathBuf;

use crate::chat::{ChatError, CompletionError};

/// A tokenizer could not be read, written or applied.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is damaged or asks for something unknown.
    #[error("{path}: {problem}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A conversation can't be rendered without a template.
    #[error(
        "the tokenizer has no chat template, nor the tokens of DeepSeek-V3.2: use an instruct model, \
         or put a chat_template.jinja beside its tokenizer.json"
    )]
    NoChatTemplate,
    /// The template failed, or refused the conversation.
    #[error("the chat template fails: {0}")]
    ChatTemplate(String),
    /// The template writes a special token that the vocabulary lacks.
    #[error(
        "the chat template writes '{0}', which is not a token of this tokenizer: template and \
         tokenizer.json belong to different models"
    )]
    UnknownSpecialToken(String),
    /// No token has this id.
    #[error("id {0} is no token of this tokenizer")]
    UnknownId(u32),
    /// Templates have their own rule for earlier reasoning.
    #[error(
        "this tokenizer's chat template decides itself which earlier reasoning it shows; only the \
         encoding of DeepSeek-V3.2 can keep all of it"
    )]
    HistoryIsTheTemplates,
    /// The conversation is wrong.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The completion is malformed.
    #[error(transparent)]
    Completion(#[from] CompletionError),
}
