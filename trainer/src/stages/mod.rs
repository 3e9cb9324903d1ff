//! The stages of the recipe, one file each; [`step`] runs one step of whichever is due.

pub mod grpo;
pub mod indexer_warmup;
pub mod sft;
pub mod sparse_training;

use std::time::Instant;

use crate::config::{StageConfig, TextStageConfig};
use crate::error::TrainerError;
use crate::learner::{self, TextObjective};
use crate::metrics::{StepMetrics, StepSecs};
use crate::schedule;
use crate::session::Session;

/// Gets the session ready for its current stage, at the stage's start and after a resume.
pub fn prepare(session: &mut Session, stage: &StageConfig) {
    match stage {
        StageConfig::IndexerWarmup(_) => session.set_trainable(false, true),
        StageConfig::SparseTraining(_) => session.set_trainable(true, true),
        StageConfig::Sft(_) => session.set_trainable(true, false),
        StageConfig::Grpo(grpo) => session.set_trainable(true, grpo.train_indexer),
    }
}

/// One step of `stage`: updates the policy and the cursors, not the step counters. `None` when the run was
/// asked to stop while the step waited for its samples: nothing has changed then.
///
/// # Errors
/// Whatever stops the run.
pub fn step(
    session: &mut Session,
    stage: &StageConfig,
) -> Result<Option<StepMetrics>, TrainerError> {
    match stage {
        StageConfig::IndexerWarmup(stage) => indexer_warmup::step(session, stage).map(Some),
        StageConfig::SparseTraining(stage) => sparse_training::step(session, stage).map(Some),
        StageConfig::Sft(stage) => sft::step(session, stage).map(Some),
        StageConfig::Grpo(stage) => grpo::step(session, stage),
    }
}

/// One step of a stage that trains on text; `whole_text` puts loss on prompts too.
fn text_step(
    session: &mut Session,
    stage: &TextStageConfig,
    objective: TextObjective,
    whole_text: bool,
) -> Result<StepMetrics, TrainerError> {
    let text = stage.text.as_ref().unwrap_or(&session.config.text).clone();
    let mut documents = session.next_documents(&text, stage.documents_per_step)?;
    if whole_text {
        documents
            .iter_mut()
            .for_each(|document| document.loss_from = 1);
    }
    let rate = schedule::learning_rate(
        &stage.learning_rate,
        session.state.step_in_stage,
        stage.steps,
    );
    let start = Instant::now();
    let step = learner::text_step(
        session.config,
        &session.policy,
        &mut session.optimizer,
        &documents,
        objective,
        rate,
    )?;
    session.state.policy_version += 1;
    let secs = start.elapsed().as_secs_f64();
    Ok(StepMetrics {
        loss: step.loss,
        indexer_kl: step.indexer_kl,
        grad_norm: objective.language_loss.then_some(step.norms.main),
        indexer_grad_norm: objective.indexer_loss.then_some(step.norms.indexer),
        learning_rate: Some(rate),
        keys_selected_share: Some(step.key_share),
        train_tokens_per_sec: Some(step.num_tokens as f64 / secs),
        secs: StepSecs {
            train: Some(secs),
            ..StepSecs::default()
        },
        ..StepMetrics::default()
    })
}
