//! Sparse training (report 2.1.1, eq. 4): attention over the selected keys, everything trains; the
//! language model by cross-entropy on all tokens, the indexer by its KL on the selected set only.

use model::Attention;

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
        attention: Attention::Sparse,
        language_loss: true,
        indexer_loss: true,
    };
    super::text_step(session, stage, objective, true)
}
