//! Tasks must pay nothing for answers without any work in them: nothing, the question itself, random words.
//!
//! Graders that others wrote are often lenient in ways that a policy finds within a few steps.

use std::fmt;

use environments::{AssistantTurn, Episode, Fault, Next, Task, Verdict};

/// How often a user who goes on talking is told the same.
const MAX_TURNS: usize = 4;
/// What random answers are made of.
const WORDS: [&str; 16] = [
    "the", "river", "seven", "yes", "no", "true", "false", "0", "1", "42", "blue", "north", "A",
    "B", "none", "maybe",
];

/// A task that pays for garbage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screened {
    /// Its key.
    pub task: String,
    /// Which garbage.
    pub garbage: &'static str,
}

impl fmt::Display for Screened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pays for {}", self.task, self.garbage)
    }
}

/// The first garbage that `task` pays for, if any.
///
/// # Errors
/// A fault of the service.
pub fn paid_garbage(task: &Task) -> Result<Option<Screened>, Fault> {
    let key = task.key.to_string();
    let words = random_words(&key);
    let tagged = format!("<answer>{words}</answer>");
    let repeated = format!("<answer>{}</answer>", task.question);
    for (garbage, answer) in [
        ("an empty answer", ""),
        ("the question itself", &*task.question),
        ("the question itself in answer tags", &*repeated),
        ("random words", &*words),
        ("random words in answer tags", &*tagged),
    ] {
        if reward_of(task, answer)? > 0.0 {
            return Ok(Some(Screened { task: key, garbage }));
        }
    }
    Ok(None)
}

fn reward_of(task: &Task, answer: &str) -> Result<f64, Fault> {
    let mut episode = Episode::open(task)?;
    let turn = AssistantTurn {
        content: answer.to_string(),
        calls: Vec::new(),
    };
    for _ in 0..MAX_TURNS {
        if let Next::Done(_) = episode.step(&turn)? {
            break;
        }
    }
    match episode.grade() {
        Verdict::Graded { reward, .. } => Ok(reward),
        Verdict::Invalid { fault, reason } => Err(Fault::new(fault, reason)),
    }
}

/// Words drawn by the hash of the task's key.
fn random_words(key: &str) -> String {
    let digest = blake3::hash(key.as_bytes());
    let words = digest.as_bytes()[..8]
        .iter()
        .map(|byte| WORDS[usize::from(*byte) % WORDS.len()]);
    words.collect::<Vec<_>>().join(" ")
}
