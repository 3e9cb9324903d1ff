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

/// What a thread reports.
#[derive(Debug)]
enum Report {
    /// It has taken an episode up.
    Begun(PlayerId, Instant),
    /// It is done with it.
    Done(PlayerId, Answer),
}

type Jobs = Arc<Mutex<Receiver<Job>>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    jobs: Sender<Job>,
    queue: Jobs,
    reports: Receiver<Report>,
    reported: Sender<Report>,
    /// Episodes that are out, each with when a thread took it up; `None` while it waits for one.
    out: BTreeMap<PlayerId, Option<Instant>>,
    max_threads: usize,
    num_threads: usize,
    limit: Duration,
}

impl Pool {
    pub(super) fn new(max_threads: usize, limit_secs: f64) -> Pool {
        let (jobs, queue) = channel();
        let (reported, reports) = channel();
        Pool {
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            reports,
            reported,
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
        self.out.insert(id, None);
        self.start_threads();
        let sent = self.jobs.send(Job { id, place, ask });
        sent.expect("the pool itself holds the other end");
    }

    /// As many threads as there is work for.
    fn start_threads(&mut self) {
        if self.num_threads < self.max_threads.min(self.out.len()) {
            self.start_thread();
        }
    }

    fn start_thread(&mut self) {
        let (queue, reported) = (self.queue.clone(), self.reported.clone());
        let work = move || {
            loop {
                let job = match queue.lock() {
                    Ok(queue) => queue.recv(),
                    Err(_) => return,
                };
                let Ok(Job { id, place, ask }) = job else {
                    return;
                };
                // Waiting for a thread is not the episode's own time.
                if reported.send(Report::Begun(id, Instant::now())).is_err() {
                    return;
                }
                let answer = catch_unwind(AssertUnwindSafe(|| answer(place, ask)));
                let answer = answer.unwrap_or_else(|panic| over(fault_of(&*panic).into(), None));
                if reported.send(Report::Done(id, answer)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("episode".to_string());
        match thread.spawn(work) {
            Ok(_) => self.num_threads += 1,
            // Tried again with the next step.
            Err(error) => tracing::warn!("no further thread for episodes: {error}"),
        }
    }

    /// What has been answered; waits up to `patience` for the first report where nothing has.
    pub(super) fn answers(&mut self, patience: Duration) -> Vec<(PlayerId, Answer)> {
        let mut found = Vec::new();
        if !patience.is_zero() && !self.out.is_empty() {
            match self.reports.recv_timeout(patience) {
                Ok(report) => found.extend(self.heard(report)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        while let Ok(report) = self.reports.try_recv() {
            found.extend(self.heard(report));
        }
        found
    }

    /// The answer that is in `report`, unless it is that of an episode that was given up before.
    fn heard(&mut self, report: Report) -> Option<(PlayerId, Answer)> {
        match report {
            Report::Begun(id, since) => {
                if let Some(begun) = self.out.get_mut(&id) {
                    *begun = Some(since);
                }
                None
            }
            Report::Done(id, answer) => self.out.remove(&id).map(|_| (id, answer)),
        }
    }

    /// Gives up the episodes whose tools have taken too long.
    pub(super) fn expired(&mut self) -> Vec<(PlayerId, Answer)> {
        let is_late = |since: &Option<Instant>| since.is_some_and(|at| at.elapsed() > self.limit);
        let out = self.out.iter().filter(|(_, since)| is_late(since));
        let late: Vec<PlayerId> = out.map(|(&id, _)| id).collect();
        let secs = self.limit.as_secs_f64();
        let mut given_up = Vec::with_capacity(late.len());
        for id in late {
            self.out.remove(&id);
            // Its thread is lost to it.
            self.num_threads = self.num_threads.saturating_sub(1);
            let reason =
                format!("a turn's tools took longer than episodes.turn_timeout_secs ({secs} s)");
            given_up.push((id, over(Verdict::invalid(FaultKind::Timeout, reason), None)));
        }
        // Those that wait get another.
        self.start_threads();
        given_up
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
