//! Which sample runs in which cache slot: continuous batching with one prefill per prompt.
//!
//! Samples wait in request order. Whenever slots are free, waiting samples are admitted first;
//! otherwise every live sequence takes one decode step. A prompt is prefilled once, for its first
//! sample; its siblings, in the same wave or later, copy the prompt's rows from a slot that still
//! holds them. Such a slot always exists: a finished sequence's slot keeps its rows until it is
//! reused, and the next waiting sibling is the first to reuse it. Tensors are unknown here.

use std::collections::VecDeque;

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

/// The waiting line and the slots.
#[derive(Debug)]
pub struct Scheduler {
    waiting: VecDeque<SampleId>,
    prompt_lens: Vec<usize>,
    slots: Vec<Slot>,
}

impl Scheduler {
    /// Schedules `num_samples[r]` samples of each request r with a prompt of `prompt_lens[r]` tokens.
    pub fn new(prompt_lens: Vec<usize>, num_samples: &[usize], num_slots: usize) -> Scheduler {
        assert!(num_slots > 0, "the engine needs at least one slot");
        let waiting = num_samples
            .iter()
            .enumerate()
            .flat_map(|(request, &count)| {
                (0..count).map(move |sample| SampleId { request, sample })
            })
            .collect();
        Scheduler {
            waiting,
            prompt_lens,
            slots: vec![Slot::default(); num_slots],
        }
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
            .is_some_and(|head| head.request <= request)
    }

    /// Gives free slots to waiting samples, in order.
    fn admit(&mut self) -> Vec<Admission> {
        let mut admissions = Vec::new();
        let mut prefill_tokens = 0;
        while let Some(&id) = self.waiting.front() {
            let Some(slot) = self.free_slot(id.request) else {
                break;
            };
            let source = match self.slot_holding(id.request, slot) {
                Some(from) => PromptSource::Slot(from),
                None => {
                    prefill_tokens += self.prompt_lens[id.request];
                    if prefill_tokens > MAX_PREFILL_TOKENS && !admissions.is_empty() {
                        break;
                    }
                    PromptSource::Prefill
                }
            };
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

/// Checks that every prompt can be generated from: some tokens, and room for `max_new_tokens`.
///
/// # Errors
/// An empty prompt, or one that does not fit into `max_position_embeddings` tokens of context.
pub fn check_fit(
    prompts: impl Iterator<Item = (u64, usize)>,
    max_new_tokens: usize,
    max_position_embeddings: usize,
) -> Result<(), RolloutError> {
    for (prompt_id, prompt_tokens) in prompts {
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
    }
    Ok(())
}
