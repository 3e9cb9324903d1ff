//! Asynchronous rollouts: a thread that samples ahead, with weights of its own, while the learner trains.
//!
//! ```text
//! learner  --submit(prompts), publish(weights, version)-->  worker: Engine::step, grade
//!          <--groups, each when its last sample has ended--
//! ```
//! Which prompts a step trains on is fixed beforehand, as in the synchronous mode: the next
//! `prompts_per_step` ids. So no sample is trained twice or left out, and short completions get no
//! preference. The worker may begin the prompts of the next `max_policy_age` steps: that bounds the age.
//! New weights reach it between two engine steps; a sample may span versions, and each of its tokens knows
//! its own. Cached keys and values stay those of the older weights: what counts for training is that the
//! recorded log-probs are those the token was drawn by.
//! [`RolloutWorker::in_flight`] gives what a checkpoint must hold; a worker started with it goes on there.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Range;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use environments::{FaultKind, RewardConfig, Verdict};
use kernels::tch::{self, Device, Kind, Tensor};
use model::{ModelConfig, Tokenizer, Transformer, WeightError, WeightSource};
use rollout::{Driver, EpisodeHost, GeneratedGroup, GeneratedSample, GenerationSettings};
use rollout::{GenerationStats, Group, GuardedGrader, Judge, Prompt, Sample};

use crate::error::TrainerError;
use crate::progress::Progress;

/// How often a waiting learner looks whether it shall stop.
const WAKE_UP: Duration = Duration::from_millis(100);
/// A worker that neither finished an engine step nor a sample's grading for so long, beyond the grader's own deadline,
/// is taken for stuck: the longest prefill takes seconds.
const STALL_SECS: f64 = 600.0;

/// What a worker needs to begin.
pub struct WorkerSetup {
    /// Shape of the policy.
    pub config: ModelConfig,
    /// Compute type.
    pub kind: Kind,
    /// Where it computes.
    pub device: Device,
    /// Its CPU threads.
    pub threads: i32,
    /// How it samples; `policy_version` is that of the weights.
    pub settings: GenerationSettings,
    /// Samples a prompt.
    pub group_size: usize,
    /// To decode what is graded.
    pub tokenizer: Tokenizer,
    /// Grades every sample of one turn.
    pub grader: Arc<GuardedGrader>,
    /// Runs the episodes of the others.
    pub episodes: EpisodeHost,
    /// What completions are paid for.
    pub rewards: RewardConfig,
    /// Seconds that the grader may take.
    pub grading_secs: f64,
}

enum Command {
    Submit(Prompt, Vec<GeneratedSample>),
    Publish(u64, Vec<Tensor>),
    InFlight(Sender<Vec<GeneratedGroup>>),
}

/// A finished group, and what the engine did since the one before.
struct Finished {
    group: Group,
    stats: GenerationStats,
}

/// Groups taken by the learner.
pub struct Taken {
    /// In the order of their ids.
    pub groups: Vec<Group>,
    /// What the engine did since the last groups were taken.
    pub stats: GenerationStats,
}

/// The worker, as the learner sees it. Dropping it ends the thread.
pub struct RolloutWorker {
    commands: Option<Sender<Command>>,
    finished: Receiver<Finished>,
    thread: Option<JoinHandle<Result<(), TrainerError>>>,
    /// Rises with every sign of life.
    pulse: Arc<AtomicU64>,
    stall_secs: f64,
    group_size: usize,
    /// Finished groups that no step has taken, by prompt.
    waiting: BTreeMap<u64, Group>,
    /// Prompts at work, by id.
    submitted: BTreeMap<u64, Prompt>,
    stats: GenerationStats,
}

impl RolloutWorker {
    /// Starts the thread with the masters of `policy`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(setup: WorkerSetup, policy: &Transformer) -> Result<RolloutWorker, TrainerError> {
        let (commands, receiver) = mpsc::channel();
        let (sender, finished) = mpsc::channel();
        let pulse = Arc::new(AtomicU64::new(0));
        let mut worker = RolloutWorker {
            commands: Some(commands),
            finished,
            thread: None,
            pulse: pulse.clone(),
            stall_secs: STALL_SECS + setup.grading_secs,
            group_size: setup.group_size,
            waiting: BTreeMap::new(),
            submitted: BTreeMap::new(),
            stats: GenerationStats::default(),
        };
        let names = policy.parameters().into_iter().map(|p| p.name.clone());
        let weights: HashMap<String, Tensor> = names.zip(snapshot(policy)).collect();
        let thread = thread::Builder::new().name("rollout".to_string());
        let work = move || work(&setup, Snapshot { weights }, &receiver, &sender, &pulse);
        worker.thread = Some(thread.spawn(work).map_err(TrainerError::Thread)?);
        Ok(worker)
    }

    /// Whether prompt `id` is at work or done.
    pub fn has(&self, id: u64) -> bool {
        self.submitted.contains_key(&id) || self.waiting.contains_key(&id)
    }

    /// Adds a prompt behind those that wait, with what was begun of it before.
    ///
    /// # Errors
    /// The worker has ended; its error.
    pub fn submit(&mut self, prompt: Prompt, begun: Vec<Sample>) -> Result<(), TrainerError> {
        self.submitted.insert(prompt.id, prompt.clone());
        let begun = begun.into_iter().map(generated).collect();
        self.send(Command::Submit(prompt, begun))
    }

    /// Gives the worker a copy of the policy's weights, which are of `version`.
    ///
    /// # Errors
    /// The worker has ended; its error.
    pub fn publish(&mut self, policy: &Transformer, version: u64) -> Result<(), TrainerError> {
        self.send(Command::Publish(version, snapshot(policy)))
    }

    /// Waits for the groups of the prompts `ids`; `None` when `stop` is set first.
    ///
    /// # Errors
    /// The worker has ended or is stuck.
    pub fn take(
        &mut self,
        ids: Range<u64>,
        stop: &AtomicBool,
    ) -> Result<Option<Taken>, TrainerError> {
        let count = |waiting: &BTreeMap<u64, Group>| waiting.range(ids.clone()).count() as u64;
        let total = (ids.end - ids.start) * self.group_size as u64;
        let progress = Progress::new("waiting for the rollout", total, "samples");
        let mut last = (self.pulse.load(Ordering::Relaxed), Instant::now());
        loop {
            self.receive();
            if count(&self.waiting) == ids.end - ids.start {
                break;
            }
            if stop.load(Ordering::SeqCst) {
                progress.finish();
                return Ok(None);
            }
            match self.finished.recv_timeout(WAKE_UP) {
                Ok(finished) => self.keep(finished),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.end()),
            }
            progress.set(count(&self.waiting) * self.group_size as u64);
            let pulse = self.pulse.load(Ordering::Relaxed);
            if pulse != last.0 {
                last = (pulse, Instant::now());
            } else if last.1.elapsed().as_secs_f64() > self.stall_secs {
                let missing = ids.clone().filter(|id| !self.waiting.contains_key(id));
                return Err(TrainerError::RolloutStalled {
                    secs: last.1.elapsed().as_secs_f64(),
                    prompts: missing.collect(),
                });
            }
        }
        progress.finish();
        let groups = ids.filter_map(|id| self.waiting.remove(&id)).collect();
        Ok(Some(Taken {
            groups,
            stats: std::mem::take(&mut self.stats),
        }))
    }

    /// Everything that was sampled and not taken yet, oldest first; unfinished samples are marked so.
    ///
    /// # Errors
    /// The worker has ended or is stuck.
    pub fn in_flight(&mut self) -> Result<Vec<Group>, TrainerError> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::InFlight(reply))?;
        let limit = Duration::from_secs_f64(self.stall_secs);
        let begun = match answer.recv_timeout(limit) {
            Ok(begun) => begun,
            Err(RecvTimeoutError::Timeout) => {
                return Err(TrainerError::RolloutStalled {
                    secs: self.stall_secs,
                    prompts: self.submitted.keys().copied().collect(),
                });
            }
            Err(RecvTimeoutError::Disconnected) => return Err(self.end()),
        };
        // What the worker finished before it answered is in the channel by now.
        self.receive();
        let begun = begun.into_iter().filter(|group| !group.samples.is_empty());
        let begun: Vec<Group> = begun
            .filter_map(|group| {
                let prompt = self.submitted.get(&group.prompt_id)?.clone();
                let samples = group.samples.into_iter().enumerate();
                let samples = samples.map(|(index, sample)| ungraded(index, sample));
                Some(Group {
                    prompt,
                    samples: samples.collect(),
                })
            })
            .collect();
        let mut all: Vec<Group> = self.waiting.values().cloned().chain(begun).collect();
        all.sort_by_key(|group| group.prompt.id);
        Ok(all)
    }

    fn receive(&mut self) {
        while let Ok(finished) = self.finished.try_recv() {
            self.keep(finished);
        }
    }

    fn keep(&mut self, finished: Finished) {
        self.stats.merge(&finished.stats);
        let id = finished.group.prompt.id;
        self.submitted.remove(&id);
        self.waiting.insert(id, finished.group);
    }

    fn send(&mut self, command: Command) -> Result<(), TrainerError> {
        let sent = self
            .commands
            .as_ref()
            .is_some_and(|to| to.send(command).is_ok());
        if sent { Ok(()) } else { Err(self.end()) }
    }

    /// Why the thread ended, though nobody asked it to.
    fn end(&mut self) -> TrainerError {
        self.commands = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(payload)) => panic::resume_unwind(payload),
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(()))) | None => TrainerError::RolloutEnded,
        }
    }
}

impl Drop for RolloutWorker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Its groups are nobody's any more, and so is its error.
            let _ = thread.join();
        }
    }
}

/// Copies of the masters, in the order of the parameters.
fn snapshot(policy: &Transformer) -> Vec<Tensor> {
    let parameters = policy.parameters().into_iter();
    parameters
        .map(|parameter| parameter.master.detach().copy())
        .collect()
}

/// Weights by name, handed out once.
struct Snapshot {
    weights: HashMap<String, Tensor>,
}

impl WeightSource for Snapshot {
    fn tensor(&mut self, name: &str, _: &[i64]) -> Result<Tensor, WeightError> {
        let tensor = self.weights.remove(name);
        tensor.ok_or_else(|| WeightError::Missing {
            path: "the policy".into(),
            name: name.to_string(),
        })
    }
}

/// The thread: commands between engine steps, until the learner is gone.
fn work(
    setup: &WorkerSetup,
    mut weights: Snapshot,
    commands: &Receiver<Command>,
    finished: &Sender<Finished>,
    pulse: &AtomicU64,
) -> Result<(), TrainerError> {
    tch::set_num_threads(setup.threads);
    let policy = Transformer::load(&setup.config, &mut weights, setup.kind, setup.device)?;
    let settings = &setup.settings;
    // Called before each sample is graded: a slow grader is no stall.
    let decode = |tokens: &[u32]| {
        pulse.fetch_add(1, Ordering::Relaxed);
        setup.tokenizer.decode(tokens)
    };
    let judge = Judge {
        decode: &decode,
        grader: &setup.grader,
        episodes: Some(&setup.episodes),
        rewards: Some(&setup.rewards),
    };
    let num_slots = settings.max_batch_sequences;
    let mut driver = Driver::new(&policy, settings, num_slots, setup.group_size, judge);
    loop {
        loop {
            let command = match driver.is_busy() {
                false => commands.recv().map_err(|_| TryRecvError::Disconnected),
                true => commands.try_recv(),
            };
            match command {
                Ok(Command::Submit(prompt, begun)) => {
                    driver.submit(prompt, begun)?;
                }
                Ok(Command::Publish(version, weights)) => {
                    driver.settle()?;
                    install(&policy, weights);
                    driver.set_policy_version(version);
                }
                Ok(Command::InFlight(reply)) => {
                    // A learner that waits no longer has gone.
                    let _ = reply.send(driver.in_flight());
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        driver.step()?;
        pulse.fetch_add(1, Ordering::Relaxed);
        for group in driver.take_finished() {
            let stats = driver.take_stats();
            if finished.send(Finished { group, stats }).is_err() {
                return Ok(());
            }
        }
    }
}

/// Puts `weights`, in the order of the parameters, into `policy`.
fn install(policy: &Transformer, weights: Vec<Tensor>) {
    tch::no_grad(|| {
        for (parameter, weight) in policy.parameters().iter().zip(weights) {
            parameter.master.shallow_clone().copy_(&weight);
        }
    });
    policy.publish();
}

fn generated(sample: Sample) -> GeneratedSample {
    GeneratedSample {
        tokens: sample.tokens,
        sampler_logprobs: sample.sampler_logprobs,
        kept: sample.kept,
        routing: sample.routing,
        selection: sample.selection,
        policy_versions: sample.policy_versions,
        finish_reason: sample.finish_reason,
        given: sample.given,
    }
}

/// A sample of a group that has not ended: graded with its group.
fn ungraded(index: usize, sample: GeneratedSample) -> Sample {
    Sample {
        index,
        tokens: sample.tokens,
        sampler_logprobs: sample.sampler_logprobs,
        kept: sample.kept,
        routing: sample.routing,
        selection: sample.selection,
        policy_versions: sample.policy_versions,
        finish_reason: sample.finish_reason,
        given: sample.given,
        later: Vec::new(),
        paid: None,
        episode: None,
        text: String::new(),
        verdict: Verdict::invalid(
            FaultKind::Cancelled,
            "not graded: its group was in flight".to_string(),
        ),
    }
}
