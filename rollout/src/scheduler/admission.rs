//! Who starts, and with how much of its sequence: the line, the free slots and pages, the budget of a prefill.

use std::cmp::Reverse;

use model::pages::Pages;

use super::{Admission, Live, PromptSource, Scheduler, Waiting};

/// Where a sample that was begun before finds its prompt.
#[derive(Clone, Copy, Debug)]
enum Holder {
    /// In the slot of a sibling that decodes.
    Sibling(usize),
    /// On the pages that are held for siblings that wait.
    Prompts,
    /// On the pages it had when it was parked, with most of the rest.
    Parked { num_tokens: usize },
}

impl Holder {
    /// Tokens of `next` that it holds.
    fn num_tokens(self, next: Waiting) -> usize {
        match self {
            Holder::Sibling(_) | Holder::Prompts => next.prompt_len,
            Holder::Parked { num_tokens } => num_tokens,
        }
    }
}

impl Scheduler {
    /// Goes on with what is run in parts, then gives free slots and pages to waiting samples, in order, as far as the
    /// budget of tokens goes.
    pub(super) fn admit(&mut self, pages: &mut Pages) -> Vec<Admission> {
        let mut admissions = Vec::new();
        let mut budget = self.max_prefill_tokens;
        let is_in_parts = |live: &Option<Live>| live.is_some_and(|live| !live.decodes());
        if let Some(slot) = self.slots.iter().position(is_in_parts) {
            admissions.push(self.run_part(slot, &mut budget, pages));
        }
        let mut next_slot = 0;
        while admissions.last().is_none_or(|last| last.is_complete)
            && let Some(&next) = self.waiting.first()
        {
            let mut free = next_slot..self.slots.len();
            let Some(slot) = free.find(|&slot| self.slots[slot].is_none()) else {
                return admissions;
            };
            let source = match next.is_fresh {
                false => PromptSource::Restore,
                true if self.prompts.contains_key(&next.id.request) => PromptSource::Shared,
                true => PromptSource::Prefill,
            };
            let (holder, wanted) = self.holder(next, source, &admissions, pages);
            let num_left = next.num_tokens.0 - holder.map_or(0, |holder| holder.num_tokens(next));
            // What is longer than all of the budget begins with all of it.
            let is_too_long = num_left > budget && budget < self.max_prefill_tokens;
            // The prompt that a sibling runs in this step can be shared in the next.
            let can_share_soon = source == PromptSource::Restore
                && holder.is_none()
                && admissions.iter().any(|a| a.id.request == next.id.request);
            if is_too_long || can_share_soon {
                self.is_prefill_due = true;
                return admissions;
            }
            if !self.has_free(wanted, pages) {
                return admissions;
            }
            self.waiting.pop_first();
            self.take_pages(next, slot, holder, pages);
            self.slots[slot] = Some(Live {
                id: next.id,
                prompt_len: next.prompt_len,
                source,
                num_left,
            });
            admissions.push(self.run_part(slot, &mut budget, pages));
            next_slot = slot + 1;
        }
        self.is_prefill_due |= admissions.last().is_some_and(|last| !last.is_complete);
        admissions
    }

    /// Who holds the prompt of `next`, if it can be shared, and the pages that `next` takes for itself.
    fn holder(
        &self,
        next: Waiting,
        source: PromptSource,
        admissions: &[Admission],
        pages: &Pages,
    ) -> (Option<Holder>, usize) {
        let (request, Reverse(len)) = (next.id.request, next.num_tokens);
        let all = pages.pages_for(len);
        // What this step writes can be shared, but not copied by this step, as the prompt's last page may have to be.
        let is_new = |slot: usize| admissions.iter().any(|a| a.slot == slot);
        let is_sibling = |slot: &usize| {
            let live = self.live(*slot);
            live.is_some_and(|id| id.request == request) && !is_new(*slot)
        };
        let is_prompt_new = || {
            let mut siblings = admissions.iter().filter(|a| a.id.request == request);
            siblings.any(|a| a.source != PromptSource::Shared && a.begin < next.prompt_len)
        };
        let holder = match source {
            PromptSource::Prefill => None,
            PromptSource::Shared => Some(Holder::Prompts),
            PromptSource::Restore if self.parked.contains_key(&next.id) => {
                let num_tokens = self.parked[&next.id].num_tokens();
                Some(Holder::Parked { num_tokens })
            }
            PromptSource::Restore => {
                let sibling = (0..self.slots.len()).find(is_sibling);
                let is_held = self.prompts.contains_key(&request) && !is_prompt_new();
                let held = is_held.then_some(Holder::Prompts);
                sibling.map(Holder::Sibling).or(held)
            }
        };
        let held = holder.map_or(next.prompt_len, |holder| holder.num_tokens(next));
        let own = match len - held {
            0 => 0,
            _ => all - held / pages.page_tokens(),
        };
        match holder {
            None => (None, all),
            // Alone it gets what it needs: the prompt might be given up for that.
            Some(_) if self.num_held() == 0 && pages.num_free() < own => (None, all),
            Some(holder) => (Some(holder), own),
        }
    }

    /// Takes the pages of `next`, of which `holder` has those of the prompt.
    fn take_pages(
        &mut self,
        next: Waiting,
        slot: usize,
        holder: Option<Holder>,
        pages: &mut Pages,
    ) {
        let Reverse(len) = next.num_tokens;
        let is_taken = match holder {
            None => {
                self.unpark(next.id, pages);
                pages.begin(slot, len)
            }
            Some(Holder::Parked { .. }) => {
                let held = self.parked.remove(&next.id).expect("it was found there");
                pages.share(&held, slot);
                pages.release(held);
                pages.extend(slot, len)
            }
            Some(Holder::Prompts) => {
                pages.share(&self.prompts[&next.id.request], slot);
                pages.extend(slot, len)
            }
            Some(Holder::Sibling(sibling)) => {
                let held = pages.hold(sibling, next.prompt_len);
                pages.share(&held, slot);
                pages.release(held);
                pages.extend(slot, len)
            }
        };
        assert!(is_taken, "pages were counted");
    }

    /// What is run now of the sequence in `slot`, as far as `budget` goes.
    fn run_part(&mut self, slot: usize, budget: &mut usize, pages: &mut Pages) -> Admission {
        let live = self.slots[slot].as_mut().expect("it has the slot");
        let begin = pages.len(slot) - live.num_left;
        let num_tokens = live.num_left.min(*budget);
        *budget -= num_tokens;
        live.num_left -= num_tokens;
        let live = *live;
        if live.decodes() {
            self.hold_prompt(live, slot, pages);
        }
        Admission {
            id: live.id,
            slot,
            source: live.source,
            begin,
            end: begin + num_tokens,
            is_complete: live.decodes(),
        }
    }

    /// Holds the prompt of `live`, which is complete, for siblings that wait; lets go of it with the last of them.
    fn hold_prompt(&mut self, live: Live, slot: usize, pages: &mut Pages) {
        let request = live.id.request;
        let is_fresh = live.source != PromptSource::Restore;
        let is_last = is_fresh && self.count_begun(request);
        if self.is_waiting(request) && !self.prompts.contains_key(&request) {
            let held = pages.hold(slot, live.prompt_len);
            self.prompts.insert(request, held);
        }
        if is_last {
            self.drop_prompt(request, pages);
        }
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

    /// Whether `wanted` pages are free, and one more for the next token of every sequence, the new one included:
    /// otherwise it would be taken out again at once. One that is alone gets what it needs.
    fn has_free(&mut self, wanted: usize, pages: &mut Pages) -> bool {
        let num_held = self.num_held();
        if num_held > 0 {
            return pages.num_free() > wanted + num_held;
        }
        while pages.num_free() < wanted {
            if let Some((_, held)) = self.parked.pop_last() {
                pages.release(held);
                continue;
            }
            let last = self.prompts.keys().next_back().copied();
            let last = last.expect("the pages hold one sequence of the longest");
            self.drop_prompt(last, pages);
        }
        true
    }
}
