//! Which sample runs in which cache slot, and on which pages: continuous batching with one prefill a prompt.
//!
//! Samples wait by turns: what was preempted first, then the requests in the order in which they came between two
//! steps; within a turn those begun elsewhere come first, then the longest prompts. Whenever slots and pages are
//! free, waiting samples are admitted; otherwise every live sequence takes one decode step. A prompt is prefilled
//! once, for its first sample; its pages are held as long as siblings wait, who share them. A step's prefill has a
//! budget of tokens, and live sequences take a step before the next one.
//!
//! Where a live sequence finds no page for its next token, the one with the least progress is taken out and waits in
//! front: its prompt and tokens are run again later, and what it has drawn stays. Tensors are unknown here.

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
    /// Nowhere, and part of the sample was drawn before: run both through the model, draw nothing yet.
    Restore,
}

/// A sample that starts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which sample.
    pub id: SampleId,
    /// Where it will live.
    pub slot: usize,
    /// Where its prompt is. Prefills come before those who share them.
    pub source: PromptSource,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start these samples: prefill, draw their first tokens.
    Admit(Vec<Admission>),
    /// Decode slots `0..num_live`, which have room for a token.
    Decode {
        /// Live sequences.
        num_live: usize,
    },
}

/// A sequence being generated.
#[derive(Clone, Copy, Debug)]
struct Live {
    id: SampleId,
    prompt_len: usize,
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
    max_prefill_tokens: usize,
    /// That of the requests that come now.
    turn: usize,
    /// The last prefill was ended by its budget.
    is_prefill_due: bool,
    num_preempted: usize,
}

impl Scheduler {
    /// Nothing to do, in `num_slots` slots. At most `max_prefill_tokens` are run through the model in one prefill,
    /// or a single longer sequence.
    pub fn new(num_slots: usize, max_prefill_tokens: usize) -> Scheduler {
        assert!(num_slots > 0, "the engine needs at least one slot");
        Scheduler {
            waiting: BTreeSet::new(),
            num_fresh: BTreeMap::new(),
            slots: vec![None; num_slots],
            prompts: BTreeMap::new(),
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
        (num_live > 0).then_some(Step::Decode { num_live })
    }

    /// The sequence that lives in `slot`.
    pub fn live(&self, slot: usize) -> Option<SampleId> {
        self.slots[slot].map(|live| live.id)
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

    /// The live sequences, now in the slots from 0, where the next step is sure to decode them all and no page has to
    /// be copied for that; `None` otherwise.
    pub fn steady_live(&mut self, pages: &mut Pages) -> Option<usize> {
        let has_free_slot = self.slots.iter().any(Option::is_none);
        if has_free_slot && !self.waiting.is_empty() {
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
        for (_, held) in std::mem::take(&mut self.prompts) {
            pages.release(held);
        }
    }

    /// Sequences taken out since the last call.
    pub fn take_num_preempted(&mut self) -> usize {
        std::mem::take(&mut self.num_preempted)
    }

    /// Live sequences.
    pub fn num_live(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Gives free slots and pages to waiting samples, in order.
    fn admit(&mut self, pages: &mut Pages) -> Vec<Admission> {
        let mut admissions = Vec::new();
        let mut prefill_tokens = 0;
        let mut num_live = self.num_live();
        let mut next_slot = 0;
        while let Some(&next) = self.waiting.first() {
            let mut free = next_slot..self.slots.len();
            let Some(slot) = free.find(|&slot| self.slots[slot].is_none()) else {
                break;
            };
            let (request, Reverse(len)) = (next.id.request, next.num_tokens);
            let source = match next.is_fresh {
                false => PromptSource::Restore,
                true if self.prompts.contains_key(&request) => PromptSource::Shared,
                true => PromptSource::Prefill,
            };
            let num_tokens = match source {
                PromptSource::Shared => 0,
                PromptSource::Prefill | PromptSource::Restore => len,
            };
            prefill_tokens += num_tokens;
            if prefill_tokens > self.max_prefill_tokens && !admissions.is_empty() && num_tokens > 0
            {
                self.is_prefill_due = true;
                break;
            }
            if !self.has_free(pages.pages_for(num_tokens), num_live, pages) {
                break;
            }
            self.waiting.pop_first();
            let is_last = next.is_fresh && self.count_begun(request);
            if source == PromptSource::Shared {
                pages.share(&self.prompts[&request], slot);
            } else {
                assert!(pages.begin(slot, len), "pages were counted");
                if self.is_waiting(request) && !self.prompts.contains_key(&request) {
                    self.prompts
                        .insert(request, pages.hold(slot, next.prompt_len));
                }
            }
            if is_last && let Some(held) = self.prompts.remove(&request) {
                pages.release(held);
            }
            self.slots[slot] = Some(Live {
                id: next.id,
                prompt_len: next.prompt_len,
            });
            admissions.push(Admission {
                id: next.id,
                slot,
                source,
            });
            num_live += 1;
            next_slot = slot + 1;
        }
        admissions
    }

    /// Counts a sample of `request` that begins; whether it was the last.
    fn count_begun(&mut self, request: usize) -> bool {
        let waiting = self.num_fresh.get_mut(&request);
        let waiting = waiting.expect("counted when it came");
        *waiting -= 1;
        let is_last = *waiting == 0;
        if is_last {
            self.num_fresh.remove(&request);
        }
        is_last
    }

    /// Whether `wanted` pages are free, and one more for the next token of every live sequence, the new one
    /// included: otherwise it would be taken out again at once. One that is alone gets what it needs.
    fn has_free(&mut self, wanted: usize, num_live: usize, pages: &mut Pages) -> bool {
        if num_live > 0 {
            return pages.num_free() > wanted + num_live;
        }
        while pages.num_free() < wanted {
            let last = self.prompts.keys().next_back().copied();
            let last = last.expect("the pages hold one sequence of the longest");
            self.drop_prompt(last, pages);
        }
        true
    }

    /// Takes a page for the next token of every live sequence, and for that as many as need be out of theirs.
    fn make_room(&mut self, pages: &mut Pages) {
        let is_short = |slot: usize| self.slots[slot].is_some() && !pages.make_room(slot);
        if !(0..self.slots.len()).any(is_short) {
            return;
        }
        let live = self.slots.iter().enumerate();
        let mut by_progress: Vec<(usize, usize)> = live
            .filter_map(|(slot, live)| live.map(|live| (progress(live, slot, pages), slot)))
            .collect();
        by_progress.sort_by_key(|&(progress, slot)| (Reverse(progress), self.live(slot)));
        for (_, slot) in by_progress {
            while self.slots[slot].is_some() && !pages.make_room(slot) {
                self.reclaim(pages);
            }
        }
    }

    /// Frees pages: prompts that nobody continues now, then the sequence with the least progress.
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
        let live = self.slots.iter().enumerate();
        let live = live.filter_map(|(slot, live)| live.map(|live| (slot, live)));
        let youngest =
            live.min_by_key(|&(slot, live)| (progress(live, slot, pages), Reverse(live.id)));
        match youngest {
            Some((slot, _)) if self.num_live() > 1 => self.preempt(slot, pages),
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
            is_fresh: false,
            num_tokens: Reverse(pages.len(slot)),
            id: live.id,
            prompt_len: live.prompt_len,
        });
        pages.clear(slot);
        self.num_preempted += 1;
    }

    /// Moves the last live sequences into gaps.
    fn close_gaps(&mut self, pages: &mut Pages) {
        loop {
            let gap = self.slots.iter().position(Option::is_none);
            let last = self.slots.iter().rposition(Option::is_some);
            match (gap, last) {
                (Some(to), Some(from)) if to < from => {
                    self.slots[to] = self.slots[from].take();
                    pages.move_slot(from, to);
                }
                _ => return,
            }
        }
    }
}

/// Tokens of the completion that the cache holds.
fn progress(live: Live, slot: usize, pages: &Pages) -> usize {
    pages.len(slot) - live.prompt_len
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
