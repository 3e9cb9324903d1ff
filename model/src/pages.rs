//! Who holds which page of the cache: the bookkeeping without the tensors.
//!
//! A slot holds one sequence, whose tokens lie in the pages of its table, in order. A page may belong to several
//! holders: siblings share the pages of their prompt. Who writes to a shared page gets a copy of it first, so only
//! the last, partly filled page of a prompt is ever copied. Copies are noted here and made by the cache
//! ([`Pages::take_copies`]) before the next pass writes.

use std::ops::Range;

/// The default: a table of 128 entries for 4,096 tokens, and 16 rows lost a sequence on average.
pub const PAGE_TOKENS: usize = 32;

/// Pages and their holders.
#[derive(Debug)]
pub struct Pages {
    page_tokens: usize,
    /// Holders of each page.
    holders: Vec<u32>,
    free: Vec<u32>,
    slots: Vec<SlotPages>,
    /// (from, to), not yet made.
    copies: Vec<(u32, u32)>,
}

/// A slot's sequence.
#[derive(Clone, Debug, Default)]
struct SlotPages {
    table: Vec<u32>,
    len: usize,
    /// Its pages were taken by [`Pages::begin`], and not all of its tokens have been written yet.
    is_begun: bool,
}

/// The beginning of a sequence, kept while its slot may go on or away. To be given back with [`Pages::release`].
#[derive(Debug)]
pub struct HeldPages {
    pages: Vec<u32>,
    len: usize,
}

impl HeldPages {
    /// Tokens held.
    pub fn num_tokens(&self) -> usize {
        self.len
    }
}

impl Pages {
    /// `num_pages` free pages of `page_tokens` tokens, and empty slots.
    ///
    /// # Panics
    /// A page size that is no power of two.
    pub fn new(num_slots: usize, num_pages: usize, page_tokens: usize) -> Pages {
        assert!(
            page_tokens.is_power_of_two(),
            "pages of {page_tokens} tokens"
        );
        let mut pages = Pages {
            page_tokens,
            holders: Vec::new(),
            free: Vec::new(),
            slots: vec![SlotPages::default(); num_slots],
            copies: Vec::new(),
        };
        pages.add(num_pages);
        pages
    }

    /// Adds free pages behind those there are.
    pub fn add(&mut self, num_pages: usize) {
        let first = self.holders.len();
        self.holders.resize(first + num_pages, 0);
        // The lowest numbers are taken first.
        self.free.splice(
            0..0,
            (first..first + num_pages).rev().map(|page| page as u32),
        );
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pages, free or not.
    pub fn num_pages(&self) -> usize {
        self.holders.len()
    }

    /// Pages nobody holds.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Pages that `tokens` tokens take.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Slots.
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Tokens that `slot` holds.
    pub fn len(&self, slot: usize) -> usize {
        self.slots[slot].len
    }

    /// The pages of `slot`, in the order of its tokens.
    pub fn table(&self, slot: usize) -> &[u32] {
        &self.slots[slot].table
    }

    /// The row of the cache that holds token `position` of `slot`.
    pub fn row(&self, slot: usize, position: usize) -> i64 {
        let page = self.slots[slot].table[position / self.page_tokens] as usize;
        (page * self.page_tokens + position % self.page_tokens) as i64
    }

    /// Takes pages for a sequence of `len` tokens that the next passes write to `slot`, which is empty; false, and
    /// nothing taken, where too few are free.
    pub fn begin(&mut self, slot: usize, len: usize) -> bool {
        assert!(
            self.slots[slot].table.is_empty(),
            "slot {slot} is not empty"
        );
        let wanted = self.pages_for(len);
        if wanted > self.free.len() {
            return false;
        }
        let table = (0..wanted).filter_map(|_| self.take()).collect();
        self.slots[slot] = SlotPages {
            table,
            len,
            is_begun: true,
        };
        true
    }

    /// Pages for `tokens` of the sequence in `slot`, which are written now, after all before them: those that
    /// [`Pages::begin`] took, or taken here where it did not. From token 0 on the slot forgets what it held.
    ///
    /// # Panics
    /// Too few pages, or a slot that does not hold the tokens before.
    pub fn write(&mut self, slot: usize, tokens: Range<usize>) {
        let SlotPages { len, is_begun, .. } = self.slots[slot];
        if is_begun && tokens.end <= len {
            self.slots[slot].is_begun = tokens.end < len;
        } else if tokens.start == 0 {
            self.clear(slot);
            let len = tokens.end;
            assert!(self.begin(slot, len), "no pages for {len} tokens");
            self.slots[slot].is_begun = false;
        } else {
            assert!(
                !is_begun && len == tokens.start,
                "slot {slot} holds {len} tokens before {tokens:?}"
            );
            assert!(self.extend(slot, tokens.end), "no pages for {tokens:?}");
            self.slots[slot].is_begun = false;
        }
    }

    /// Takes pages for the tokens behind those that `slot` holds, up to `len`, which the next passes write: what it
    /// shares of the last page is copied. False, and nothing taken, where too few are free.
    pub fn extend(&mut self, slot: usize, len: usize) -> bool {
        let held = self.slots[slot].len;
        let copied = usize::from(len > held && self.shares_next(slot));
        let wanted = self.pages_for(len) - self.slots[slot].table.len().min(self.pages_for(len));
        if wanted + copied > self.free.len() {
            return false;
        }
        for position in held..len {
            assert!(self.make_room(slot), "pages were counted");
            self.slots[slot].len = position + 1;
        }
        self.slots[slot].is_begun = len > held;
        true
    }

    /// Whether the page that the next token of `slot` goes to is there and has other holders.
    fn shares_next(&self, slot: usize) -> bool {
        let SlotPages { table, len, .. } = &self.slots[slot];
        let next = table.get(len / self.page_tokens);
        next.is_some_and(|&page| self.holders[page as usize] > 1)
    }

    /// Makes sure that `slot` can take one more token: a page of its own for it. False where there is none.
    pub fn make_room(&mut self, slot: usize) -> bool {
        let len = self.slots[slot].len;
        let index = len / self.page_tokens;
        match self.slots[slot].table.get(index).copied() {
            None => {
                let Some(page) = self.take() else {
                    return false;
                };
                self.slots[slot].table.push(page);
            }
            Some(shared) if self.holders[shared as usize] > 1 => {
                let Some(page) = self.take() else {
                    return false;
                };
                // Nothing of it is kept where its first token is the one to be written.
                if !len.is_multiple_of(self.page_tokens) {
                    self.copies.push((shared, page));
                }
                self.drop_holder(shared);
                self.slots[slot].table[index] = page;
            }
            Some(_) => (),
        }
        true
    }

    /// Whether each of the slots `0..batch` can take one more token without a copy of a page that it shares.
    pub fn grow_alone(&self, batch: usize) -> bool {
        let next_page = |slot: usize| {
            let held = &self.slots[slot];
            held.table.get(held.len / self.page_tokens)
        };
        let num_wanted = (0..batch).filter(|&slot| next_page(slot).is_none()).count();
        let mut next_pages = (0..batch).filter_map(next_page);
        num_wanted <= self.free.len() && next_pages.all(|&page| self.holders[page as usize] == 1)
    }

    /// Counts the token that was written to the room that [`Pages::make_room`] made.
    pub fn push(&mut self, slot: usize) {
        self.slots[slot].len += 1;
    }

    /// Forgets all but the first `len` tokens of `slot`.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        let kept = self.pages_for(len);
        let SlotPages {
            table, len: held, ..
        } = &mut self.slots[slot];
        *held = len.min(*held);
        let rest = table.split_off(kept.min(table.len()));
        rest.into_iter().for_each(|page| self.drop_holder(page));
    }

    /// Forgets the sequence in `slot`.
    pub fn clear(&mut self, slot: usize) {
        self.truncate(slot, 0);
        self.slots[slot].is_begun = false;
    }

    /// Holds the first `len` tokens of `slot`, whatever becomes of the slot.
    pub fn hold(&mut self, slot: usize, len: usize) -> HeldPages {
        let pages = self.slots[slot].table[..self.pages_for(len)].to_vec();
        for &page in &pages {
            self.holders[page as usize] += 1;
        }
        HeldPages { pages, len }
    }

    /// Gives `held` back.
    pub fn release(&mut self, held: HeldPages) {
        held.pages
            .into_iter()
            .for_each(|page| self.drop_holder(page));
    }

    /// Makes `slot`, whatever it held, begin with `held`.
    pub fn share(&mut self, held: &HeldPages, slot: usize) {
        for &page in &held.pages {
            self.holders[page as usize] += 1;
        }
        self.clear(slot);
        self.slots[slot] = SlotPages {
            table: held.pages.clone(),
            len: held.len,
            is_begun: false,
        };
    }

    /// Exchanges the sequences of two slots.
    pub fn swap_slots(&mut self, a: usize, b: usize) {
        self.slots.swap(a, b);
    }

    /// Pages to be copied, (from, to), before anything is written.
    pub fn take_copies(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.copies)
    }

    fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    fn drop_holder(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
            // It may be taken for another copy.
            self.copies.retain(|&(_, to)| to != page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every page is held by agrees with the tables.
    fn check(pages: &Pages, held: &[&HeldPages]) {
        let tables = pages.slots.iter().map(|slot| &slot.table);
        let mut counted = vec![0; pages.num_pages()];
        for &page in tables.chain(held.iter().map(|held| &held.pages)).flatten() {
            counted[page as usize] += 1;
        }
        assert_eq!(counted, pages.holders);
        let free = counted.iter().filter(|&&holders| holders == 0).count();
        assert_eq!(free, pages.num_free());
    }

    #[test]
    fn siblings_share_whole_pages_and_copy_the_last() {
        let mut pages = Pages::new(3, 8, 4);
        assert!(pages.begin(0, 10));
        assert_eq!((pages.table(0), pages.num_free()), (&[0, 1, 2][..], 5));
        let held = pages.hold(0, 10);
        pages.share(&held, 1);
        pages.share(&held, 2);
        check(&pages, &[&held]);
        assert_eq!(pages.num_free(), 5);
        pages.release(held);
        for slot in 0..3 {
            assert!(pages.make_room(slot));
            pages.push(slot);
        }
        // The third is alone with it by then.
        assert_eq!(pages.take_copies(), [(2, 3), (2, 4)]);
        let tables = [0, 1, 2].map(|slot| pages.table(slot).to_vec());
        assert_eq!(tables, [[0, 1, 3], [0, 1, 4], [0, 1, 2]]);
        assert_eq!((pages.len(1), pages.row(1, 9)), (11, 17));
        check(&pages, &[]);
        // Room for one more is there; then comes a page of their own.
        assert!(pages.make_room(0) && pages.num_free() == 3);
        pages.push(0);
        assert!(pages.make_room(0) && pages.num_free() == 2);
        assert!(pages.take_copies().is_empty());
    }

    #[test]
    fn a_sequence_is_written_in_parts_on_pages_taken_before_or_then() {
        let mut pages = Pages::new(3, 8, 4);
        assert!(pages.begin(0, 10));
        pages.write(0, 0..6);
        pages.write(0, 6..10);
        assert_eq!((pages.table(0), pages.num_free()), (&[0, 1, 2][..], 5));
        // Nothing was taken before for what follows; the last page has another holder.
        let held = pages.hold(0, 9);
        pages.share(&held, 1);
        pages.write(1, 9..14);
        assert_eq!(pages.take_copies(), [(2, 3)]);
        assert_eq!((pages.table(1), pages.len(1)), (&[0, 1, 3, 4][..], 14));
        check(&pages, &[&held]);
        // Three pages are free; a copy and three more are too many.
        pages.share(&held, 2);
        assert!(!pages.extend(2, 22) && pages.num_free() == 3);
        assert!(pages.extend(2, 17) && pages.num_free() == 0);
        pages.swap_slots(0, 2);
        pages.write(0, 9..17);
        assert_eq!((pages.table(0), pages.len(2)), (&[0, 1, 5, 6, 7][..], 10));
        // Another sequence takes the place of the old.
        pages.write(0, 0..3);
        assert_eq!((pages.table(0).len(), pages.num_free()), (1, 2));
        check(&pages, &[&held]);
        pages.release(held);
    }

    #[test]
    #[should_panic(expected = "slot 0 holds 5 tokens before 6..8")]
    fn tokens_that_leave_a_gap_are_refused() {
        let mut pages = Pages::new(1, 8, 4);
        pages.write(0, 0..5);
        pages.write(0, 6..8);
    }

    #[test]
    fn a_prompt_of_whole_pages_is_never_copied() {
        let mut pages = Pages::new(2, 6, 4);
        assert!(pages.begin(0, 8));
        let held = pages.hold(0, 8);
        pages.share(&held, 1);
        assert!(pages.make_room(0) && pages.make_room(1));
        assert!(pages.take_copies().is_empty());
        assert_eq!(pages.num_free(), 2);
        check(&pages, &[&held]);
        pages.release(held);
    }

    #[test]
    fn too_few_pages_are_said_and_nothing_is_taken() {
        let mut pages = Pages::new(2, 3, 4);
        assert!(!pages.begin(0, 13) && pages.num_free() == 3);
        assert!(pages.begin(0, 12));
        assert!(!pages.make_room(0));
        pages.add(1);
        assert!(pages.make_room(0));
        pages.push(0);
        assert_eq!((pages.len(0), pages.num_free()), (13, 0));
        pages.truncate(0, 12);
        assert_eq!((pages.len(0), pages.num_free()), (12, 1));
        pages.swap_slots(0, 1);
        assert_eq!((pages.len(0), pages.len(1)), (0, 12));
        pages.clear(1);
        assert_eq!(pages.num_free(), 4);
        check(&pages, &[]);
    }

    #[test]
    fn a_copy_whose_place_was_given_back_is_not_made() {
        let mut pages = Pages::new(2, 3, 4);
        assert!(pages.begin(0, 6));
        let held = pages.hold(0, 6);
        pages.share(&held, 1);
        assert!(pages.make_room(1));
        pages.clear(1);
        // The free page is taken again, for another copy.
        assert!(pages.make_room(0));
        assert_eq!(pages.take_copies(), [(1, 2)]);
        pages.release(held);
        check(&pages, &[]);
    }

    #[test]
    fn sequences_grow_alone_unless_they_share_the_page_or_none_is_free() {
        let mut pages = Pages::new(2, 3, 4);
        assert!(pages.begin(0, 3));
        assert!(pages.grow_alone(1));
        let held = pages.hold(0, 3);
        assert!(!pages.grow_alone(1), "a sibling may come");
        pages.release(held);
        pages.push(0);
        assert!(pages.begin(1, 4));
        assert_eq!(pages.num_free(), 1);
        assert!(pages.grow_alone(1), "its next page is free");
        assert!(!pages.grow_alone(2), "one page for two");
    }
}
