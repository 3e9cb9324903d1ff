//! Which sample runs in which cache slot: continuous batching with one prefill per prompt.
//!
//! Samples wait in request order. Whenever slots are free, waiting samples are admitted first;
//! otherwise every live sequence takes one decode step. A prompt is prefilled once, for its first
//! sample; its siblings, in the same wave or later, copy the prompt's rows from a slot that still
//! holds them. Such a slot always exists: a finished sequence's slot keeps its rows until it is
//! reused, and the next waiting sibling is the first to reuse it. Tensors are unknown here.

use std::collections::VecDeque;
use std::ops::Range;

use crate::error::RolloutError;

/// Prompt tokens prefilled in one forward pass, at most (a single longer prompt goes alone):
/// bounds the activations when many prompts start together.
const MAX_PREFILL_TOKENS: usize = 8192;

/// One sample by the index of its request and its index within the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleId {
    /// Index of the request.
    pub request: usize,
    /// Index of the sample within the request.
    pub sample: usize,
}

/// Where an admitted sample finds its prompt's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptSource {
    /// Nowhere yet: run the prompt through the model.
    Prefill,
    /// In this slot, possibly its own, followed by another sample's tokens.
    Slot(usize),
    /// Nowhere, and part of the sample was drawn elsewhere: run both through the model, draw nothing yet.
    Restore,
}

/// A sample that starts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which sample.
    pub id: SampleId,
    /// Where it will live.
    pub slot: usize,
    /// Where its prompt is. Prefills come before copies.
    pub source: PromptSource,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start these samples: prefill, copy, draw their first tokens.
    Admit(Vec<Admission>),
    /// Move sequences (from, to) in this order, then decode slots `0..num_live`.
    Decode {
        /// Copies that close the gaps finished sequences left.
        moves: Vec<(usize, usize)>,
        /// Live sequences.
        num_live: usize,
    },
}

/// What the scheduler knows of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The sequence being generated.
    live: Option<SampleId>,
    /// The request whose prompt the cache rows begin with.
    resident: Option<usize>,
}

/// A sample that has no slot yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: SampleId,
    prompt_len: usize,
    /// Tokens drawn elsewhere, where it was begun there.
    drawn: Option<usize>,
}

/// The waiting line and the slots.
#[derive(Debug)]
pub struct Scheduler {
    waiting: VecDeque<Waiting>,
    slots: Vec<Slot>,
}

impl Scheduler {
    /// Nothing to do, in `num_slots` slots.
    pub fn new(num_slots: usize) -> Scheduler {
        assert!(num_slots > 0, "the engine needs at least one slot");
        Scheduler {
            waiting: VecDeque::new(),
            slots: vec![Slot::default(); num_slots],
        }
    }

    /// Adds samples of `request`, whose number is above all before, to the end of the line: those of
    /// which (index, tokens) were drawn elsewhere, then `fresh` ones.
    pub fn add(
        &mut self,
        request: usize,
        prompt_len: usize,
        unfinished: &[(usize, usize)],
        fresh: Range<usize>,
    ) {
        let waiting = |sample, drawn| Waiting {
            id: SampleId { request, sample },
            prompt_len,
            drawn,
        };
        let unfinished = unfinished
            .iter()
            .map(|&(index, drawn)| waiting(index, Some(drawn)));
        self.waiting.extend(unfinished);
        self.waiting.extend(fresh.map(|index| waiting(index, None)));
    }

    /// The next thing to do; `None` when every sample has finished.
    pub fn schedule(&mut self) -> Option<Step> {
        let admissions = self.admit();
        if !admissions.is_empty() {
            return Some(Step::Admit(admissions));
        }
        let moves = self.close_gaps();
        let num_live = self.slots.iter().filter(|slot| slot.live.is_some()).count();
        (num_live > 0).then_some(Step::Decode { moves, num_live })
    }

    /// The sequence that lives in `slot`.
    pub fn live(&self, slot: usize) -> Option<SampleId> {
        self.slots[slot].live
    }

    /// Ends the sequence in `slot`; its cache rows stay until the slot is used again.
    pub fn finish(&mut self, slot: usize) {
        self.slots[slot].live = None;
    }

    /// Whether samples of `request` still wait for a slot.
    pub fn is_waiting(&self, request: usize) -> bool {
        // The line is in request order, so only its head can be partly admitted.
        self.waiting
            .front()
            .is_some_and(|head| head.id.request <= request)
    }

    /// Gives free slots to waiting samples, in order.
    fn admit(&mut self) -> Vec<Admission> {
        let mut admissions = Vec::new();
        let mut prefill_tokens = 0;
        while let Some(&Waiting {
            id,
            prompt_len,
            drawn,
        }) = self.waiting.front()
        {
            let Some(slot) = self.free_slot(id.request) else {
                break;
            };
            let source = match (drawn, self.slot_holding(id.request, slot)) {
                (None, Some(from)) => PromptSource::Slot(from),
                (None, None) => PromptSource::Prefill,
                (Some(_), _) => PromptSource::Restore,
            };
            if !matches!(source, PromptSource::Slot(_)) {
                prefill_tokens += prompt_len + drawn.unwrap_or(0);
                if prefill_tokens > MAX_PREFILL_TOKENS && !admissions.is_empty() {
                    break;
                }
            }
            self.waiting.pop_front();
            self.slots[slot] = Slot {
                live: Some(id),
                resident: Some(id.request),
            };
            admissions.push(Admission { id, slot, source });
        }
        admissions
    }

    /// A free slot, one that already holds the prompt if there is any: taking that one first keeps
    /// the prompt resident for the samples behind.
    fn free_slot(&self, request: usize) -> Option<usize> {
        let mut free = (0..self.slots.len()).filter(|&slot| self.slots[slot].live.is_none());
        let first = free.clone().next();
        free.find(|&slot| self.slots[slot].resident == Some(request))
            .or(first)
    }

    /// A slot whose rows begin with the prompt of `request`, preferably `slot` itself.
    fn slot_holding(&self, request: usize, slot: usize) -> Option<usize> {
        if self.slots[slot].resident == Some(request) {
            return Some(slot);
        }
        self.slots
            .iter()
            .position(|other| other.resident == Some(request))
    }

    /// Moves the last live sequences into gaps. Gaps remain only when nobody waits, so no move can
    /// overwrite a prompt that is still needed.
    fn close_gaps(&mut self) -> Vec<(usize, usize)> {
        let mut moves = Vec::new();
        loop {
            let gap = self.slots.iter().position(|slot| slot.live.is_none());
            let last = self.slots.iter().rposition(|slot| slot.live.is_some());
            match (gap, last) {
                (Some(to), Some(from)) if to < from => {
                    self.slots[to] = std::mem::take(&mut self.slots[from]);
                    moves.push((from, to));
                }
                _ => return moves,
            }
        }
    }
}

/// Checks that a prompt can be generated from: some tokens, and room for `max_new_tokens`.
///
/// # Errors
/// An empty prompt, or one that does not fit into `max_position_embeddings` tokens of context.
pub fn check_fit(
    prompt_id: u64,
    prompt_tokens: usize,
    max_new_tokens: usize,
    max_position_embeddings: usize,
) -> Result<(), RolloutError> {
    if prompt_tokens == 0 {
        return Err(RolloutError::EmptyPrompt { prompt_id });
    }
    if prompt_tokens + max_new_tokens > max_position_embeddings {
        return Err(RolloutError::PromptTooLong {
            prompt_id,
            prompt_tokens,
            max_new_tokens,
            max_position_embeddings,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a slot's cache holds: the request, and how many tokens.
    type Content = Option<(usize, usize)>;

    /// Carries a schedule out on a model of the cache, checking each step; sample s of request r
    /// ends after `len(r, s)` tokens. Returns (prefills per request, decode steps).
    fn carry_out(
        prompt_lens: &[usize],
        num_samples: &[usize],
        num_slots: usize,
        len: impl Fn(usize, usize) -> usize,
    ) -> (Vec<usize>, usize) {
        let mut scheduler = Scheduler::new(num_slots);
        for (request, (&prompt_len, &count)) in prompt_lens.iter().zip(num_samples).enumerate() {
            scheduler.add(request, prompt_len, &[], 0..count);
        }
        let mut cache: Vec<Content> = vec![None; num_slots];
        let mut drawn: Vec<Vec<usize>> = num_samples.iter().map(|_| Vec::new()).collect();
        let mut prefills = vec![0; prompt_lens.len()];
        let mut num_decodes = 0;
        while let Some(step) = scheduler.schedule() {
            let active: Vec<usize> = match step {
                Step::Admit(admissions) => {
                    let wave: usize = admissions
                        .iter()
                        .filter(|a| a.source == PromptSource::Prefill)
                        .map(|a| prompt_lens[a.id.request])
                        .sum();
                    let is_alone = admissions[0].source == PromptSource::Prefill
                        && admissions[1..]
                            .iter()
                            .all(|a| a.source != PromptSource::Prefill);
                    assert!(wave <= MAX_PREFILL_TOKENS || is_alone);
                    for a in admissions
                        .iter()
                        .filter(|a| a.source == PromptSource::Prefill)
                    {
                        prefills[a.id.request] += 1;
                        cache[a.slot] = Some((a.id.request, prompt_lens[a.id.request]));
                    }
                    for a in &admissions {
                        if let PromptSource::Slot(from) = a.source {
                            let (request, tokens) = cache[from].expect("a prompt is there");
                            assert_eq!(request, a.id.request);
                            assert!(tokens >= prompt_lens[request]);
                            cache[a.slot] = Some((request, prompt_lens[request]));
                        }
                        // Samples start in order, each once.
                        assert_eq!(drawn[a.id.request].len(), a.id.sample);
                        drawn[a.id.request].push(0);
                    }
                    admissions.iter().map(|a| a.slot).collect()
                }
                Step::Decode { moves, num_live } => {
                    for (from, to) in moves {
                        cache[to] = cache[from].take();
                    }
                    num_decodes += 1;
                    let is_live = |slot: usize| scheduler.live(slot).is_some();
                    assert!((0..num_slots).all(|slot| is_live(slot) == (slot < num_live)));
                    for content in &mut cache[..num_live] {
                        content.as_mut().expect("a sequence is there").1 += 1;
                    }
                    (0..num_live).collect()
                }
            };
            for slot in active {
                let id = scheduler.live(slot).expect("live");
                let tokens = &mut drawn[id.request][id.sample];
                // The cache holds the prompt and every drawn token but the one drawn now.
                let held = prompt_lens[id.request] + *tokens;
                assert_eq!(cache[slot], Some((id.request, held)));
                *tokens += 1;
                if *tokens == len(id.request, id.sample) {
                    scheduler.finish(slot);
                }
            }
        }
        for (request, samples) in drawn.iter().enumerate() {
            assert_eq!(samples.len(), num_samples[request], "nobody is forgotten");
            for (sample, &tokens) in samples.iter().enumerate() {
                assert_eq!(
                    tokens,
                    len(request, sample),
                    "request {request} sample {sample}"
                );
            }
        }
        (prefills, num_decodes)
    }

    #[test]
    fn every_prompt_is_prefilled_once_whatever_the_slots() {
        let (prompt_lens, num_samples) = ([3, 5, 2, 7], [4, 1, 16, 3]);
        for num_slots in [1, 2, 3, 5, 24, 64] {
            for pattern in 0..20 {
                let len = |r: usize, s: usize| 1 + (r * 7 + s * 5 + pattern * (s + 3)) % 11;
                let (prefills, _) = carry_out(&prompt_lens, &num_samples, num_slots, len);
                assert_eq!(
                    prefills,
                    [1, 1, 1, 1],
                    "{num_slots} slots, pattern {pattern}"
                );
            }
        }
    }

    #[test]
    fn freed_slots_are_refilled_before_the_next_decode() {
        // Two slots, lengths 1 + decodes: 3 and 1 start; the third sample takes the slot of the
        // second at once and runs beside the first: 2 decode steps, where waves would need 4.
        let lengths = [3, 1, 3];
        let (_, num_decodes) = carry_out(&[2], &[3], 2, |_, s| lengths[s]);
        assert_eq!(num_decodes, 2);
    }

    #[test]
    fn group_larger_than_the_slots_copies_its_prompt() {
        let mut scheduler = Scheduler::new(2);
        scheduler.add(0, 4, &[], 0..3);
        let admission = |sample, slot, source| Admission {
            id: SampleId { request: 0, sample },
            slot,
            source,
        };
        assert_eq!(
            scheduler.schedule(),
            Some(Step::Admit(vec![
                admission(0, 0, PromptSource::Prefill),
                admission(1, 1, PromptSource::Slot(0)),
            ]))
        );
        assert!(scheduler.is_waiting(0));
        scheduler.finish(0);
        scheduler.finish(1);
        assert_eq!(
            scheduler.schedule(),
            Some(Step::Admit(vec![admission(2, 0, PromptSource::Slot(0))]))
        );
        assert!(!scheduler.is_waiting(0));
        let moves = Vec::new();
        assert_eq!(
            scheduler.schedule(),
            Some(Step::Decode { moves, num_live: 1 })
        );
        scheduler.finish(0);
        assert_eq!(scheduler.schedule(), None);
    }

    #[test]
    fn new_prompt_does_not_overwrite_one_that_is_still_needed() {
        // Both slots end together; the second holds the only copy of a prompt whose second sample
        // waits in front of a new prompt.
        let (prefills, _) = carry_out(&[3, 5, 2], &[1, 2, 1], 2, |_, _| 2);
        assert_eq!(prefills, [1, 1, 1]);
    }

    #[test]
    fn many_long_prompts_are_prefilled_in_several_passes() {
        let (prefills, num_decodes) = carry_out(&[5000, 5000, 9000, 100], &[2; 4], 8, |_, _| 2);
        assert_eq!((prefills, num_decodes), (vec![1; 4], 1));
    }

    #[test]
    fn prompt_and_completion_must_fit_the_context() {
        assert!(check_fit(7, 40, 24, 64).is_ok());
        let error = check_fit(7, 41, 24, 64).unwrap_err();
        let message = error.to_string();
        for part in [
            "prompt 7 ",
            "41 tokens",
            "sampling.max_new_tokens` = 24",
            "needs 65",
            "of 64",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let empty = check_fit(9, 0, 1, 64).unwrap_err().to_string();
        assert!(empty.contains("prompt 9 has no tokens"), "{empty}");
    }
}
