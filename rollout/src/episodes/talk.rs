//! The conversation of one sample: what is said, as messages, beside the tokens that the engine holds.

use environments::{AssistantTurn, ToolCall, ToolMessage};
use model::chat::Message;

use super::EpisodeHost;
use crate::error::RolloutError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Talk {
    messages: Vec<Message>,
    /// Tokens that the policy drew in each of its turns, for contexts of later segments.
    turns: Vec<Vec<u32>>,
    num_calls: usize,
}

impl Talk {
    pub(super) fn new(opening: Vec<Message>) -> Talk {
        Talk {
            messages: opening,
            turns: Vec::new(),
            num_calls: 0,
        }
    }

    /// All that was said.
    pub(super) fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    /// Takes down a turn of the policy; `None` where it is not of the chat format.
    pub(super) fn hear(&mut self, host: &EpisodeHost, turn: &[u32]) -> Option<AssistantTurn> {
        let text = host.tokenizer.decode_with_special(turn).ok()?;
        let mut message = host
            .tokenizer
            .parse_completion(&text, host.chat.thinking)
            .ok()?;
        for call in &mut message.tool_calls {
            self.num_calls += 1;
            call.id = Some(format!("call_{}", self.num_calls));
        }
        let heard = AssistantTurn {
            content: message.content.clone(),
            calls: message
                .tool_calls
                .iter()
                .map(|call| ToolCall {
                    id: call.id.clone().unwrap_or_default(),
                    name: call.name.clone(),
                    arguments: call.arguments.clone(),
                })
                .collect(),
        };
        self.messages.push(Message::Assistant(message));
        self.turns.push(turn.to_vec());
        Some(heard)
    }

    /// Takes down the results of the turn's calls; the tokens that follow the turn.
    ///
    /// # Errors
    /// A chat format that can't show them.
    pub(super) fn results(
        &mut self,
        host: &EpisodeHost,
        results: Vec<ToolMessage>,
    ) -> Result<Vec<u32>, RolloutError> {
        let results: Vec<Message> = results
            .into_iter()
            .map(|result| Message::Tool {
                content: result.content,
                tool_call_id: Some(result.call_id),
            })
            .collect();
        let shown = host.tokenizer.with_tools_as_text(self.messages.clone())?;
        let given = host.tokenizer.follow_up(&shown, &results, &host.chat)?;
        self.messages.extend(results);
        Ok(given)
    }

    /// Takes down what a user says; the context of the segment that begins, where the policy's own turns are the
    /// tokens it drew but for reasoning that is dropped.
    ///
    /// # Errors
    /// A chat format that can't show it.
    pub(super) fn user(
        &mut self,
        host: &EpisodeHost,
        content: String,
    ) -> Result<Vec<u32>, RolloutError> {
        self.messages.push(Message::user(content));
        let shown = host.tokenizer.with_tools_as_text(self.messages.clone())?;
        let text = host.tokenizer.render_chat(&shown, &host.chat)?;
        Ok(spliced(host, &text, &self.turns))
    }
}

/// The tokens of `text`, with the `turns` that it shows, in order, as they were drawn. One that it shows otherwise, or
/// not at all, is encoded from the text.
fn spliced(host: &EpisodeHost, text: &str, turns: &[Vec<u32>]) -> Vec<u32> {
    let tokenizer = &host.tokenizer;
    let end_of_reasoning = tokenizer.token_id(model::chat::deepseek_v32::END_THINK);
    let (mut tokens, mut rest) = (Vec::new(), text);
    for turn in turns {
        let reasoning = turn.iter().rposition(|&id| Some(id) == end_of_reasoning);
        // The whole turn where the format keeps it, else what comes behind its reasoning.
        let begins = [0].into_iter().chain(reasoning.map(|at| at + 1));
        let found = begins.into_iter().find_map(|begin| {
            let drawn = &turn[begin..];
            let shown = tokenizer.decode_with_special(drawn).ok()?;
            let at = rest.find(&shown).filter(|_| !shown.is_empty())?;
            Some((drawn, at, at + shown.len()))
        });
        if let Some((drawn, at, end)) = found {
            tokens.extend(tokenizer.encode(&rest[..at]));
            tokens.extend_from_slice(drawn);
            rest = &rest[end..];
        }
    }
    tokens.extend(tokenizer.encode(rest));
    tokens
}
