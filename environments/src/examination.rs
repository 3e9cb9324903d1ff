//! Whether a family is fit to train on: five checks over the training tasks of some seeds.
//!
//! | check | what must hold |
//! |---|---|
//! | same | a key drawn twice gives the same bytes, a completion graded twice the same verdict |
//! | witness | the worked solution, its calls included, earns 1 |
//! | pay | answers without skill earn no more than they may |
//! | leak | what is asked for can't be read off the prompt or the tools |
//! | garbage | hostile text and hostile calls are graded, and earn nothing |
//!
//! A panic is a problem of the check in which it came, and so is a step that takes longer than the deadline. Left out:
//! whether a solution that was found in another way earns 1 too, and whether the text can be understood.

mod chance;
mod examiner;
mod garbage;
mod leak;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use self::examiner::{Examiner, Progress};
use crate::baselines::Baseline;
use crate::family::Family;
use crate::task::{FamilyKey, Split, Task};

/// What can be examined: tasks with worked solutions, and ways of answering them without skill.
pub trait Examined: Send + Sync {
    /// The training task of `level` and `seed`.
    fn task(&self, level: u32, seed: u64) -> Task;

    /// What `baseline` answers to it.
    fn answer(&self, baseline: Baseline, level: u32, seed: u64, task: &Task) -> String;
}

impl Examined for Family {
    fn task(&self, level: u32, seed: u64) -> Task {
        Family::task(&train_key(*self, level, seed))
    }

    fn answer(&self, baseline: Baseline, level: u32, seed: u64, task: &Task) -> String {
        baseline.answer(&train_key(*self, level, seed), &task.question)
    }
}

fn train_key(family: Family, level: u32, seed: u64) -> FamilyKey {
    FamilyKey {
        family,
        split: Split::Train,
        level,
        seed,
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The same key, the same bytes; the same completion, the same verdict.
    Same,
    /// The worked solution earns 1.
    Witness,
    /// Answers without skill earn next to nothing.
    Pay,
    /// The answer can't be read off the prompt.
    Leak,
    /// Garbage is graded and earns nothing.
    Garbage,
}

impl Check {
    /// Every check, in the order in which they are made.
    pub const ALL: [Check; 5] = [
        Check::Same,
        Check::Witness,
        Check::Pay,
        Check::Leak,
        Check::Garbage,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Check::Same => "same",
            Check::Witness => "witness",
            Check::Pay => "pay",
            Check::Leak => "leak",
            Check::Garbage => "garbage",
        }
    }

    /// What to do where it fails.
    pub fn advice(self) -> &'static str {
        match self {
            Check::Same => {
                "take every random choice from the key's own stream, and order what comes out of hash maps; no clock, \
                 no counter, no address may decide anything"
            }
            Check::Witness => {
                "mend the verifier, or the form in which solutions are written: a policy that is right would not be paid"
            }
            Check::Pay => {
                "mend the verifier, or ask for more: a policy finds what is paid without skill before all else"
            }
            Check::Leak => "take the answer out of the prompt, the system message and the tools",
            Check::Garbage => {
                "make the verifier and the tools bound their work on any text, and pay for answers alone"
            }
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Of which check.
    pub check: Check,
    /// With which seed; `None` where it takes many to see it.
    pub seed: Option<u64>,
    /// What was seen. It may hold an answer.
    pub what: String,
}

/// How thorough an examination is.
#[derive(Clone, Copy, Debug)]
pub struct Thoroughness {
    /// Seeds 0 to this, without it.
    pub num_seeds: u64,
    /// What one draw, or the grading of one completion, may take.
    pub deadline: Duration,
}

/// What was found out about one level.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Examination {
    /// The level.
    pub level: u32,
    /// Seeds 0 to this, without it.
    pub num_seeds: u64,
    /// Mean reward of each of [`Baseline::ALL`]; `None` where nothing was graded.
    pub rewards: [Option<f64>; 4],
    /// What does not hold, in the order of the checks.
    pub problems: Vec<Problem>,
    /// BLAKE3 of all its tasks, as [`fingerprint`].
    pub fingerprint: String,
}

impl Examination {
    /// Whether `check` found nothing.
    pub fn passes(&self, check: Check) -> bool {
        self.problems.iter().all(|problem| problem.check != check)
    }

    /// Compares with the [`fingerprint`] that another process made of the same tasks.
    pub fn compare(&mut self, elsewhere: &str) {
        if self.fingerprint != elsewhere && self.passes(Check::Same) {
            let what = "another process draws other tasks from the same keys".to_string();
            let problem = Problem {
                check: Check::Same,
                seed: None,
                what,
            };
            self.problems.insert(0, problem);
        }
    }
}

/// BLAKE3, in hexadecimal digits, of the tasks of seeds `0..num_seeds`: equal on every machine and in every process.
pub fn fingerprint(examined: &dyn Examined, level: u32, num_seeds: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    (0..num_seeds).for_each(|seed| absorb(&mut hasher, &examined.task(level, seed)));
    hasher.finalize().to_hex().to_string()
}

/// The parts of a task, by name, as text.
fn parts_of(task: &Task) -> [(&'static str, String); 7] {
    let tools: Vec<String> = task
        .tools
        .iter()
        .map(|tool| tool.to_json().to_string())
        .collect();
    [
        ("system message", task.system.clone().unwrap_or_default()),
        ("question", task.question.clone()),
        ("tools", tools.join("\n")),
        ("limits", format!("{:?}", task.limits)),
        ("witness", format!("{:?}", task.witness)),
        ("solution", task.solution.clone()),
        ("sealed answer", task.gold.clone()),
    ]
}

fn absorb(hasher: &mut blake3::Hasher, task: &Task) {
    for (_, text) in parts_of(task) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
}

/// Makes every check on one level.
pub fn examine(examined: Arc<dyn Examined>, level: u32, thoroughness: Thoroughness) -> Examination {
    let (sender, receiver) = channel();
    // A thread that hangs can't be stopped; it is left behind and the problem is told.
    let thread = thread::Builder::new().spawn(move || {
        let examiner = Examiner::new(examined, level, thoroughness.num_seeds, sender.clone());
        let found = examiner.examination();
        // Nobody listens any more where it took too long.
        let _ = sender.send(Progress::Done(found));
    });
    let (mut check, mut seed) = (Check::Same, None);
    let what = loop {
        match receiver.recv_timeout(thoroughness.deadline) {
            Ok(Progress::At(now, of)) => (check, seed) = (now, of),
            Ok(Progress::Done(examination)) => return examination,
            Err(RecvTimeoutError::Timeout) => {
                let secs = thoroughness.deadline.as_secs_f64();
                break format!("took longer than {secs} s; nothing was examined after it");
            }
            Err(RecvTimeoutError::Disconnected) => {
                break match &thread {
                    Ok(_) => "the thread of the examination ended by itself".to_string(),
                    Err(error) => format!("no thread for the examination: {error}"),
                };
            }
        }
    };
    Examination {
        level,
        num_seeds: thoroughness.num_seeds,
        problems: vec![Problem { check, seed, what }],
        ..Examination::default()
    }
}

/// The beginning of `text`, for a line.
fn clipped(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests;
