//! A session at a stage's beginning, and as a checkpoint describes it.

use kernels::tch;
use model::Transformer;

use super::{Session, salvage};
use crate::checkpoint::Checkpoint;
use crate::config::StageConfig;
use crate::error::TrainerError;
use crate::optimizer::AdamW;
use crate::policy;

impl Session<'_> {
    /// Takes over everything that `checkpoint` holds. Says so where this process computes otherwise than the
    /// one that saved it.
    ///
    /// # Errors
    /// A checkpoint of another model, or a disk that refuses.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainerError> {
        checkpoint.load_weights(&policy::masters(&self.policy))?;
        self.policy.publish();
        let arithmetic = std::mem::take(&mut self.state.arithmetic);
        self.state = checkpoint.state.clone();
        if self.state.arithmetic != arithmetic {
            tracing::warn!(
                "the checkpoint was computed in {}, this process computes in {arithmetic}: \
                 the run goes on, but not bit for bit as it would have there",
                self.state.arithmetic
            );
            self.state.arithmetic = arithmetic;
        }
        self.in_flight = checkpoint.in_flight()?;
        if let Some(StageConfig::Grpo(grpo)) = self.stage()
            && grpo.asynchronous.is_some()
        {
            let in_flight = std::mem::take(&mut self.in_flight);
            self.in_flight = salvage::sampled_ahead(self.folder, &self.state, grpo, in_flight);
        }
        self.optimizer
            .load_state(checkpoint.optimizer_state()?, &self.policy.parameters())?;
        if checkpoint.reference.is_some() {
            let frozen = self.frozen_policy()?;
            checkpoint.load_reference(&policy::masters(&frozen))?;
            frozen.publish();
            self.reference = Some(frozen);
        }
        Ok(())
    }

    /// Begins `stage`: a fresh optimizer and, where its KL is wanted, the policy as it is for a reference.
    ///
    /// # Errors
    /// The model's files.
    pub fn begin_stage(&mut self, stage: &StageConfig) -> Result<(), TrainerError> {
        self.optimizer = AdamW::new(&self.config.optimizer);
        self.state.next_document = 0;
        self.reference = None;
        if let StageConfig::Grpo(grpo) = stage
            && grpo.kl_beta > 0.0
        {
            let frozen = self.frozen_policy()?;
            tch::no_grad(|| {
                for (to, from) in frozen.parameters().iter().zip(self.policy.parameters()) {
                    to.master.shallow_clone().copy_(&from.master);
                }
            });
            frozen.publish();
            self.reference = Some(frozen);
        }
        Ok(())
    }

    /// A network of the policy's shape that never trains; its weights are to be filled in.
    fn frozen_policy(&self) -> Result<Transformer, TrainerError> {
        let parts = policy::open(&self.config.model, self.config.seed)?;
        let (frozen, _) = policy::load(parts, self.policy.kind(), self.policy.device())?;
        for parameter in frozen.parameters() {
            let _ = parameter.master.set_requires_grad(false);
        }
        Ok(frozen)
    }
}
