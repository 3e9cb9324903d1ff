//! Runs the stages in order, from wherever the run folder stands.
//!
//! One loop serves a fresh start and a resume. Everything random is keyed by the run's seed and the
//! cursors of [`TrainState`](crate::checkpoint::TrainState), so a run continued from its newest
//! checkpoint repeats, bit for bit, what it would have done without the interruption.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kernels::tch::Tensor;
use model::Transformer;

use crate::checkpoint::{Checkpoints, Contents};
use crate::config::{RunConfig, StageConfig};
use crate::config_file::ConfigError;
use crate::error::TrainerError;
use crate::evaluation::evaluate;
use crate::metrics::{MetricsWriter, StepMetrics, StepSecs};
use crate::optimizer::AdamW;
use crate::policy;
use crate::resume_check;
use crate::run_folder::{RunFolder, RunFolderError};
use crate::session::Session;
use crate::stages;

/// Checkpoint files of an exported model hold at most this much.
const EXPORT_SHARD_BYTES: usize = 4 << 30;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every stage is complete; the policy lies in `model/`.
    Complete,
    /// Stopped on request after saving; `baleen resume` continues.
    Stopped,
}

/// Runs `config` in `folder` until it is complete or `stop` is set.
///
/// # Errors
/// Whatever stops the run; the checkpoints written so far stay.
pub fn run(
    config: &RunConfig,
    folder: &RunFolder,
    stop: &AtomicBool,
) -> Result<Outcome, TrainerError> {
    let mut run = Run::open(config, folder)?;
    while let Some(stage) = run.session.stage() {
        stages::prepare(&mut run.session, stage);
        if run.session.state.step_in_stage == 0 {
            run.begin_stage(stage)?;
        }
        run.step(stage, stop)?;
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
    metrics: MetricsWriter,
    checkpoints: Checkpoints,
    /// Name of the reference policy in the checkpoints folder, while one is in use.
    reference: Option<String>,
    config_hash: String,
}

impl<'a> Run<'a> {
    /// Loads the starting policy, or the newest intact checkpoint where there is one.
    fn open(config: &'a RunConfig, folder: &'a RunFolder) -> Result<Run<'a>, TrainerError> {
        let config_hash = resume_check::fingerprint(config);
        let mut checkpoints = Checkpoints::new(&folder.checkpoints_path(), config.checkpoints.keep);
        let latest = checkpoints.latest()?;
        let mut session = Session::new(config, folder)?;
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
                checkpoint.load_weights(&named(&session.policy))?;
                session.policy.publish();
                let arithmetic = std::mem::take(&mut session.state.arithmetic);
                session.state = checkpoint.state.clone();
                if session.state.arithmetic != arithmetic {
                    tracing::warn!(
                        "the checkpoint was computed in {}, this process computes in {arithmetic}: \
                         the run goes on, but not bit for bit as it would have there",
                        session.state.arithmetic
                    );
                    session.state.arithmetic = arithmetic;
                }
                session
                    .optimizer
                    .load_state(checkpoint.optimizer_state()?, &session.policy.parameters())?;
                if checkpoint.reference.is_some() {
                    let frozen = reference_policy(&session)?;
                    checkpoint.load_reference(&named(&frozen))?;
                    frozen.publish();
                    session.reference = Some(frozen);
                    reference = checkpoint.reference.clone();
                }
                tracing::info!(
                    "resumed from {} in {:.1} s",
                    checkpoint.path.display(),
                    start.elapsed().as_secs_f64()
                );
            }
        }
        let path = folder.metrics_path();
        let metrics = match latest {
            None => MetricsWriter::create(&path),
            Some(_) => MetricsWriter::resume(&path, session.state.global_step),
        }
        .map_err(|source| TrainerError::Io {
            path: path.clone(),
            source,
        })?;
        let is_fresh = latest.is_none();
        let mut run = Run {
            session,
            metrics,
            checkpoints,
            reference,
            config_hash,
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
        session.optimizer = AdamW::new(&session.config.optimizer);
        session.state.next_document = 0;
        session.reference = None;
        self.reference = None;
        if let StageConfig::Grpo(grpo) = stage
            && grpo.kl_beta > 0.0
        {
            let frozen = reference_policy(session)?;
            kernels::tch::no_grad(|| {
                for (to, from) in frozen.parameters().iter().zip(session.policy.parameters()) {
                    to.master.shallow_clone().copy_(&from.master);
                }
            });
            frozen.publish();
            self.reference = Some(
                self.checkpoints
                    .save_reference(session.state.stage, &owned(&session.policy))?,
            );
            session.reference = Some(frozen);
        }
        Ok(())
    }

    /// One step with its evaluation, metrics line and checkpoint.
    fn step(&mut self, stage: &StageConfig, stop: &AtomicBool) -> Result<(), TrainerError> {
        let start = Instant::now();
        let mut metrics = stages::step(&mut self.session, stage)?;
        let state = &mut self.session.state;
        state.global_step += 1;
        state.step_in_stage += 1;
        metrics.stage = stage.name().to_string();
        metrics.stage_index = state.stage;
        metrics.step = state.step_in_stage;
        metrics.global_step = state.global_step;
        metrics.policy_version = state.policy_version;
        let is_last = state.step_in_stage == stage.steps();
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
        self.write(&metrics, stage.steps())?;
        if is_last || is_due || stop.load(Ordering::SeqCst) {
            self.save(is_last)?;
        }
        Ok(())
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
        let path = self.session.folder.metrics_path();
        self.metrics
            .write(metrics)
            .map_err(|source| TrainerError::Io { path, source })?;
        tracing::info!("{}", metrics.summary(stage_steps));
        Ok(())
    }

    /// Saves a checkpoint; at a stage's end the optimizer is done with and stays out.
    fn save(&mut self, stage_is_over: bool) -> Result<(), TrainerError> {
        let start = Instant::now();
        // The lines are on disk before the checkpoint that covers them: a resume drops later ones only.
        let path = self.session.folder.metrics_path();
        self.metrics
            .sync()
            .map_err(|source| TrainerError::Io { path, source })?;
        let optimizer = match stage_is_over {
            true => AdamW::new(&self.session.config.optimizer).state(),
            false => self.session.optimizer.state(),
        };
        let path = self.checkpoints.save(&Contents {
            weights: &owned(&self.session.policy),
            optimizer: &optimizer,
            state: &self.session.state,
            config_hash: &self.config_hash,
            reference: self.reference.as_deref().filter(|_| !stage_is_over),
        })?;
        tracing::info!(
            "checkpoint {} saved in {:.1} s",
            path.display(),
            start.elapsed().as_secs_f64()
        );
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
            &owned(&session.policy),
            kernels::tch::Kind::BFloat16,
            EXPORT_SHARD_BYTES,
        )?;
        tracing::info!("final policy exported to {} (bf16)", path.display());
        Ok(())
    }
}

/// A network of the policy's shape that never trains; its weights are to be filled in.
fn reference_policy(session: &Session) -> Result<Transformer, TrainerError> {
    let parts = policy::open(&session.config.model, session.config.seed)?;
    let (frozen, _) = policy::load(parts, session.policy.kind(), session.policy.device())?;
    for parameter in frozen.parameters() {
        let _ = parameter.master.set_requires_grad(false);
    }
    Ok(frozen)
}

fn named(policy: &Transformer) -> Vec<(&str, &Tensor)> {
    policy
        .parameters()
        .into_iter()
        .map(|parameter| (parameter.name.as_str(), &parameter.master))
        .collect()
}

fn owned(policy: &Transformer) -> Vec<(String, Tensor)> {
    policy
        .parameters()
        .into_iter()
        .map(|parameter| (parameter.name.clone(), parameter.master.detach()))
        .collect()
}
