//! The checks of one level, one after the other, on a thread of their own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::{
    Check, Examination, Examined, Problem, absorb, chance, clipped, garbage, leak, parts_of,
};
use crate::baselines::Baseline;
use crate::episode::Episode;
use crate::task::Task;
use crate::verdict::Verdict;

/// Seeds whose tasks are given garbage: it is the same for all.
const NUM_GARBAGE_SEEDS: u64 = 3;
/// Problems of a check that are told one by one.
const MAX_TOLD: usize = 3;

/// What the examining thread tells.
pub(super) enum Progress {
    /// Work of this check on this seed begins.
    At(Check, Option<u64>),
    /// All was examined.
    Done(Examination),
}

/// See the module.
pub(super) struct Examiner {
    examined: Arc<dyn Examined>,
    level: u32,
    num_seeds: u64,
    problems: Vec<Problem>,
    progress: Sender<Progress>,
}

impl Examiner {
    /// Of the tasks of seeds `0..num_seeds`; what it is at is sent to `progress`.
    pub(super) fn new(
        examined: Arc<dyn Examined>,
        level: u32,
        num_seeds: u64,
        progress: Sender<Progress>,
    ) -> Examiner {
        Examiner {
            examined,
            level,
            num_seeds,
            problems: Vec::new(),
            progress,
        }
    }

    /// Makes every check.
    pub(super) fn examination(mut self) -> Examination {
        let tasks = self.drawn();
        let mut hasher = blake3::Hasher::new();
        tasks.iter().for_each(|(_, task)| absorb(&mut hasher, task));
        let answers: Vec<Option<String>> = tasks
            .iter()
            .map(|(seed, task)| self.solved(*seed, task))
            .collect();
        let rewards = Baseline::ALL.map(|baseline| self.paid(baseline, &tasks));
        self.leaks(&tasks, &answers);
        for (seed, task) in tasks.iter().filter(|(seed, _)| *seed < NUM_GARBAGE_SEEDS) {
            self.survives_garbage(*seed, task);
        }
        Examination {
            level: self.level,
            num_seeds: self.num_seeds,
            rewards,
            problems: told(self.problems),
            fingerprint: hasher.finalize().to_hex().to_string(),
        }
    }

    fn problem(&mut self, check: Check, seed: impl Into<Option<u64>>, what: impl Into<String>) {
        self.problems.push(Problem {
            check,
            seed: seed.into(),
            what: what.into(),
        });
    }

    /// Does `work`; `None`, and a problem, where it panics.
    fn step<T>(
        &mut self,
        check: Check,
        seed: impl Into<Option<u64>>,
        work: impl FnOnce() -> T,
    ) -> Option<T> {
        let seed = seed.into();
        let _ = self.progress.send(Progress::At(check, seed));
        // What a panic left half done is a task or a session of its own, and dropped.
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(outcome) => Some(outcome),
            Err(payload) => {
                self.problem(check, seed, format!("it panicked: {}", said(&*payload)));
                None
            }
        }
    }

    /// Every task, drawn twice.
    fn drawn(&mut self) -> Vec<(u64, Task)> {
        let (examined, level) = (self.examined.clone(), self.level);
        let mut tasks = Vec::new();
        for seed in 0..self.num_seeds {
            let mut draw = || self.step(Check::Same, seed, || examined.task(level, seed));
            let (Some(task), Some(again)) = (draw(), draw()) else {
                continue;
            };
            let parts = parts_of(&task).into_iter().zip(parts_of(&again));
            let differing: Vec<&str> = parts
                .filter(|((_, text), (_, again))| text != again)
                .map(|((name, _), _)| name)
                .collect();
            if !differing.is_empty() {
                let what = format!("drawn again, it has another {}", differing.join(", "));
                self.problem(Check::Same, seed, what);
            }
            tasks.push((seed, task));
        }
        tasks
    }

    /// The answer that the verifier reads out of the worked solution.
    fn solved(&mut self, seed: u64, task: &Task) -> Option<String> {
        let play = || Episode::played(task, &task.witness, &task.solution);
        let verdict = self.step(Check::Witness, seed, play)?;
        let again = self.step(Check::Same, seed, play)?;
        if verdict != again {
            let what = "the worked solution, graded again, gets another verdict";
            self.problem(Check::Same, seed, what);
        }
        match verdict {
            Verdict::Graded {
                reward,
                extracted,
                tamper,
                ..
            } => {
                if reward != 1.0 || !tamper.is_empty() {
                    let read = extracted.as_deref().map_or_else(
                        || "found no answer in it".to_string(),
                        |answer| format!("read {:?} in it", clipped(answer)),
                    );
                    let what =
                        format!("the worked solution earns {reward}, where the verifier {read}");
                    self.problem(Check::Witness, seed, what);
                }
                extracted
            }
            Verdict::Invalid { reason, .. } => {
                let what = format!("the worked solution can't be graded: {reason}");
                self.problem(Check::Witness, seed, what);
                None
            }
        }
    }

    /// Mean reward of `baseline`; a problem where it is more than it may be.
    fn paid(&mut self, baseline: Baseline, tasks: &[(u64, Task)]) -> Option<f64> {
        let (examined, level) = (self.examined.clone(), self.level);
        let mut rewards = Vec::new();
        for (seed, task) in tasks {
            let reward = self.step(Check::Pay, *seed, || {
                let answer = examined.answer(baseline, level, *seed, task);
                Episode::played(task, &[], &answer)
            });
            match reward {
                Some(Verdict::Graded { reward, .. }) if (0.0..=1.0).contains(&reward) => {
                    rewards.push((*seed, reward));
                }
                Some(Verdict::Graded { reward, .. }) => {
                    let what = format!("the baseline {baseline} gets the reward {reward}");
                    self.problem(Check::Pay, *seed, what);
                }
                Some(Verdict::Invalid { reason, .. }) => {
                    let what = format!("the baseline {baseline} can't be graded: {reason}");
                    self.problem(Check::Pay, *seed, what);
                }
                None => {}
            }
        }
        if rewards.is_empty() {
            return None;
        }
        let sum: f64 = rewards.iter().map(|(_, reward)| reward).sum();
        let mean = sum / rewards.len() as f64;
        match baseline.limit() {
            Some(0.0) => {
                let paid = rewards.iter().filter(|(_, reward)| *reward > 0.0);
                for (seed, reward) in paid {
                    let what = format!("the baseline {baseline} earns {reward}; it may earn 0");
                    self.problem(Check::Pay, *seed, what);
                }
            }
            Some(limit) if !chance::may_be(sum, rewards.len(), limit) => {
                let what = format!(
                    "the baseline {baseline} earns {mean:.3} on average; it may earn {limit}"
                );
                self.problem(Check::Pay, None, what);
            }
            _ => {}
        }
        Some(mean)
    }

    fn leaks(&mut self, tasks: &[(u64, Task)], answers: &[Option<String>]) {
        let shown: Vec<leak::Shown> = tasks
            .iter()
            .zip(answers)
            .map(|((seed, task), answer)| leak::Shown::new(*seed, task, answer.as_deref()))
            .collect();
        let found = self.step(Check::Leak, None, || leak::leaks(&shown));
        for (seed, what) in found.unwrap_or_default() {
            self.problem(Check::Leak, seed, what);
        }
    }

    fn survives_garbage(&mut self, seed: u64, task: &Task) {
        for (name, calls, answer) in garbage::garbage(task) {
            let play = || Episode::played(task, &calls, &answer);
            let what = match self.step(Check::Garbage, seed, play) {
                Some(Verdict::Graded { reward: 0.0, .. }) | None => continue,
                Some(Verdict::Graded { reward, .. }) => format!("{name} earns {reward}"),
                Some(Verdict::Invalid { reason, .. }) => {
                    format!("{name} can't be graded: {reason}")
                }
            };
            self.problem(Check::Garbage, seed, what);
        }
    }
}

/// In the order of the checks, the first few of each.
fn told(problems: Vec<Problem>) -> Vec<Problem> {
    let mut told = Vec::new();
    for check in Check::ALL {
        let mut own: Vec<Problem> = problems
            .iter()
            .filter(|problem| problem.check == check)
            .cloned()
            .collect();
        if own.len() > MAX_TOLD {
            let what = format!("{} more of this check", own.len() - MAX_TOLD);
            own.truncate(MAX_TOLD);
            let seed = None;
            own.push(Problem { check, seed, what });
        }
        told.extend(own);
    }
    told
}

/// What a panic said.
fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
