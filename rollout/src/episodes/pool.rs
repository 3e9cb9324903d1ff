//! Threads that run tools and graders of episodes.
//!
//! A thread takes an episode with a turn and gives it back with what follows. A tool that hangs can't be killed: its
//! sample is given up ([`Pool::expired`]), its thread left behind, and another takes its place.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use environments::{AssistantTurn, Episode, Fault, FaultKind, Next, Stop, Task, Verdict};

use crate::sample::EpisodeRecord;

/// One sample by its prompt and its index within the group.
pub(super) type PlayerId = (u64, usize);

/// What an episode is asked next.
#[derive(Debug)]
pub(super) enum Ask {
    /// To answer a turn.
    Step(AssistantTurn),
    /// To end, and be graded as it stands.
    End(Stop),
}

/// An episode at work, or one to be opened.
#[derive(Debug)]
pub(super) enum Place {
    New(Arc<Task>),
    Open(Box<Episode>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// It goes on.
    Next(Box<Episode>, Next),
    /// It is over.
    Over(Verdict, EpisodeRecord),
}

#[derive(Debug)]
struct Job {
    id: PlayerId,
    place: Place,
    ask: Ask,
}

type Jobs = Arc<Mutex<Receiver<Job>>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    jobs: Sender<Job>,
    queue: Jobs,
    answers: Receiver<(PlayerId, Answer)>,
    answered: Sender<(PlayerId, Answer)>,
    /// Since when each episode is out.
    out: BTreeMap<PlayerId, Instant>,
    max_threads: usize,
    num_threads: usize,
    limit: Duration,
}

impl Pool {
    pub(super) fn new(max_threads: usize, limit_secs: f64) -> Pool {
        let (jobs, queue) = channel();
        let (answered, answers) = channel();
        Pool {
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            answers,
            answered,
            out: BTreeMap::new(),
            max_threads,
            num_threads: 0,
            limit: Duration::from_secs_f64(limit_secs),
        }
    }

    /// Episodes that are out.
    pub(super) fn num_out(&self) -> usize {
        self.out.len()
    }

    /// Hands an episode to a thread.
    pub(super) fn ask(&mut self, id: PlayerId, place: Place, ask: Ask) {
        self.out.insert(id, Instant::now());
        if self.num_threads < self.max_threads.min(self.out.len()) {
            self.start_thread();
        }
        let sent = self.jobs.send(Job { id, place, ask });
        sent.expect("the pool itself holds the other end");
    }

    fn start_thread(&mut self) {
        let (queue, answered) = (self.queue.clone(), self.answered.clone());
        let work = move || {
            loop {
                let job = match queue.lock() {
                    Ok(queue) => queue.recv(),
                    Err(_) => return,
                };
                let Ok(Job { id, place, ask }) = job else {
                    return;
                };
                let answer = catch_unwind(AssertUnwindSafe(|| answer(place, ask)));
                let answer = answer.unwrap_or_else(|panic| over(fault_of(&*panic).into(), None));
                if answered.send((id, answer)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("episode".to_string());
        match thread.spawn(work) {
            Ok(_) => self.num_threads += 1,
            // With none at all the deadline will say so.
            Err(error) => tracing::warn!("no further thread for episodes: {error}"),
        }
    }

    /// What has been answered; waits up to `patience` for the first where nothing has.
    pub(super) fn answers(&mut self, patience: Duration) -> Vec<(PlayerId, Answer)> {
        let mut found = Vec::new();
        if !patience.is_zero() && !self.out.is_empty() {
            match self.answers.recv_timeout(patience) {
                Ok(answer) => found.push(answer),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        found.extend(self.answers.try_iter());
        // One that was given up before has no place here any more.
        found.retain(|(id, _)| self.out.remove(id).is_some());
        found
    }

    /// Gives up the episodes whose tools have taken too long.
    pub(super) fn expired(&mut self) -> Vec<(PlayerId, Answer)> {
        let is_late = |since: &Instant| since.elapsed() > self.limit;
        let late: Vec<PlayerId> = self
            .out
            .iter()
            .filter(|(_, since)| is_late(since))
            .map(|(&id, _)| id)
            .collect();
        let secs = self.limit.as_secs_f64();
        let given_up = late.into_iter().map(|id| {
            self.out.remove(&id);
            // Its thread is lost to it.
            self.num_threads = self.num_threads.saturating_sub(1);
            let reason =
                format!("a turn's tools took longer than episodes.turn_timeout_secs ({secs} s)");
            (id, over(Verdict::invalid(FaultKind::Timeout, reason), None))
        });
        given_up.collect()
    }
}

fn answer(place: Place, ask: Ask) -> Answer {
    let opened = match place {
        Place::New(task) => Episode::open(&task).map(Box::new),
        Place::Open(episode) => Ok(episode),
    };
    let mut episode = match opened {
        Ok(episode) => episode,
        Err(fault) => return over(fault.into(), None),
    };
    match ask {
        Ask::Step(turn) => match episode.step(&turn) {
            Ok(Next::Done(_)) => {}
            Ok(next) => return Answer::Next(episode, next),
            Err(fault) => return over(fault.into(), Some(&episode)),
        },
        Ask::End(stop) => episode.end(stop),
    }
    over(episode.grade(), Some(&episode))
}

fn over(verdict: Verdict, episode: Option<&Episode>) -> Answer {
    let verdict = match verdict.reward() {
        // NaN lies in no range.
        Some(reward) if !(0.0..=1.0).contains(&reward) => {
            let reason =
                format!("the grader gave {reward}, which is no reward: a number between 0 and 1");
            Verdict::invalid(FaultKind::Grader, reason)
        }
        _ => verdict,
    };
    let (num_calls, num_bad_calls) = episode.map_or((0, 0), Episode::num_calls);
    let record = EpisodeRecord {
        num_turns: episode.map_or(0, Episode::num_turns),
        num_calls,
        num_bad_calls,
        stop: episode.and_then(Episode::stop),
    };
    Answer::Over(verdict, record)
}

fn fault_of(panic: &(dyn std::any::Any + Send)) -> Fault {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
    let message: String = message.unwrap_or("").chars().take(300).collect();
    Fault::new(
        FaultKind::Infra,
        format!("the environment panicked: {message}"),
    )
}
