//! Runs the stages in order, from wherever the run folder stands.
//!
//! One loop serves a fresh start and a resume. Everything random is keyed by the run's seed and the
//! cursors of [`TrainState`](crate::checkpoint::TrainState), so a run continued from its newest
//! checkpoint repeats, bit for bit, what it would have done without the interruption.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kernels::profiler::range;

use crate::checkpoint::{Checkpoints, Contents, manifest};
use crate::config::{RunConfig, StageConfig};
use crate::config_file::ConfigError;
use crate::dataset_record;
use crate::error::TrainerError;
use crate::evaluation::evaluate;
use crate::metrics::{StepMetrics, StepSecs};
use crate::optimizer::AdamW;
use crate::policy;
use crate::prometheus::Exporter;
use crate::resume_check;
use crate::run_folder::{RunFolder, RunFolderError};
use crate::session::{Session, salvage};
use crate::stages;
use crate::step_log::StepLog;
use crate::step_profile::StepProfile;

/// Checkpoint files of an exported model hold at most this much.
pub(crate) const EXPORT_SHARD_BYTES: usize = 4 << 30;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every stage is complete; the policy lies in `model/`.
    Complete,
    /// Stopped on request after saving; `baleen resume` continues.
    Stopped,
}

/// Runs `config` in `folder` until it is complete or `stop` is set; `exporter` is shown every step, and
/// `profile` records its one.
///
/// # Errors
/// Whatever stops the run; the checkpoints written so far stay.
pub fn run(
    config: &RunConfig,
    folder: &RunFolder,
    stop: &AtomicBool,
    exporter: Option<Exporter>,
    profile: Option<&StepProfile>,
) -> Result<Outcome, TrainerError> {
    let mut run = Run::open(config, folder, stop, exporter)?;
    while let Some(stage) = run.session.stage() {
        stages::prepare(&mut run.session, stage);
        if run.session.state.step_in_stage == 0 {
            run.begin_stage(stage)?;
        }
        let recorded = profile.filter(|profile| profile.is_due(&run.session.state));
        let stepped = match recorded {
            Some(profile) => profile.record(run.session.policy.device(), || run.step(stage)),
            None => run.step(stage),
        };
        if let Err(error) = stepped {
            run.leave_behind();
            return Err(error);
        }
        if stop.load(Ordering::SeqCst) {
            tracing::info!(
                "stopped on request; continue with: baleen resume {}",
                folder.root().display()
            );
            return Ok(Outcome::Stopped);
        }
    }
    run.export()?;
    Ok(Outcome::Complete)
}

struct Run<'a> {
    session: Session<'a>,
    log: StepLog,
    checkpoints: Checkpoints,
    /// Name of the reference policy in the checkpoints folder, while one is in use.
    reference: Option<String>,
    config_hash: String,
    /// Seconds that the last checkpoint took, until the next metrics line takes them.
    saving_secs: Option<f64>,
}

impl<'a> Run<'a> {
    /// Loads the starting policy, or the newest intact checkpoint where there is one.
    fn open(
        config: &'a RunConfig,
        folder: &'a RunFolder,
        stop: &'a AtomicBool,
        exporter: Option<Exporter>,
    ) -> Result<Run<'a>, TrainerError> {
        let config_hash = resume_check::fingerprint(config);
        let mut checkpoints = Checkpoints::new(&folder.checkpoints_path(), config.checkpoints.keep);
        let latest = checkpoints.latest()?;
        let mut session = Session::new(config, folder, stop)?;
        dataset_record::check_or_write(folder, &session.tasks)?;
        let mut reference = None;
        match &latest {
            None => {}
            Some(latest) => {
                for problem in &latest.damaged {
                    tracing::warn!("checkpoint not used: {problem}");
                }
                let checkpoint = &latest.checkpoint;
                if checkpoint.config_hash != config_hash {
                    let path = folder.config_path();
                    return Err(RunFolderError::from(ConfigError::Edited { path }).into());
                }
                let start = Instant::now();
                session.restore(checkpoint)?;
                // After it, for what was read may be a checkpoint's stand-in.
                checkpoints.tidy(&checkpoint.state)?;
                reference = checkpoint.reference.clone();
                tracing::info!(
                    "resumed from {} in {:.1} s",
                    checkpoint.path.display(),
                    start.elapsed().as_secs_f64()
                );
            }
        }
        let resumed = latest.as_ref().map(|_| session.state.global_step);
        let log = StepLog::open(folder, resumed, exporter)?;
        let is_fresh = latest.is_none();
        let mut run = Run {
            session,
            log,
            checkpoints,
            reference,
            config_hash,
            saving_secs: None,
        };
        if is_fresh {
            run.evaluate_start()?;
        }
        Ok(run)
    }

    /// The starting policy's figures: step 0 of `metrics.jsonl`.
    fn evaluate_start(&mut self) -> Result<(), TrainerError> {
        let mut metrics = StepMetrics {
            stage: "start".to_string(),
            ..StepMetrics::default()
        };
        self.evaluate_into(&mut metrics)?;
        self.write(&metrics, 0)
    }

    /// Fresh optimizer, and the reference that the stage's KL is measured against.
    fn begin_stage(&mut self, stage: &StageConfig) -> Result<(), TrainerError> {
        let session = &mut self.session;
        session.begin_stage(stage)?;
        self.reference = match &session.reference {
            None => None,
            Some(reference) => {
                let stage = session.state.stage;
                Some(
                    self.checkpoints
                        .save_reference(stage, &policy::owned_masters(reference))?,
                )
            }
        };
        Ok(())
    }

    /// One step with its evaluation, metrics line and checkpoint.
    fn step(&mut self, stage: &StageConfig) -> Result<(), TrainerError> {
        let start = Instant::now();
        let Some(mut metrics) = stages::step(&mut self.session, stage)? else {
            return self.save(false);
        };
        let state = &mut self.session.state;
        state.global_step += 1;
        state.step_in_stage += 1;
        metrics.stage = stage.name().to_string();
        metrics.stage_index = state.stage;
        metrics.step = state.step_in_stage;
        metrics.global_step = state.global_step;
        metrics.policy_version = state.policy_version;
        let is_last = state.step_in_stage == stage.steps();
        if is_last {
            self.session.end_worker();
        }
        if self.evaluates(stage, metrics.step, is_last) {
            self.evaluate_into(&mut metrics)?;
        }
        let every = self.session.config.checkpoints.every;
        let state = &mut self.session.state;
        let is_due = every > 0 && state.step_in_stage.is_multiple_of(every);
        if is_last {
            state.stage += 1;
            state.step_in_stage = 0;
        }
        metrics.peak_memory_bytes = Some(kernels::runtime::peak_memory_bytes());
        metrics.secs.total = Some(start.elapsed().as_secs_f64());
        metrics.secs.checkpoint = self.saving_secs.take();
        self.write(&metrics, stage.steps())?;
        if is_last || is_due || self.session.stop.load(Ordering::SeqCst) {
            self.save(is_last)?;
        }
        Ok(())
    }

    /// Keeps what is sampled ahead of a step that failed.
    fn leave_behind(&mut self) {
        let session = &mut self.session;
        let ahead = match &mut session.worker {
            // A worker that failed itself has nothing to tell.
            Some(worker) => worker.in_flight().unwrap_or_default(),
            None => Vec::new(),
        };
        salvage::leave_behind(session.folder, &session.state, &ahead);
    }

    fn evaluates(&self, stage: &StageConfig, step: usize, is_last: bool) -> bool {
        let every = self.session.config.evaluation.every;
        match stage {
            // The policy itself does not change.
            StageConfig::IndexerWarmup(_) => false,
            StageConfig::SparseTraining(_) | StageConfig::Sft(_) => is_last,
            StageConfig::Grpo(_) => is_last || (every > 0 && step.is_multiple_of(every)),
        }
    }

    fn evaluate_into(&self, metrics: &mut StepMetrics) -> Result<(), TrainerError> {
        let _evaluation = range("evaluation");
        if self.session.config.evaluation.prompts > 0 {
            let evaluation = evaluate(&self.session)?;
            metrics.held_out_pass_rate = evaluation.pass_rate;
            metrics.secs = StepSecs {
                evaluation: Some(evaluation.secs),
                ..metrics.secs
            };
        }
        Ok(())
    }

    fn write(&mut self, metrics: &StepMetrics, stage_steps: usize) -> Result<(), TrainerError> {
        self.log.write(metrics)?;
        tracing::info!("{}", metrics.summary(stage_steps));
        Ok(())
    }

    /// Saves a checkpoint; at a stage's end the optimizer is done with and stays out.
    fn save(&mut self, stage_is_over: bool) -> Result<(), TrainerError> {
        let _checkpoint = range("checkpoint");
        let start = Instant::now();
        // The lines are on disk before the checkpoint that covers them: a resume drops later ones only.
        self.log.sync()?;
        let optimizer = match stage_is_over {
            true => AdamW::new(&self.session.config.optimizer).state(),
            false => self.session.optimizer.state(),
        };
        let in_flight = match &mut self.session.worker {
            Some(worker) => worker.in_flight()?,
            None => self.session.in_flight.clone(),
        };
        let path = self.checkpoints.save(&Contents {
            weights: &policy::owned_masters(&self.session.policy),
            optimizer: &optimizer,
            state: &self.session.state,
            config_hash: &self.config_hash,
            reference: self.reference.as_deref().filter(|_| !stage_is_over),
            in_flight: &in_flight,
        })?;
        let folder = self.session.folder;
        salvage::forget_left_behind(folder).map_err(|source| TrainerError::Io {
            path: folder.left_behind_path(),
            source,
        })?;
        let secs = start.elapsed().as_secs_f64();
        self.saving_secs = Some(secs);
        tracing::info!("checkpoint {} saved in {secs:.1} s", path.display());
        Ok(())
    }

    /// The final policy as a Hugging Face folder, `model/`.
    fn export(&self) -> Result<(), TrainerError> {
        let session = &self.session;
        let path = session.folder.model_path();
        model::checkpoint::save(
            &path,
            session.policy.config(),
            &session.tokenizer,
            &policy::owned_masters(&session.policy),
            kernels::tch::Kind::BFloat16,
            EXPORT_SHARD_BYTES,
        )?;
        // After the folder itself: a run killed in between exports again when it is resumed.
        manifest::seal_folder(&path)?;
        tracing::info!("final policy exported to {} (bf16)", path.display());
        Ok(())
    }
}
