//! Whether what is asked for can be read off what the policy is shown.
//!
//! Two ways are looked for, both over many tasks, since "3" stands in many a prompt by accident:
//!
//! - **verbatim**: a long secret (the answer that the verifier reads out of the worked solution, the solution, sealed
//!   JSON) stands in its own prompt, and those of other seeds do not stand there as often;
//! - **place**: what follows the same words in every prompt is the answer, however short. Copying it would be a
//!   policy of one line. Limit: the share of tasks that such a copy may solve.
//!
//! Not found: an answer that is hidden (spelt backwards, encoded), and short ones with fewer tasks than about thirty.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::{chance, clipped};
use crate::task::Task;

/// Characters, white space and separators aside, from which on a text is no accident in several prompts.
const LONG: usize = 12;
/// And in a single one.
const VERY_LONG: usize = 24;
/// Other seeds whose secrets are looked for in a prompt.
const NUM_OTHERS: usize = 8;
/// How much more often a secret of 12 characters stands in its own prompt than in others, to be a leak.
const MORE_OFTEN: f64 = 10.0;
/// Tokens before an answer that name its place.
const NUM_CONTEXT: usize = 3;
/// Tokens of an answer that is looked for by its place.
const MAX_ANSWER_TOKENS: usize = 12;
/// Different answers at a place: one that never changes gives nothing away.
const MIN_ANSWERS: usize = 5;
/// Copying may solve this share, as it does where the larger of two numbers is asked for.
const PLACE_LIMIT: f64 = 0.6;

/// What is looked for and where, of one task.
pub(super) struct Shown {
    seed: u64,
    /// System message, question and tools.
    squeezed: String,
    tokens: Vec<String>,
    answer: Vec<String>,
    /// By kind: text for the report, and squeezed.
    secrets: Vec<(&'static str, String, String)>,
}

impl Shown {
    /// Of `task`, whose verifier reads `answer` out of the worked solution.
    pub(super) fn new(seed: u64, task: &Task, answer: Option<&str>) -> Shown {
        let mut text = task.system.clone().unwrap_or_default() + "\n" + &task.question;
        for tool in &task.tools {
            text += &format!("\n{}\n{}", tool.name, tool.description);
            strings(&tool.parameters, &mut text);
        }
        let is_json = task.gold.starts_with(['{', '[']);
        let secrets = [
            ("answer", answer),
            ("worked solution", Some(task.solution.as_str())),
            ("sealed text", Some(task.gold.as_str()).filter(|_| is_json)),
        ];
        Shown {
            seed,
            squeezed: squeezed(&text),
            tokens: tokens(&text),
            answer: tokens(answer.unwrap_or_default()),
            secrets: secrets
                .into_iter()
                .filter_map(|(kind, secret)| Some((kind, secret?.to_string(), squeezed(secret?))))
                .collect(),
        }
    }
}

/// Every text within `value`, keys too.
fn strings(value: &Value, text: &mut String) {
    match value {
        Value::String(own) => *text += &format!("\n{own}"),
        Value::Array(values) => values.iter().for_each(|value| strings(value, text)),
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            *text += &format!("\n{key}");
            strings(value, text);
        }),
        Value::Number(number) => *text += &format!("\n{number}"),
        Value::Null | Value::Bool(_) => {}
    }
}

/// Lower case, without white space, commas, semicolons and quotes.
fn squeezed(text: &str) -> String {
    let is_kept = |c: &char| !c.is_whitespace() && !",;\"'`".contains(*c);
    text.chars()
        .filter(is_kept)
        .flat_map(char::to_lowercase)
        .collect()
}

/// Words, numbers, and every other character alone, in lower case.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut is_in_word = false;
    for c in text.chars().flat_map(char::to_lowercase) {
        match (c.is_alphanumeric(), is_in_word, tokens.last_mut()) {
            (true, true, Some(word)) => word.push(c),
            (true, ..) => tokens.push(c.to_string()),
            (false, ..) if c.is_whitespace() => {}
            (false, ..) => tokens.push(c.to_string()),
        }
        is_in_word = c.is_alphanumeric();
    }
    tokens
}

/// What gives the answers away, with the seed of the first task in which it does.
pub(super) fn leaks(shown: &[Shown]) -> Vec<(Option<u64>, String)> {
    let kinds: BTreeSet<&str> = shown
        .iter()
        .flat_map(|shown| shown.secrets.iter().map(|(kind, ..)| *kind))
        .collect();
    let verbatim = kinds.into_iter().filter_map(|kind| verbatim(shown, kind));
    verbatim.chain(place(shown)).collect()
}

/// Whether secrets of this kind stand in their own prompts.
fn verbatim(shown: &[Shown], kind: &str) -> Option<(Option<u64>, String)> {
    let secret_of = |shown: &'_ Shown| {
        let own = shown.secrets.iter().find(|(own, ..)| *own == kind)?;
        let is_long = own.2.chars().count() >= LONG;
        is_long.then(|| (own.1.clone(), own.2.clone()))
    };
    let secrets: Vec<Option<(String, String)>> = shown.iter().map(secret_of).collect();
    let (mut num_own, mut num_others, mut num_other_hits) = (0, 0, 0);
    let mut hits: Vec<(u64, &str, bool)> = Vec::new();
    for (i, place) in shown.iter().enumerate() {
        let Some((text, own)) = &secrets[i] else {
            continue;
        };
        num_own += 1;
        if place.squeezed.contains(own.as_str()) {
            hits.push((place.seed, text, own.chars().count() >= VERY_LONG));
        }
        // Equal secrets are no comparison: they stand here or there together.
        let others = (1..=NUM_OTHERS.min(shown.len() - 1))
            .filter_map(|step| secrets[(i + step) % shown.len()].as_ref())
            .filter(|(_, other)| other != own);
        for (_, other) in others {
            num_others += 1;
            num_other_hits += usize::from(place.squeezed.contains(other.as_str()));
        }
    }
    if num_others == 0 {
        return None;
    }
    let certain = hits.iter().find(|(.., is_very_long)| *is_very_long);
    let by_chance = (num_other_hits + 1) as f64 / (num_others + 1) as f64;
    let is_frequent = hits.len() as f64 > MORE_OFTEN * by_chance * f64::from(num_own);
    let (seed, text, _) = match certain {
        Some(hit) if num_other_hits == 0 => hit,
        _ if is_frequent => hits.first()?,
        _ => return None,
    };
    let what = format!(
        "the {kind} {:?} stands in the prompt or the tools, as in {} of {num_own} tasks, and those of other seeds in \
         {num_other_hits} of {num_others}",
        clipped(text),
        hits.len()
    );
    Some((Some(*seed), what))
}

/// Where an answer stands: the tokens before it, digits aside, and which time they come.
type Place = (String, usize);

/// Whether there is a place in the prompts where the answer stands.
fn place(shown: &[Shown]) -> Option<(Option<u64>, String)> {
    #[derive(Default)]
    struct Copies {
        num_seen: usize,
        num_right: usize,
        answers: BTreeSet<Vec<String>>,
        first: Option<u64>,
    }
    let solved = || {
        let is_short = |shown: &&Shown| (1..=MAX_ANSWER_TOKENS).contains(&shown.answer.len());
        shown.iter().filter(is_short)
    };
    let mut found: BTreeMap<Place, Copies> = BTreeMap::new();
    for task in solved() {
        for (at, place) in places(&task.tokens).into_iter().enumerate() {
            if task.tokens[at..].starts_with(&task.answer) {
                let copies = found.entry(place).or_default();
                copies.num_right += 1;
                copies.answers.insert(task.answer.clone());
                copies.first.get_or_insert(task.seed);
            }
        }
    }
    found.retain(|_, copies| copies.answers.len() >= MIN_ANSWERS);
    for task in solved() {
        for place in places(&task.tokens) {
            if let Some(copies) = found.get_mut(&place) {
                copies.num_seen += 1;
            }
        }
    }
    let is_leak =
        |copies: &Copies| !chance::may_be(copies.num_right as f64, copies.num_seen, PLACE_LIMIT);
    let (place, copies) = found
        .into_iter()
        .filter(|(_, copies)| is_leak(copies))
        .max_by_key(|(_, copies)| copies.num_right)?;
    let what = format!(
        "what follows {:?} (time {}) in the prompt or the tools is the answer in {} of {} tasks",
        place.0, place.1, copies.num_right, copies.num_seen
    );
    Some((copies.first, what))
}

/// The place of every token.
fn places(tokens: &[String]) -> Vec<Place> {
    let is_number = |token: &str| token.bytes().all(|byte| byte.is_ascii_digit());
    let masked: Vec<&str> = tokens
        .iter()
        .map(|token| if is_number(token) { "#" } else { token })
        .collect();
    let mut times: HashMap<String, usize> = HashMap::new();
    (0..tokens.len())
        .map(|at| {
            let before = masked[at.saturating_sub(NUM_CONTEXT)..at].join(" ");
            let time = times.entry(before.clone()).or_default();
            *time += 1;
            (before, *time)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_marks_are_tokens() {
        assert_eq!(
            tokens("Is x2 = -13, or?"),
            ["is", "x2", "=", "-", "13", ",", "or", "?"]
        );
        assert_eq!(squeezed("Ab, c;\n'D'"), "abcd");
    }

    #[test]
    fn places_are_told_by_the_words_before_and_how_often_they_came() {
        let tokens = tokens("a 1 2 3 4 5");
        let places = places(&tokens);
        assert_eq!(places[0], (String::new(), 1));
        assert_eq!(places[2], ("a #".to_string(), 1));
        assert_eq!(places[4], ("# # #".to_string(), 1));
        assert_eq!(places[5], ("# # #".to_string(), 2));
    }
}
