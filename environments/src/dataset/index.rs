//! Which row is the n-th of a split, and where in the file to begin looking for it.
//!
//! Rows are counted from 0 here. 64 of them form a block of 40 bytes: the offset of its first row in the
//! file, a bit for each row of either split (none for a row that is left out), and how many rows of
//! either split came before. So a million rows take 625 kB, whatever their length.

use crate::task::Split;

/// Rows of a block.
pub(crate) const BLOCK_ROWS: u64 = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    blocks: Vec<Block>,
    num_rows: u64,
    totals: [u64; 2],
}

#[derive(Clone, Copy, Debug)]
struct Block {
    offset: u64,
    members: [u64; 2],
    before: [u64; 2],
}

impl Index {
    /// Appends a row that begins at byte `offset`; `None` leaves it out.
    pub(crate) fn push(&mut self, offset: u64, split: Option<Split>) {
        let bit = self.num_rows % BLOCK_ROWS;
        if bit == 0 {
            self.blocks.push(Block {
                offset,
                members: [0; 2],
                before: self.totals,
            });
        }
        if let (Some(split), Some(block)) = (split, self.blocks.last_mut()) {
            block.members[split as usize] |= 1 << bit;
            self.totals[split as usize] += 1;
        }
        self.num_rows += 1;
    }

    /// Leaves out `rows` after all.
    pub(crate) fn remove(&mut self, rows: impl IntoIterator<Item = u64>) {
        for row in rows {
            let block = &mut self.blocks[(row / BLOCK_ROWS) as usize];
            block.members = block.members.map(|bits| bits & !(1 << (row % BLOCK_ROWS)));
        }
        self.totals = [0; 2];
        for block in &mut self.blocks {
            block.before = self.totals;
            for (total, members) in self.totals.iter_mut().zip(block.members) {
                *total += u64::from(members.count_ones());
            }
        }
    }

    /// Rows of a split.
    pub(crate) fn num_members(&self, split: Split) -> u64 {
        self.totals[split as usize]
    }

    /// Row number of member `place` of `split`, which lies below [`Index::num_members`].
    pub(crate) fn member(&self, split: Split, place: u64) -> u64 {
        let split = split as usize;
        assert!(
            place < self.totals[split],
            "member {place} of {}",
            self.totals[split]
        );
        let number = self
            .blocks
            .partition_point(|block| block.before[split] <= place)
            - 1;
        let block = &self.blocks[number];
        let mut members = block.members[split];
        for _ in block.before[split]..place {
            // Drops the lowest bit.
            members &= members - 1;
        }
        number as u64 * BLOCK_ROWS + u64::from(members.trailing_zeros())
    }

    /// Whether `row` is a member of `split`.
    pub(crate) fn holds(&self, split: Split, row: u64) -> bool {
        let block = self.blocks.get((row / BLOCK_ROWS) as usize);
        block.is_some_and(|block| block.members[split as usize] >> (row % BLOCK_ROWS) & 1 == 1)
    }

    /// Offset of the block that holds `row`, and the rows to pass over from there.
    pub(crate) fn position(&self, row: u64) -> (u64, u64) {
        let block = &self.blocks[(row / BLOCK_ROWS) as usize];
        (block.offset, row % BLOCK_ROWS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row r begins at byte 10 r; every third row is held out, every fifth left out.
    fn index(num_rows: u64) -> Index {
        let mut index = Index::default();
        for row in 0..num_rows {
            let split = match row {
                row if row % 5 == 0 => None,
                row if row % 3 == 0 => Some(Split::HeldOut),
                _ => Some(Split::Train),
            };
            index.push(10 * row, split);
        }
        index
    }

    fn members(index: &Index, split: Split) -> Vec<u64> {
        let places = 0..index.num_members(split);
        places.map(|place| index.member(split, place)).collect()
    }

    #[test]
    fn members_are_the_rows_of_their_split_in_order() {
        for num_rows in [0, 1, 63, 64, 65, 1000] {
            let index = index(num_rows);
            let rows = |keep: fn(&u64) -> bool| (0..num_rows).filter(keep).collect::<Vec<_>>();
            let held_out = rows(|row| row % 5 != 0 && row % 3 == 0);
            let train = rows(|row| row % 5 != 0 && row % 3 != 0);
            assert_eq!(members(&index, Split::HeldOut), held_out);
            assert_eq!(members(&index, Split::Train), train);
            assert!(train.iter().all(|&row| index.holds(Split::Train, row)));
            assert!(!train.iter().any(|&row| index.holds(Split::HeldOut, row)));
        }
    }

    #[test]
    fn a_position_is_the_blocks_start_and_the_way_from_there() {
        let index = index(200);
        assert_eq!(index.position(0), (0, 0));
        assert_eq!(index.position(63), (0, 63));
        assert_eq!(index.position(64), (640, 0));
        assert_eq!(index.position(199), (1920, 7));
    }

    #[test]
    fn removed_rows_are_members_no_more() {
        let mut index = index(300);
        let train = members(&index, Split::Train);
        let held_out = members(&index, Split::HeldOut);
        index.remove([train[0], train[70], 0]);
        let left: Vec<u64> = train
            .iter()
            .copied()
            .filter(|row| *row != train[0] && *row != train[70])
            .collect();
        assert_eq!(members(&index, Split::Train), left);
        assert_eq!(members(&index, Split::HeldOut), held_out);
    }
}
