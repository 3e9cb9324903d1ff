//! Cold start: cross-entropy on the completions of text, the indexer frozen.

use crate::config::TextStageConfig;
use crate::error::TrainerError;
use crate::learner::TextObjective;
use crate::metrics::StepMetrics;
use crate::session::Session;

/// One step.
///
/// # Errors
/// Text that can't be read, or gradients that are not finite.
pub fn step(session: &mut Session, stage: &TextStageConfig) -> Result<StepMetrics, TrainerError> {
    let objective = TextObjective {
        attention: session.attention(),
        language_loss: true,
        indexer_loss: false,
    };
    super::text_step(session, stage, objective, false)
}
