//! What a sample is paid by a run's [`RewardConfig`]: the facts of its completion, taken from what was drawn.
//!
//! Tokens are counted as the limit counts them, in the last segment: those of tools' results too.

use environments::reward::ReasonedText;
use environments::{CompletionFacts, Reward, RewardConfig, Stop, Verdict};
use model::chat::{AssistantMessage, Message, Thinking};

use crate::sample::{FinishReason, Prompt};

/// What a completion of one turn is paid; `None` where it is the verdict's reward itself, or there is none.
pub(crate) fn of_turn(
    rewards: Option<&RewardConfig>,
    prompt: &Prompt,
    verdict: &Verdict,
    text: &str,
    thinking: Thinking,
    finish_reason: FinishReason,
    tokens: (usize, usize),
) -> Option<Reward> {
    let rewards = paying(rewards, prompt)?;
    let split = ReasonedText::split(text, thinking == Thinking::On);
    let (num_tokens, max_tokens) = tokens;
    let facts = CompletionFacts {
        question: &prompt.question,
        answer: split.answer,
        reasoning: split.reasoning,
        is_reasoning_open: split.is_open,
        num_tokens,
        max_tokens,
        stop: match finish_reason {
            // Only what is over is graded.
            FinishReason::Stop => Stop::Answered,
            FinishReason::Length | FinishReason::Unfinished => Stop::Length,
        },
    };
    rewards.reward(prompt.task.domain(), verdict, &facts)
}

/// The same of an episode in which `messages` were said and that ended for `stop`.
pub(crate) fn of_episode(
    rewards: Option<&RewardConfig>,
    prompt: &Prompt,
    verdict: &Verdict,
    messages: &[Message],
    stop: Stop,
    tokens: (usize, usize),
) -> Option<Reward> {
    let rewards = paying(rewards, prompt)?;
    let said: Vec<&AssistantMessage> = messages
        .iter()
        .filter_map(|message| match message {
            Message::Assistant(said) => Some(said),
            _ => None,
        })
        .collect();
    let reasoning: Vec<&str> = said.iter().map(|turn| &*turn.reasoning_content).collect();
    let (num_tokens, max_tokens) = tokens;
    let facts = CompletionFacts {
        question: &prompt.question,
        answer: said.last().map_or("", |turn| &turn.content),
        reasoning: &reasoning.join("\n\n"),
        // A turn whose reasoning stays open is malformed, and is not among the messages.
        is_reasoning_open: false,
        num_tokens,
        max_tokens,
        stop,
    };
    rewards.reward(prompt.task.domain(), verdict, &facts)
}

/// The config, where it pays the prompt's domain for more than the verdict.
fn paying<'a>(rewards: Option<&'a RewardConfig>, prompt: &Prompt) -> Option<&'a RewardConfig> {
    rewards.filter(|rewards| !rewards.of(prompt.task.domain()).is_outcome_alone())
}
