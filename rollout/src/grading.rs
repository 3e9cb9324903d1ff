//! Grading that outlives bad graders.
//!
//! A [`Grader`] says what a completion is worth. [`GuardedGrader`] calls it on a thread of its own and
//! waits for so long at most: where it panics, hangs, or gives a reward that is no number in [0, 1], the
//! sample is invalid and says why, and everything else goes on. A thread can't be killed. One that hangs is
//! abandoned and another takes its place; when more than `max_hung` hang at once, the rest is left
//! ungraded (invalid, at once), so that what was sampled can be written down before
//! [`GuardedGrader::check`] stops the run. A quick grader costs two thread switches a sample.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use environments::{FaultKind, TaskKey, Tasks, Verdict};
use serde::{Deserialize, Serialize};

use crate::error::RolloutError;
use crate::sample::Prompt;

/// Characters of a panic's message that are kept.
const MAX_MESSAGE_CHARS: usize = 300;

/// What became of a thread that answers no more.
const ENDED: &str = "the grader ended its own thread";

/// Longest `timeout_secs`: a day.
const MAX_TIMEOUT_SECS: f64 = 86_400.0;

/// Says what completions are worth.
pub trait Grader: Send + Sync {
    /// The verdict on `completion`, an answer to `task`. Reasons and panic messages end up in rollout files
    /// and logs: keep the gold answer out of them.
    fn grade(&self, task: &TaskKey, completion: &str) -> Verdict;
}

/// Grades by the verifier that belongs to the task.
impl Grader for Tasks {
    fn grade(&self, task: &TaskKey, completion: &str) -> Verdict {
        match self.task(task) {
            Ok(task) => task.verify(completion),
            Err(error) => Verdict::invalid(FaultKind::Grader, error.to_string()),
        }
    }
}

/// How long graders may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GradingConfig {
    /// Seconds a sample; one that takes longer is invalid.
    pub timeout_secs: f64,
    /// Graders that may hang at the same time; one more stops the run.
    pub max_hung: usize,
}

impl Default for GradingConfig {
    fn default() -> Self {
        GradingConfig {
            timeout_secs: 10.0,
            max_hung: 4,
        }
    }
}

impl GradingConfig {
    /// Every value out of range, in words that name the key; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !(self.timeout_secs > 0.0 && self.timeout_secs <= MAX_TIMEOUT_SECS) {
            found.push(format!(
                "timeout_secs ({}) must lie above 0 and at most at {MAX_TIMEOUT_SECS}, a day",
                self.timeout_secs
            ));
        }
        found
    }
}

/// A grader that can't take the run down with it. Any number of threads may use one at the same time.
pub struct GuardedGrader {
    grader: Arc<dyn Grader>,
    config: GradingConfig,
    threads: Mutex<Threads>,
}

impl std::fmt::Debug for GuardedGrader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let config = &self.config;
        f.debug_struct("GuardedGrader")
            .field("config", config)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Threads {
    idle: Vec<Worker>,
    hung: Vec<JoinHandle<()>>,
    /// Why nothing is graded any more.
    gave_up: Option<String>,
}

/// A thread that grades one completion after the other; it ends when the worker is dropped.
struct Worker {
    jobs: Sender<Job>,
    /// Verdicts, or how the grader panicked.
    outcomes: Receiver<Result<Verdict, String>>,
    thread: JoinHandle<()>,
}

struct Job {
    task: TaskKey,
    completion: String,
}

impl GuardedGrader {
    /// Guards `grader`; `config` must be sound.
    pub fn new(grader: Arc<dyn Grader>, config: &GradingConfig) -> GuardedGrader {
        GuardedGrader {
            grader,
            config: config.clone(),
            threads: Mutex::default(),
        }
    }

    /// The verdict on `completion`, an answer to `prompt`; [`Verdict::Invalid`] where the grader fails.
    pub fn grade(&self, prompt: &Prompt, completion: &str) -> Verdict {
        let verdict = self.verdict(&prompt.task, completion);
        verdict.unwrap_or_else(|problem| {
            Verdict::invalid(
                FaultKind::Grader,
                format!("grading {} (prompt {}): {problem}", prompt.task, prompt.id),
            )
        })
    }

    /// Call this once the graded samples are in safety.
    ///
    /// # Errors
    /// More graders hang than may: nothing is graded any more.
    pub fn check(&self) -> Result<(), RolloutError> {
        match &self.threads().gave_up {
            None => Ok(()),
            Some(last) => Err(RolloutError::GradersHang {
                max_hung: self.config.max_hung,
                last: last.clone(),
            }),
        }
    }

    /// The verdict on `completion`, an answer to `task`.
    ///
    /// # Errors
    /// How the grader failed: it panicked, hung or gave nonsense.
    pub fn verdict(&self, task: &TaskKey, completion: &str) -> Result<Verdict, String> {
        let worker = self.worker()?;
        let job = Job {
            task: task.clone(),
            completion: completion.to_string(),
        };
        worker.jobs.send(job).map_err(|_| ENDED)?;
        let limit = Duration::from_secs_f64(self.config.timeout_secs);
        match worker.outcomes.recv_timeout(limit) {
            Ok(outcome) => {
                self.threads().idle.push(worker);
                sound(outcome?)
            }
            Err(RecvTimeoutError::Timeout) => {
                let secs = self.config.timeout_secs;
                let problem =
                    format!("the grader took longer than grading.timeout_secs ({secs} s)");
                self.abandon(worker, &format!("{task}: {problem}"));
                Err(problem)
            }
            Err(RecvTimeoutError::Disconnected) => Err(ENDED.to_string()),
        }
    }

    /// A thread that waits for work: an idle one, else a new one.
    fn worker(&self) -> Result<Worker, String> {
        let mut threads = self.threads();
        if threads.gave_up.is_some() {
            return Err("not graded, since too many graders hang".to_string());
        }
        match threads.idle.pop() {
            Some(worker) => Ok(worker),
            None => Worker::start(self.grader.clone())
                .map_err(|error| format!("no thread for the grader: {error}")),
        }
    }

    /// Leaves a hanging thread to itself; with one too many, gives up.
    fn abandon(&self, worker: Worker, what: &str) {
        let mut threads = self.threads();
        threads.hung.retain(|thread| !thread.is_finished());
        threads.hung.push(worker.thread);
        if threads.hung.len() > self.config.max_hung {
            threads.gave_up = Some(what.to_string());
        }
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().expect("nothing panics under this lock")
    }
}

impl Worker {
    fn start(grader: Arc<dyn Grader>) -> std::io::Result<Worker> {
        let (jobs, waiting) = channel::<Job>();
        let (finished, outcomes) = channel();
        let work = move || {
            ON_GRADER_THREAD.set(true);
            for job in waiting {
                let call = AssertUnwindSafe(|| grader.grade(&job.task, &job.completion));
                let outcome = catch_unwind(call).map_err(|payload| said(payload.as_ref()));
                // Nobody waits any more for an answer that comes too late.
                if finished.send(outcome).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("grader".to_string());
        Ok(Worker {
            jobs,
            outcomes,
            thread: thread.spawn(work)?,
        })
    }
}

/// `verdict`, unless its reward is none.
fn sound(verdict: Verdict) -> Result<Verdict, String> {
    match verdict {
        // NaN lies in no range.
        Verdict::Graded { reward, .. } if !(0.0..=1.0).contains(&reward) => Err(format!(
            "the grader gave {reward}, which is no reward: a number between 0 and 1"
        )),
        verdict => Ok(verdict),
    }
}

thread_local! {
    static ON_GRADER_THREAD: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of this grader thread was.
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// For a panic hook: whether `info` is a grader's panic, which makes its sample invalid and needs no other
/// report. Its place in the source is kept for the reason.
pub fn is_guarded_panic(info: &PanicHookInfo) -> bool {
    let is_guarded = ON_GRADER_THREAD.get();
    if is_guarded && let Some(location) = info.location() {
        PANIC_PLACE.set(format!(" at {location}"));
    }
    is_guarded
}

/// What a panic's payload says, on one line.
fn said(payload: &(dyn Any + Send)) -> String {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    let line = message.lines().next().unwrap_or_default();
    let line: String = line.chars().take(MAX_MESSAGE_CHARS).collect();
    format!("the grader panicked{}: {line}", PANIC_PLACE.take())
}

#[cfg(test)]
mod tests;
