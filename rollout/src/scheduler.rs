//! Which sample runs in which cache slot, and on which pages: continuous batching with one prefill a prompt.
//!
//! Samples wait by turns: what was preempted first, then the requests in the order in which they came between two
//! steps; within a turn those begun elsewhere come first, then the longest prompts. Whenever slots and pages are
//! free, waiting samples are admitted; otherwise every live sequence takes one decode step. A prompt is prefilled
//! once, for its first sample; its pages are held as long as siblings wait, who share them. A step's prefill has a
//! budget of tokens, and live sequences take a step before the next one. What is longer than the budget is run in parts,
//! one a prefill: it has a slot and all its pages from the first part on, and nobody is admitted before the last.
//!
//! Where a live sequence finds no page for its next token, the one with the least progress is taken out and waits in
//! front: its prompt and tokens are run again later, its tokens alone where a sibling still holds the prompt, and what it
//! has drawn stays. What is run in parts may be taken out too, and begins anew. A sequence that waits for what a tool or a
//! user says is parked: it has no slot, and keeps its pages as long as nobody needs them. Tensors are unknown here.

mod admission;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use model::pages::{HeldPages, Pages};

use crate::error::RolloutError;

/// One sample by the index of its request and its index within the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// On pages that the slot shares already.
    Shared,
    /// Nowhere, or on a sibling's pages that the slot shares already, and part of the sample was drawn before: run what
    /// is missing of both through the model, draw nothing yet.
    Restore,
}

/// A sample that starts now, or a part of it that is run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which sample.
    pub id: SampleId,
    /// Where it will live.
    pub slot: usize,
    /// Where its prompt is. Prefills come before those who share them.
    pub source: PromptSource,
    /// The first token of its sequence that is run now; the cache holds those before.
    pub begin: usize,
    /// The end of what is run now; with nothing to run where it begins.
    pub end: usize,
    /// Nothing is left to be run: from now on it decodes.
    pub is_complete: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start these samples: prefill, draw the first tokens of those that are complete.
    Admit(Vec<Admission>),
    /// Decode slots `0..num_live`, which have room for a token.
    Decode {
        /// Live sequences.
        num_live: usize,
    },
}

/// A sequence being generated, or about to be.
#[derive(Clone, Copy, Debug)]
struct Live {
    id: SampleId,
    prompt_len: usize,
    source: PromptSource,
    /// Tokens that are still to be run before it decodes: none but in the one sequence that is run in parts.
    num_left: usize,
}

impl Live {
    fn decodes(&self) -> bool {
        self.num_left == 0
    }
}

/// A sample that has no slot, in the order of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    /// 0 for what was preempted.
    turn: usize,
    is_fresh: bool,
    /// Tokens to be run through the model; the longest first.
    num_tokens: Reverse<usize>,
    id: SampleId,
    prompt_len: usize,
}

/// The waiting line and the slots.
#[derive(Debug)]
pub struct Scheduler {
    waiting: BTreeSet<Waiting>,
    /// Samples of each request that wait and have not begun.
    num_fresh: BTreeMap<usize, usize>,
    slots: Vec<Option<Live>>,
    /// Prompts of requests with samples that have not begun.
    prompts: BTreeMap<usize, HeldPages>,
    /// What the cache holds of sequences that are parked, or that were and wait for a slot.
    parked: BTreeMap<SampleId, HeldPages>,
    max_prefill_tokens: usize,
    /// That of the requests that come now.
    turn: usize,
    /// The last prefill was ended by its budget.
    is_prefill_due: bool,
    num_preempted: usize,
}

impl Scheduler {
    /// Nothing to do, in `num_slots` slots. At most `max_prefill_tokens` are run through the model in one prefill.
    pub fn new(num_slots: usize, max_prefill_tokens: usize) -> Scheduler {
        assert!(num_slots > 0, "the engine needs at least one slot");
        assert!(max_prefill_tokens > 0, "a prefill runs at least one token");
        Scheduler {
            waiting: BTreeSet::new(),
            num_fresh: BTreeMap::new(),
            slots: vec![None; num_slots],
            prompts: BTreeMap::new(),
            parked: BTreeMap::new(),
            max_prefill_tokens,
            turn: 1,
            is_prefill_due: false,
            num_preempted: 0,
        }
    }

    /// Adds samples of `request`, whose number is above all before: those of which (index, tokens) were drawn
    /// elsewhere, one at least, and `fresh` ones.
    pub fn add(
        &mut self,
        request: usize,
        prompt_len: usize,
        unfinished: &[(usize, usize)],
        fresh: Range<usize>,
    ) {
        let turn = self.turn;
        let waiting = |sample, num_tokens, is_fresh| Waiting {
            turn,
            is_fresh,
            num_tokens: Reverse(num_tokens),
            id: SampleId { request, sample },
            prompt_len,
        };
        let restored = unfinished.iter().map(|&(index, drawn)| {
            let in_cache = prompt_len + drawn.saturating_sub(1);
            waiting(index, in_cache, false)
        });
        self.waiting.extend(restored);
        if !fresh.is_empty() {
            self.num_fresh.insert(request, fresh.len());
        }
        self.waiting
            .extend(fresh.map(|index| waiting(index, prompt_len, true)));
    }

    /// The next thing to do; `None` when every sample has finished.
    ///
    /// # Panics
    /// Where all pages are too few for a single sequence.
    pub fn schedule(&mut self, pages: &mut Pages) -> Option<Step> {
        self.turn += 1;
        let is_prefill_due = std::mem::take(&mut self.is_prefill_due);
        if !(is_prefill_due && self.num_live() > 0) {
            let admissions = self.admit(pages);
            if !admissions.is_empty() {
                return Some(Step::Admit(admissions));
            }
        }
        self.make_room(pages);
        self.close_gaps(pages);
        let num_live = self.num_live();
        if num_live > 0 {
            return Some(Step::Decode { num_live });
        }
        // What is run in parts may have been left alone.
        let admissions = self.admit(pages);
        (!admissions.is_empty()).then_some(Step::Admit(admissions))
    }

    /// The sequence that decodes in `slot`.
    pub fn live(&self, slot: usize) -> Option<SampleId> {
        self.slots[slot].filter(Live::decodes).map(|live| live.id)
    }

    /// Ends the sequence in `slot`.
    pub fn finish(&mut self, slot: usize, pages: &mut Pages) {
        self.slots[slot] = None;
        pages.clear(slot);
    }

    /// Ends the sequence of `id`, which is live.
    pub fn finish_sample(&mut self, id: SampleId, pages: &mut Pages) {
        let is_its = |live: &Option<Live>| live.is_some_and(|live| live.id == id);
        let slot = self.slots.iter().position(is_its);
        self.finish(slot.expect("it is live"), pages);
    }

    /// Takes the sequence of `id`, which is live, out of its slot until [`Scheduler::resume`] or [`Scheduler::unpark`]; its
    /// first `len` tokens stay in the cache while there is room.
    pub fn park(&mut self, id: SampleId, len: usize, pages: &mut Pages) {
        let is_its = |live: &Option<Live>| live.is_some_and(|live| live.id == id);
        let slot = self.slots.iter().position(is_its).expect("it is live");
        self.parked.insert(id, pages.hold(slot, len));
        self.finish(slot, pages);
    }

    /// Lets a parked sequence go on, before whatever waits: it has `num_tokens` tokens to be in the cache.
    pub fn resume(&mut self, id: SampleId, prompt_len: usize, num_tokens: usize) {
        self.waiting.insert(Waiting {
            turn: 0,
            is_fresh: false,
            num_tokens: Reverse(num_tokens),
            id,
            prompt_len,
        });
    }

    /// Forgets what the cache holds of a parked sequence.
    pub fn unpark(&mut self, id: SampleId, pages: &mut Pages) {
        if let Some(held) = self.parked.remove(&id) {
            pages.release(held);
        }
    }

    /// The live sequences, now in the slots from 0, where the next step is sure to decode them all and no page has to
    /// be copied for that; `None` otherwise.
    pub fn steady_live(&mut self, pages: &mut Pages) -> Option<usize> {
        let has_free_slot = self.slots.iter().any(Option::is_none);
        let is_admitting = has_free_slot && !self.waiting.is_empty();
        if is_admitting || self.num_held() > self.num_live() {
            return None;
        }
        self.close_gaps(pages);
        let num_live = self.num_live();
        pages.grow_alone(num_live).then_some(num_live)
    }

    /// Whether samples of `request` wait that have not begun.
    pub fn is_waiting(&self, request: usize) -> bool {
        self.num_fresh.contains_key(&request)
    }

    /// Takes every sequence and every prompt out of its pages.
    pub fn preempt_all(&mut self, pages: &mut Pages) {
        for slot in 0..self.slots.len() {
            self.preempt(slot, pages);
        }
        let prompts = std::mem::take(&mut self.prompts).into_values();
        let parked = std::mem::take(&mut self.parked).into_values();
        prompts.chain(parked).for_each(|held| pages.release(held));
    }

    /// Sequences taken out since the last call.
    pub fn take_num_preempted(&mut self) -> usize {
        std::mem::take(&mut self.num_preempted)
    }

    /// Sequences that decode.
    pub fn num_live(&self) -> usize {
        let sequences = self.slots.iter().flatten();
        sequences.filter(|live| live.decodes()).count()
    }

    /// Sequences that have a slot.
    fn num_held(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Takes a page for the next token of every live sequence, and for that as many as need be out of theirs.
    fn make_room(&mut self, pages: &mut Pages) {
        let is_short = |slot: usize| self.live(slot).is_some() && !pages.make_room(slot);
        if !(0..self.slots.len()).any(is_short) {
            return;
        }
        let live = self.slots.iter().enumerate();
        let live = live.filter_map(|(slot, live)| Some((slot, live.filter(Live::decodes)?)));
        let mut by_progress: Vec<(usize, usize)> = live
            .map(|(slot, live)| (progress(live, slot, pages), slot))
            .collect();
        by_progress.sort_by_key(|&(progress, slot)| (Reverse(progress), self.live(slot)));
        for (_, slot) in by_progress {
            while self.slots[slot].is_some() && !pages.make_room(slot) {
                self.reclaim(pages);
            }
        }
    }

    /// Frees pages: prompts that nobody continues now, then what is parked, then the sequence with the least progress.
    fn reclaim(&mut self, pages: &mut Pages) {
        let is_live = |request: usize| {
            let mut live = self.slots.iter().flatten();
            live.any(|live| live.id.request == request)
        };
        let idle = self
            .prompts
            .keys()
            .rev()
            .find(|&&request| !is_live(request));
        if let Some(&idle) = idle {
            return self.drop_prompt(idle, pages);
        }
        if let Some((_, held)) = self.parked.pop_last() {
            return pages.release(held);
        }
        let live = self.slots.iter().enumerate();
        let live = live.filter_map(|(slot, live)| live.map(|live| (slot, live)));
        let youngest =
            live.min_by_key(|&(slot, live)| (progress(live, slot, pages), Reverse(live.id)));
        match youngest {
            Some((slot, _)) if self.num_held() > 1 => self.preempt(slot, pages),
            _ => {
                let last = self.prompts.keys().next_back().copied();
                let last = last.expect("the pages hold one sequence of the longest");
                self.drop_prompt(last, pages);
            }
        }
    }

    /// Lets go of a prompt; it is prefilled again for the next of its samples.
    fn drop_prompt(&mut self, request: usize, pages: &mut Pages) {
        if let Some(held) = self.prompts.remove(&request) {
            pages.release(held);
        }
    }

    /// Takes the sequence in `slot`, if there is one, out, to the head of the line.
    fn preempt(&mut self, slot: usize, pages: &mut Pages) {
        let Some(live) = self.slots[slot].take() else {
            return;
        };
        self.waiting.insert(Waiting {
            turn: 0,
            // Of a prompt that is run in parts nothing has been drawn yet.
            is_fresh: live.source == PromptSource::Prefill && !live.decodes(),
            num_tokens: Reverse(pages.len(slot)),
            id: live.id,
            prompt_len: live.prompt_len,
        });
        pages.clear(slot);
        self.num_preempted += 1;
    }

    /// Moves the last sequences that decode into gaps, and to where what is run in parts lies before them.
    fn close_gaps(&mut self, pages: &mut Pages) {
        loop {
            let mut slots = 0..self.slots.len();
            let gap = slots.clone().find(|&slot| self.live(slot).is_none());
            let last = slots.rfind(|&slot| self.live(slot).is_some());
            match (gap, last) {
                (Some(to), Some(from)) if to < from => {
                    self.slots.swap(to, from);
                    pages.swap_slots(to, from);
                }
                _ => return,
            }
        }
    }
}

/// Tokens of the completion that the cache holds.
fn progress(live: Live, slot: usize, pages: &Pages) -> usize {
    pages
        .len(slot)
        .saturating_sub(live.num_left + live.prompt_len)
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
mod tests;
