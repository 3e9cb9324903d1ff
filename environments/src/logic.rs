//! Logic puzzles: constraints to satisfy, plans to find, facts to deduce.
//!
//! A puzzle travels in its task's gold, and its checker tests the rules on whatever the box holds, so that every valid
//! answer counts. Levels are graded by the work of a plain search, see [`levels`].

use crate::draw::Draw;

mod answer;
pub(crate) mod colouring;
pub(crate) mod cryptarithm;
pub(crate) mod knights;
pub mod levels;
pub(crate) mod mines;
pub(crate) mod sat;
pub(crate) mod sokoban;
pub(crate) mod sudoku;
pub(crate) mod zebra;

/// A family whose instances take a plain search a measured amount of work.
pub(crate) trait Puzzle {
    /// What is counted.
    fn unit(&self) -> &'static str;

    /// How much of it the instance with this gold takes.
    fn effort(&self, gold: &str) -> u64;
}

/// Puts `items` into a random order, all orders alike.
fn shuffle<T>(items: &mut [T], draw: &mut Draw) {
    for last in (1..items.len()).rev() {
        items.swap(last, draw.index(last + 1));
    }
}

/// The numbers from 0 to `len - 1` in a random order.
fn shuffled(len: usize, draw: &mut Draw) -> Vec<usize> {
    let mut items: Vec<usize> = (0..len).collect();
    shuffle(&mut items, draw);
    items
}
