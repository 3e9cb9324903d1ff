//! An episode for people and programs to read: turns, results, verdict.

use environments::{AssistantTurn, Episode, Fault, Next, Stop, Task, ToolCall, Verdict};
use serde_json::{Value, json};

/// A worked solution as it was played.
#[derive(Debug)]
pub struct Played {
    turns: Vec<(Vec<ToolCall>, Next)>,
    /// The text after the calls, unless one of them ended the episode.
    answer: Option<String>,
    verdict: Verdict,
}

/// Plays the worked solution of `task`.
///
/// # Errors
/// A fault of what the task runs on.
pub fn worked_solution(task: &Task) -> Result<Played, Fault> {
    let mut episode = Episode::open(task)?;
    let mut turns = Vec::new();
    for calls in &task.witness {
        let next = episode.step(&AssistantTurn {
            content: String::new(),
            calls: calls.clone(),
        })?;
        turns.push((calls.clone(), next));
        if episode.stop().is_some() {
            break;
        }
    }
    let mut answer = None;
    if episode.stop().is_none() {
        episode.step(&AssistantTurn {
            content: task.solution.clone(),
            calls: Vec::new(),
        })?;
        answer = Some(task.solution.clone());
    }
    Ok(Played {
        turns,
        answer,
        verdict: episode.grade(),
    })
}

impl Played {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (calls, next) in &self.turns {
            text += "assistant calls:\n";
            for call in calls {
                text += &format!("{} {}\n", call.name, call.arguments);
            }
            text += &said(next);
        }
        if let Some(answer) = &self.answer {
            text += &format!("assistant:\n{answer}\n\n");
        }
        text + &verdict_text(&self.verdict)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let turn = |(calls, next): &(Vec<ToolCall>, Next)| {
            let calls: Vec<Value> = calls
                .iter()
                .map(|call| json!({"name": call.name, "arguments": call.arguments}))
                .collect();
            let results = match next {
                Next::Tools(messages) => messages
                    .iter()
                    .map(
                        |message| json!({"content": message.content, "is_error": message.is_error}),
                    )
                    .collect(),
                _ => Vec::new(),
            };
            json!({"calls": calls, "results": results})
        };
        json!({
            "turns": self.turns.iter().map(turn).collect::<Vec<_>>(),
            "answer": self.answer,
            "verdict": self.verdict,
        })
    }
}

/// What follows a turn, for people.
pub fn said(next: &Next) -> String {
    match next {
        Next::Tools(messages) => {
            let mut text = "tool:\n".to_string();
            for message in messages {
                text += &format!("{}\n", message.content.trim_end());
            }
            text + "\n"
        }
        Next::User(content) => format!("user:\n{content}\n\n"),
        Next::Done(stop) => match stop {
            Stop::Answered => String::new(),
            Stop::Submitted => "The answer is handed in.\n\n".to_string(),
            Stop::Turns => "The episode ends: no more turns.\n\n".to_string(),
            Stop::Calls => "The episode ends: no more calls.\n\n".to_string(),
            Stop::Time => "The episode ends: its time is over.\n\n".to_string(),
            Stop::Malformed | Stop::Length => "The episode ends without an answer.\n\n".to_string(),
        },
    }
}

/// A verdict, a line a part.
pub fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Graded {
            reward,
            extracted,
            parts,
            tamper,
        } => {
            let mut text = format!("reward {reward}");
            text += &match extracted {
                Some(answer) => format!(", for the answer {answer:?}"),
                None => ", no answer found".to_string(),
            };
            for (name, value) in parts {
                text += &format!("\n  {name:<24} {value}");
            }
            for attempt in tamper {
                text += &format!("\n  changes the grading: {attempt}");
            }
            text
        }
        Verdict::Invalid { fault, reason } => format!("not graded: {fault}: {reason}"),
    }
}
