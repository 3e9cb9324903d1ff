//! Where a grpo step's groups come from: sampled on the spot, or by a worker that is ahead.

use std::time::Instant;

use environments::Split;

use super::{Rollout, Session};
use crate::config::{AsynchronousConfig, GrpoConfig};
use crate::error::TrainerError;
use crate::rollout_worker::{RolloutWorker, WorkerSetup};

impl Session<'_> {
    /// The groups of the stage's next step, graded; moves the cursor behind their prompts. `None` when the
    /// run was asked to stop while it waited for them: nothing has changed then.
    ///
    /// # Errors
    /// A prompt that doesn't fit, logits that are not finite, or a worker that ended.
    pub fn next_rollout(&mut self, stage: &GrpoConfig) -> Result<Option<Rollout>, TrainerError> {
        let _rollout = kernels::profiler::range("rollout");
        let first = self.state.next_prompt_id;
        let next = first + stage.prompts_per_step as u64;
        let rollout = match &stage.asynchronous {
            None => {
                let prompts = (first..next).map(|id| self.prompts().prompt(Split::Train, id));
                let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
                let sampling = &self.config.sampling;
                Some(self.sample("rollout", prompts, stage.group_size, sampling)?)
            }
            Some(asynchronous) => self.take_from_worker(stage, asynchronous)?,
        };
        if rollout.is_some() {
            self.state.next_prompt_id = next;
        }
        Ok(rollout)
    }

    fn take_from_worker(
        &mut self,
        stage: &GrpoConfig,
        asynchronous: &AsynchronousConfig,
    ) -> Result<Option<Rollout>, TrainerError> {
        let start = Instant::now();
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.start_worker(stage, asynchronous)?,
        };
        let first = self.state.next_prompt_id;
        let steps_left = stage.steps - self.state.step_in_stage;
        let num_steps = steps_left.min(1 + asynchronous.max_policy_age);
        let per_step = stage.prompts_per_step as u64;
        for id in first..first + num_steps as u64 * per_step {
            if !worker.has(id) {
                worker.submit(self.prompts().prompt(Split::Train, id)?, Vec::new())?;
            }
        }
        let taken = worker.take(first..first + per_step, self.stop);
        self.worker = Some(worker);
        Ok(taken?.map(|taken| Rollout {
            groups: taken.groups,
            secs: start.elapsed().as_secs_f64(),
            sampling_secs: taken.stats.prefill_secs + taken.stats.decode_secs,
            stats: taken.stats,
        }))
    }

    /// A worker with the policy as it is, at work on what was in flight. Shares the threads with it.
    fn start_worker(
        &mut self,
        stage: &GrpoConfig,
        asynchronous: &AsynchronousConfig,
    ) -> Result<RolloutWorker, TrainerError> {
        let sampler_threads = match asynchronous.sampler_threads {
            0 => self.threads / 2,
            threads => i32::try_from(threads).unwrap_or(i32::MAX),
        };
        let setup = WorkerSetup {
            config: self.policy.config().clone(),
            kind: self.policy.kind(),
            device: self.policy.device(),
            threads: sampler_threads.max(1),
            settings: self.generation(&self.config.sampling),
            group_size: stage.group_size,
            tokenizer: self.tokenizer.clone(),
            grader: self.grader.clone(),
            episodes: self.episodes.clone(),
            rewards: self.config.rewards.clone(),
            grading_secs: self.config.grading.timeout_secs,
        };
        let mut worker = RolloutWorker::start(setup, &self.policy)?;
        kernels::tch::set_num_threads((self.threads - sampler_threads).max(1));
        for group in std::mem::take(&mut self.in_flight) {
            worker.submit(group.prompt, group.samples)?;
        }
        Ok(worker)
    }

    /// Lets the worker see the weights after an update; without a worker they are the same tensors.
    ///
    /// # Errors
    /// A worker that ended.
    pub fn publish_to_worker(&mut self) -> Result<(), TrainerError> {
        match &mut self.worker {
            Some(worker) => worker.publish(&self.policy, self.state.policy_version),
            None => Ok(()),
        }
    }

    /// Ends the worker, where there is one; the learner has all threads again.
    pub fn end_worker(&mut self) {
        if self.worker.take().is_some() {
            kernels::tch::set_num_threads(self.threads);
        }
    }
}
