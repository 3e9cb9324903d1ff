//! Reads a reply strictly: anything that is not exactly a verdict is none.

use std::collections::BTreeMap;

use environments::Verdict;
use serde::Deserialize;

use super::Rubric;

/// Characters of the reason that are kept.
const MAX_REASON_CHARS: usize = 500;

/// A reply of the endpoint; servers add keys of their own.
#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scored {
    reason: String,
    score: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    reason: String,
    met: Vec<bool>,
}

/// The verdict in the body of a reply.
///
/// # Errors
/// Why there is none, in words without the reply's own: those may repeat the answer at any length.
pub(super) fn verdict(body: &[u8], rubric: &Rubric) -> Result<Verdict, String> {
    let reply: Reply = serde_json::from_slice(body)
        .map_err(|_| "a reply that is no chat completion".to_string())?;
    let [choice] = reply.choices.as_slice() else {
        return Err(format!("{} choices instead of one", reply.choices.len()));
    };
    if choice.message.refusal.is_some() {
        return Err("the grading model refused".to_string());
    }
    // Servers that don't say why they stopped are believed to be done.
    if let Some(reason) = choice.finish_reason.as_deref().filter(|r| *r != "stop") {
        let reason: String = reason.chars().take(40).collect();
        return Err(format!(
            "the verdict ended by {reason:?} instead of \"stop\""
        ));
    }
    let content = choice.message.content.as_deref().unwrap_or_default();
    match rubric {
        Rubric::Words(_) => scored(content),
        Rubric::Items(items) => checked(content, items.len()),
    }
}

fn scored(content: &str) -> Result<Verdict, String> {
    let Scored { reason, score } = read(content)?;
    if !(0.0..=1.0).contains(&score) {
        return Err(format!("the score {score} does not lie from 0 to 1"));
    }
    let parts = BTreeMap::from([("score".to_string(), score)]);
    Ok(graded(score, &reason, parts))
}

fn checked(content: &str, num_items: usize) -> Result<Verdict, String> {
    let Checked { reason, met } = read(content)?;
    if met.len() != num_items {
        return Err(format!("{} marks for {num_items} items", met.len()));
    }
    let parts = (1..).zip(&met);
    let parts = parts.map(|(number, &met)| (format!("item_{number}"), f64::from(met)));
    let num_met = met.iter().filter(|met| **met).count();
    Ok(graded(
        num_met as f64 / num_items as f64,
        &reason,
        parts.collect(),
    ))
}

fn read<'a, T: Deserialize<'a>>(content: &'a str) -> Result<T, String> {
    // The place alone is told: the words may be anything.
    serde_json::from_str(content).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("content that is no verdict (line {line}, column {column})")
    })
}

fn graded(reward: f64, reason: &str, parts: BTreeMap<String, f64>) -> Verdict {
    Verdict::Graded {
        reward,
        extracted: Some(reason.chars().take(MAX_REASON_CHARS).collect()),
        parts,
        tamper: Vec::new(),
    }
}
