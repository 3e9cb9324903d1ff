//! Samples of several turns: a stop token pauses them until a tool or a user has answered.
//!
//! The answer's tokens are given to the sample, which goes on from the cache: only the stop token and what was given
//! are run through the model, and where the pages had to be let go of meanwhile all of it. Experts and keys of given
//! tokens are recorded as those of a prompt.

use super::Engine;
use crate::error::RolloutError;
use crate::generation::PausedSample;
use crate::sample::FinishReason;
use crate::scheduler::SampleId;

impl Engine<'_> {
    /// Takes the sample out of its slot; its turn has ended.
    pub(super) fn pause(&mut self, id: SampleId) {
        let active = &self.active[&id.request];
        // The stop token has not been run.
        let num_run = active.request.tokens.len() + active.samples[id.sample].tokens.len() - 1;
        self.scheduler.park(id, num_run, &mut self.cache.pages);
        let active = self.active.get_mut(&id.request).expect("it is at work");
        active.paused.insert(id.sample);
        self.newly_paused.push(id);
    }

    /// The samples whose turn has ended since the last call, by a stop token or for want of room. Each of the former
    /// waits for [`Engine::resume`] or [`Engine::finish_paused`].
    pub fn take_paused(&mut self) -> Vec<PausedSample> {
        let max_new_tokens = self.settings.sampling.max_new_tokens;
        let paused = std::mem::take(&mut self.newly_paused).into_iter();
        let paused = paused.filter_map(|id| {
            let active = self.active.get(&id.request)?;
            let sample = &active.samples[id.sample];
            let begin = sample.given.last().map_or(0, |given| given.end);
            Some(PausedSample {
                prompt_id: active.request.prompt_id,
                sample: id.sample,
                turn: sample.tokens[begin..].to_vec(),
                room: max_new_tokens - sample.tokens.len(),
                is_cut: sample.finish_reason == FinishReason::Length,
            })
        });
        paused.collect()
    }

    /// Lets a paused sample go on behind `given`, some tokens that leave room for one to be drawn.
    ///
    /// # Errors
    /// As [`Engine::step`].
    ///
    /// # Panics
    /// When the sample is not paused, or `given` is empty or too long.
    pub fn resume(
        &mut self,
        prompt_id: u64,
        sample: usize,
        given: &[u32],
    ) -> Result<(), RolloutError> {
        // A step that runs ahead has a row of it that must not be read as its next token.
        self.settle()?;
        let id = self.paused_id(prompt_id, sample);
        let policy_version = self.policy_version;
        let max_new_tokens = self.settings.sampling.max_new_tokens;
        let active = self.active.get_mut(&id.request).expect("it is at work");
        active.paused.remove(&id.sample);
        let sample = &mut active.samples[id.sample];
        let begin = sample.tokens.len();
        let end = begin + given.len();
        assert!(!given.is_empty() && end < max_new_tokens, "{end} tokens");
        sample.tokens.extend_from_slice(given);
        sample.sampler_logprobs.resize(end, 0.0);
        given.iter().for_each(|_| sample.kept.push(&[]));
        sample.policy_versions.resize(end, policy_version);
        sample.given.push(begin..end);
        sample.finish_reason = FinishReason::Unfinished;
        let prompt_len = active.request.tokens.len();
        // The last token is run by the step that draws the next.
        self.scheduler.resume(id, prompt_len, prompt_len + end - 1);
        Ok(())
    }

    /// Ends a paused sample: [`Engine::take_finished`] gives it. `reason` is why.
    ///
    /// # Panics
    /// When the sample is not paused.
    pub fn finish_paused(&mut self, prompt_id: u64, sample: usize, reason: FinishReason) {
        let id = self.paused_id(prompt_id, sample);
        self.scheduler.unpark(id, &mut self.cache.pages);
        let active = self.active.get_mut(&id.request).expect("it is at work");
        active.paused.remove(&id.sample);
        active.samples[id.sample].finish_reason = reason;
        active.num_finished += 1;
    }

    /// Whether the sample waits for an answer.
    pub fn is_paused(&self, prompt_id: u64, sample: usize) -> bool {
        let mut active = self.active.values();
        let found = active.find(|active| active.request.prompt_id == prompt_id);
        found.is_some_and(|active| active.paused.contains(&sample))
    }

    /// Tokens that may follow behind a paused sample, given ones and drawn ones.
    ///
    /// # Panics
    /// When the sample is not paused.
    pub fn room(&self, prompt_id: u64, sample: usize) -> usize {
        let id = self.paused_id(prompt_id, sample);
        let sample = &self.active[&id.request].samples[id.sample];
        self.settings.sampling.max_new_tokens - sample.tokens.len()
    }

    fn paused_id(&self, prompt_id: u64, sample: usize) -> SampleId {
        let mut active = self.active.iter();
        let found = active.find(|(_, active)| active.request.prompt_id == prompt_id);
        let (&request, active) = found.expect("the request is at work");
        assert!(active.paused.contains(&sample), "the sample is not paused");
        SampleId { request, sample }
    }
}
