//! Decode steps by CUDA graphs, one of which runs ahead: while the host records what a step drew, the card is at the
//! next one, which takes its tokens from where the step before left them.
//!
//! What the host learns late is only which sequences a stop token has ended: the step ahead has a row for them that
//! nobody reads. Nothing runs ahead where the next step may need more than one more token for each sequence: when
//! samples wait for a slot that is free, pages run short, or a page has to be copied first. A row that nobody reads may
//! write to a page that the step behind it has taken for another sequence; the card does steps in order, so the new owner
//! writes last. Draws are keyed by sample and position, so samples are those of steps one by one, up to the rounding
//! that the number of rows in a product makes.

use std::time::Instant;

use model::{LaunchedStep, LentDecoder, StepToken};
use tch::Kind;

use super::{Engine, NextTokens};
use crate::draws;
use crate::error::RolloutError;
use crate::sample::FinishReason;
use crate::sampler::SampledToken;
use crate::scheduler::SampleId;

/// A step that the card is at and that has not been read.
#[derive(Debug)]
pub(super) struct PendingStep {
    launched: LaunchedStep,
    /// Whose token each row draws.
    ids: Vec<SampleId>,
    /// Of the weights that it runs with.
    policy_version: u64,
}

impl Engine<'_> {
    /// Reads the step that runs ahead, if there is one, so that weights and cache may change. Samples that it ends
    /// are counted by the next [`Engine::step`].
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn settle(&mut self) -> Result<(), RolloutError> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let start = Instant::now();
        let mut graphs = self.graphs.take().expect("they launched it");
        let read = self.read(&mut graphs, pending);
        self.graphs = Some(graphs);
        self.num_settled += read?;
        self.stats.decode_secs += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Decodes a token for each live sequence: of the step under way, or of one that starts now. The number of samples
    /// that ended.
    pub(super) fn decode_by_graph(
        &mut self,
        graphs: &mut LentDecoder,
    ) -> Result<usize, RolloutError> {
        let pending = match self.pending.take() {
            Some(pending) => pending,
            None => self.launch(graphs, None)?,
        };
        if graphs.draws() && self.may_run_ahead() {
            self.pending = Some(self.launch(graphs, Some(&pending))?);
        }
        self.read(graphs, pending)
    }

    /// Whether the step after the one that was launched last is known but for its tokens.
    fn may_run_ahead(&mut self) -> bool {
        // The step under way draws one more.
        let max_drawn = self.settings.sampling.max_new_tokens - 1;
        let Some(num_live) = self.scheduler.steady_live(&mut self.cache.pages) else {
            return false;
        };
        let goes_on =
            |id: SampleId| self.active[&id.request].samples[id.sample].tokens.len() < max_drawn;
        (0..num_live).any(|slot| goes_on(self.live(slot)))
    }

    /// Starts a step of all live sequences, which have room for it, behind `before`, whose tokens are not read.
    fn launch(
        &mut self,
        graphs: &mut LentDecoder,
        before: Option<&PendingStep>,
    ) -> Result<PendingStep, RolloutError> {
        let num_live = self.scheduler.num_live();
        let ids: Vec<SampleId> = (0..num_live).map(|slot| self.live(slot)).collect();
        let mut tokens = Vec::with_capacity(ids.len());
        let mut draws = Vec::with_capacity(ids.len());
        for (slot, id) in ids.iter().enumerate() {
            let active = &self.active[&id.request];
            let sampled = &active.samples[id.sample].tokens;
            tokens.push(match before {
                Some(before) => StepToken::Drawn(before.row(*id, slot)),
                None => {
                    StepToken::Known(*sampled.last().expect("a live sequence has a first token"))
                }
            });
            let position = sampled.len() + usize::from(before.is_some());
            let (seed, prompt_id) = (self.settings.seed, active.request.prompt_id);
            draws.push(draws::uniform(
                seed,
                prompt_id,
                id.sample as u64,
                position as u64,
            ));
        }
        let launched = graphs.launch(self.model, &mut self.cache, &tokens, &draws)?;
        Ok(PendingStep {
            launched,
            ids,
            policy_version: self.policy_version,
        })
    }

    /// Records what `pending` drew, but for sequences that had ended; the number of samples that end.
    fn read(
        &mut self,
        graphs: &mut LentDecoder,
        pending: PendingStep,
    ) -> Result<usize, RolloutError> {
        let PendingStep {
            launched,
            ids,
            policy_version,
        } = pending;
        let step = graphs.read(self.model, launched)?;
        let mut num_rows = 0;
        let mut num_finished = 0;
        for (row, &id) in ids.iter().enumerate() {
            // Its group may have been taken away since.
            let active = self.active.get_mut(&id.request);
            let sample = active.map(|active| &mut active.samples[id.sample]);
            let Some(sample) =
                sample.filter(|sample| sample.finish_reason == FinishReason::Unfinished)
            else {
                continue;
            };
            sample.routing.ids.extend(step.experts(row));
            num_rows += 1;
            if step.logits.is_some() {
                continue;
            }
            let drawn = step.drawn(row);
            let token = SampledToken {
                id: drawn.id,
                logprob: drawn.logprob,
                kept: step.kept(row),
                entropy: drawn.entropy,
            };
            num_finished += self.record(id, token, policy_version)?;
        }
        self.stats.decoded_tokens += num_rows;
        self.stats.key_share_sum += num_rows as f64;
        match step.logits {
            Some(logits) => self.postprocess(NextTokens {
                slots: (0..ids.len()).collect(),
                logits: logits.to_kind(Kind::Float),
                policy_versions: vec![policy_version; ids.len()],
            }),
            None => Ok(num_finished),
        }
    }
}

impl PendingStep {
    /// The row of `id`, which lives in `slot` now: the same but where sequences have moved into gaps.
    fn row(&self, id: SampleId, slot: usize) -> usize {
        let is_there = |row: &usize| self.ids.get(*row) == Some(&id);
        let stays = Some(slot).filter(is_there);
        stays
            .or_else(|| self.ids.iter().position(|other| *other == id))
            .expect("what lives on was in the step before")
    }
}
