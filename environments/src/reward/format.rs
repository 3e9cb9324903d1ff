//! When a completion's format counts as broken, and where a completion's reasoning ends.

use std::fmt;

use super::CompletionFacts;
use crate::episode::Stop;

const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// Why a completion gets past no format gate. Arguments that a tool refuses are no problem of this kind: the policy is told and
/// may mend them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatProblem {
    /// A turn that is not of the chat format, such as a call that does not parse.
    Malformed,
    /// The limit on tokens cut it off.
    Cut,
    /// A limit on turns, calls or time ended it before a final answer.
    Limit,
    /// The reasoning of the last turn was not closed.
    OpenReasoning,
    /// Nothing is said outside of reasoning and calls, and no call handed an answer in.
    NoAnswer,
}

impl fmt::Display for FormatProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FormatProblem::Malformed => "malformed",
            FormatProblem::Cut => "cut",
            FormatProblem::Limit => "limit",
            FormatProblem::OpenReasoning => "open_reasoning",
            FormatProblem::NoAnswer => "no_answer",
        })
    }
}

impl CompletionFacts<'_> {
    /// What is wrong with its format, if anything.
    pub fn format_problem(&self) -> Option<FormatProblem> {
        match self.stop {
            Stop::Malformed => Some(FormatProblem::Malformed),
            Stop::Length => Some(FormatProblem::Cut),
            Stop::Turns | Stop::Calls | Stop::Time => Some(FormatProblem::Limit),
            Stop::Submitted => None,
            Stop::Answered if self.is_reasoning_open => Some(FormatProblem::OpenReasoning),
            Stop::Answered if self.answer.trim().is_empty() => Some(FormatProblem::NoAnswer),
            Stop::Answered => None,
        }
    }
}

/// One turn's text, split where its reasoning ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonedText<'a> {
    /// Between the marks.
    pub reasoning: &'a str,
    /// Behind the first closing mark; all of a text without reasoning.
    pub answer: &'a str,
    /// It was opened and not closed; there is no answer then.
    pub is_open: bool,
}

impl<'a> ReasonedText<'a> {
    /// Splits the text of a turn at `<think>` and `</think>`. `begins_inside`: the template has opened the reasoning.
    pub fn split(text: &'a str, begins_inside: bool) -> ReasonedText<'a> {
        let opened = text.trim_start().strip_prefix(BEGIN);
        let Some(inside) = opened.or(begins_inside.then_some(text)) else {
            return ReasonedText {
                reasoning: "",
                answer: text,
                is_open: false,
            };
        };
        match inside.split_once(END) {
            Some((reasoning, answer)) => ReasonedText {
                reasoning,
                answer,
                is_open: false,
            },
            None => ReasonedText {
                reasoning: inside,
                answer: "",
                is_open: true,
            },
        }
    }
}
