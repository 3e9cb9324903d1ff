//! Dense warm-up of the lightning indexer (report 2.1.1, eq. 3): dense attention, everything but
//! the indexer frozen, KL of the indexer's softmax to the head-summed attention.

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
        attention: Attention::Dense,
        language_loss: false,
        indexer_loss: true,
    };
    super::text_step(session, stage, objective, true)
}
