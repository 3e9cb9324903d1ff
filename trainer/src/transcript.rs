//! Worked solutions of tasks with tools as token ids: the witness's calls are made in a fresh episode, and what the tools
//! answer stands between them, as in a rollout.

use environments::{AssistantTurn, Episode, Next, Task};
use model::Tokenizer;
use model::chat::{AssistantMessage, ChatOptions, Message, ToolCall};
use rollout::RolloutError;

use crate::error::TrainerError;
use crate::prompts::SolvedPrompt;

/// `prompt`, which `messages` say, with the worked solution of `task` behind it; `end` ends each turn. Where a call
/// hands the answer in, nothing follows it.
///
/// # Errors
/// A service that fails, a witness that the environment does not accept, or a format that can't show it.
pub fn solved(
    task: &Task,
    mut messages: Vec<Message>,
    mut prompt: SolvedPrompt,
    tokenizer: &Tokenizer,
    end: u32,
) -> Result<SolvedPrompt, TrainerError> {
    let options = ChatOptions::default();
    let failed = |problem: String| TrainerError::Witness {
        task: task.key.to_string(),
        problem,
    };
    if !task.witness.is_empty() {
        let mut episode = Episode::open(task).map_err(|fault| failed(fault.to_string()))?;
        for calls in &task.witness {
            let turn = AssistantTurn {
                content: String::new(),
                calls: calls.clone(),
            };
            let message = Message::Assistant(AssistantMessage {
                tool_calls: calls.iter().map(call_of).collect(),
                ..AssistantMessage::default()
            });
            prompt
                .tokens
                .extend(tokenizer.encode(&written(tokenizer, &message)?));
            prompt.tokens.push(end);
            messages.push(message);
            let shown = tokenizer
                .with_tools_as_text(messages.clone())
                .map_err(RolloutError::from)?;
            let next = episode
                .step(&turn)
                .map_err(|fault| failed(fault.to_string()))?;
            let results = match next {
                Next::Tools(results) => results,
                Next::Done(_) => return Ok(prompt),
                Next::User(_) => return Err(failed("a user answers its calls".to_string())),
            };
            let results: Vec<Message> = results
                .into_iter()
                .map(|r| Message::tool(r.content))
                .collect();
            let given = tokenizer
                .follow_up(&shown, &results, &options)
                .map_err(RolloutError::from)?;
            let begin = prompt.tokens.len();
            prompt.tokens.extend(given);
            prompt.given.push(begin..prompt.tokens.len());
            messages.extend(results);
        }
    }
    prompt.tokens.extend(tokenizer.encode(&task.solution));
    prompt.tokens.push(end);
    Ok(prompt)
}

fn call_of(call: &environments::ToolCall) -> ToolCall {
    ToolCall {
        id: Some(call.id.clone()),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
    }
}

/// A turn of calls alone as the policy writes it, without its stop token.
fn written(tokenizer: &Tokenizer, message: &Message) -> Result<String, TrainerError> {
    Ok(tokenizer.turn_text(message).map_err(RolloutError::from)?)
}
