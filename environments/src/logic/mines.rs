//! Minesweeper: which covered cells certainly hold a mine, which certainly none?
//!
//! Cells are covered, and some of these mined, at random; every open cell shows its number of neighbouring mines. A cell
//! is certain if no arrangement that fits the numbers has it otherwise. Effort is the number of cells that a search sets
//! to find, for every covered cell, an arrangement with a mine there and one without.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::answer::symbols;
use crate::logic::{Puzzle, shuffled};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Mines;

const COVERED: u8 = b'#';
/// Fields drawn before an attempt is given up.
const MAX_TRIES: u32 = 60;

/// Side, covered cells, mines, and certain cells that no single number gives away.
fn size(level: u32) -> (usize, usize, usize, usize) {
    match level {
        1 => (3, 4, 2, 0),
        2 => (4, 6, 3, 0),
        3 => (4, 8, 3, 1),
        4 => (5, 12, 5, 2),
        5 => (6, 18, 7, 3),
        _ => (8, 32, 12, 4),
    }
}

/// A field of which the numbers are known.
struct Field {
    num_covered: usize,
    /// Covered neighbours of an open cell, numbered in reading order, and how many are mines.
    numbers: Vec<(Vec<usize>, usize)>,
    /// Numbers beside a covered cell.
    beside: Vec<Vec<usize>>,
}

fn neighbours(side: usize, cell: usize) -> impl Iterator<Item = usize> {
    let (row, column) = (cell / side, cell % side);
    let near = move |at: usize| at.saturating_sub(1)..(at + 2).min(side);
    let cells = near(row).flat_map(move |r| near(column).map(move |c| r * side + c));
    cells.filter(move |&other| other != cell)
}

impl Field {
    /// Reads a square of digits and `#`.
    fn new(gold: &str) -> Field {
        let cells = gold.as_bytes();
        let side = cells.len().isqrt();
        let covered: Vec<usize> = (0..cells.len())
            .filter(|&cell| cells[cell] == COVERED)
            .collect();
        let numbers: Vec<(Vec<usize>, usize)> = (0..cells.len())
            .filter(|&cell| cells[cell] != COVERED)
            .map(|cell| {
                let near =
                    neighbours(side, cell).filter_map(|other| covered.binary_search(&other).ok());
                (near.collect(), usize::from(cells[cell] - b'0'))
            })
            .collect();
        let mut beside = vec![Vec::new(); covered.len()];
        for (number, (near, _)) in numbers.iter().enumerate() {
            for &cell in near {
                beside[cell].push(number);
            }
        }
        Field {
            num_covered: covered.len(),
            numbers,
            beside,
        }
    }

    /// Whether no number beside `cell` is broken so far.
    fn may_be(&self, mined: &[Option<bool>], cell: usize) -> bool {
        self.beside[cell].iter().all(|&number| {
            let (near, count) = &self.numbers[number];
            let num_mines = near
                .iter()
                .filter(|&&cell| mined[cell] == Some(true))
                .count();
            let num_unset = near.iter().filter(|&&cell| mined[cell].is_none()).count();
            (num_mines..=num_mines + num_unset).contains(count)
        })
    }

    /// Whether the cells from `next` on can be set so that all numbers hold.
    fn fits(&self, mined: &mut Vec<Option<bool>>, next: usize, num_set: &mut u64) -> bool {
        if next == self.num_covered {
            return true;
        }
        if mined[next].is_some() {
            return self.fits(mined, next + 1, num_set);
        }
        for is_mine in [false, true] {
            *num_set += 1;
            mined[next] = Some(is_mine);
            if self.may_be(mined, next) && self.fits(mined, next + 1, num_set) {
                mined[next] = None;
                return true;
            }
        }
        mined[next] = None;
        false
    }

    /// What is certain of every covered cell, and the cells that were set to find out.
    fn certain(&self) -> (Vec<Option<bool>>, u64) {
        let mut num_set = 0;
        let mut can = |cell: usize, is_mine: bool| {
            let mut mined = vec![None; self.num_covered];
            mined[cell] = Some(is_mine);
            num_set += 1;
            self.may_be(&mined, cell) && self.fits(&mut mined, 0, &mut num_set)
        };
        let certain = (0..self.num_covered)
            .map(|cell| match (can(cell, true), can(cell, false)) {
                (true, true) => None,
                (is_mine, _) => Some(is_mine),
            })
            .collect();
        (certain, num_set)
    }

    /// What follows from one number at a time, over and over: all its mines are found, or all its cells are mines.
    fn simple(&self) -> Vec<Option<bool>> {
        let mut known = vec![None; self.num_covered];
        loop {
            let before = known.clone();
            for (near, count) in &self.numbers {
                let num_mines = near
                    .iter()
                    .filter(|&&cell| known[cell] == Some(true))
                    .count();
                let unset: Vec<usize> = near
                    .iter()
                    .copied()
                    .filter(|&cell| known[cell].is_none())
                    .collect();
                let is_mine = match count - num_mines {
                    0 => false,
                    left if left == unset.len() => true,
                    _ => continue,
                };
                for cell in unset {
                    known[cell] = Some(is_mine);
                }
            }
            if known == before {
                return known;
            }
        }
    }
}

fn letters(certain: &[Option<bool>]) -> String {
    let letter = |known: &Option<bool>| match known {
        Some(true) => 'M',
        Some(false) => 'S',
        None => 'U',
    };
    certain.iter().map(letter).collect()
}

impl Puzzle for Mines {
    fn unit(&self) -> &'static str {
        "cells set"
    }

    fn effort(&self, gold: &str) -> u64 {
        Field::new(gold).certain().1
    }
}

impl TaskFamily for Mines {
    fn name(&self) -> &'static str {
        "mines"
    }

    fn summary(&self) -> &'static str {
        "what the numbers of a minefield prove of each covered cell"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Logic
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (side, num_covered, num_mines, min_hard) = size(level);
        let (gold, certain) = (0..MAX_TRIES).find_map(|_| {
            let order = shuffled(side * side, draw);
            let (covered, mines) = (&order[..num_covered], &order[..num_mines]);
            let gold: String = (0..side * side)
                .map(|cell| match covered.contains(&cell) {
                    true => char::from(COVERED),
                    false => {
                        let near = neighbours(side, cell).filter(|other| mines.contains(other));
                        char::from(b'0' + near.count() as u8)
                    }
                })
                .collect();
            let field = Field::new(&gold);
            let (certain, simple) = (field.certain().0, field.simple());
            let count = |known: Option<bool>| certain.iter().filter(|&&cell| cell == known).count();
            let num_hard = certain
                .iter()
                .zip(&simple)
                .filter(|(certain, simple)| certain != simple)
                .count();
            let is_varied = count(Some(true)) > 0 && count(Some(false)) > 0;
            (is_varied && num_hard >= min_hard).then_some((gold, certain))
        })?;
        let rows: Vec<&str> = (0..side)
            .map(|row| &gold[row * side..(row + 1) * side])
            .collect();
        let covered = gold
            .bytes()
            .enumerate()
            .filter(|&(_, cell)| cell == COVERED);
        let steps: Vec<String> = covered
            .zip(letters(&certain).chars())
            .map(|((cell, _), letter)| format!("r{}c{}={letter}", cell / side + 1, cell % side + 1))
            .collect();
        Some(Instance {
            canonical: gold.clone(),
            question: format!(
                "Minesweeper: # is a covered cell, which may hold a mine. A digit is an open cell and says how many of the \
                 up to 8 cells around it, diagonals too, are mines.\n{}\nAnswer with one letter for every covered cell, row \
                 by row, from left to right, in \\boxed{{}}: M if it must be a mine, S if it must be safe, U if the digits \
                 leave both open.",
                rows.join("\n")
            ),
            solution: format!("{} \\boxed{{{}}}", steps.join(" "), letters(&certain)),
            gold,
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let extracted = symbols(completion);
        let num_covered = gold.bytes().filter(|&cell| cell == COVERED).count();
        let is_right = extracted.as_deref().is_some_and(|answer| {
            // The search is for answers of the right form only.
            answer.len() == num_covered
                && answer.eq_ignore_ascii_case(&letters(&Field::new(gold).certain().0))
        });
        Verdict::exact(is_right, extracted)
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let letters: String = (0..size(level).1)
            .map(|_| draw.choose(&['M', 'S', 'U']))
            .collect();
        format!("\\boxed{{{letters}}}")
    }

    /// Leaves all open but what a single number says.
    fn greedy_answer(&self, question: &str) -> String {
        let is_row = |line: &&str| {
            line.bytes()
                .all(|byte| byte == COVERED || byte.is_ascii_digit())
        };
        let gold: String = question.lines().filter(is_row).collect();
        format!("\\boxed{{{}}}", letters(&Field::new(&gold).simple()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    fn certain(gold: &str) -> String {
        letters(&Field::new(gold).certain().0)
    }

    #[test]
    fn fields_worked_by_hand_come_out() {
        // The 0 clears everything around it.
        assert_eq!(certain("##0#"), "SSS");
        // The classic 1-2-1 under a wall: mines under the ones.
        assert_eq!(certain("###121000"), "MSM");
        // One mine among three cells that no other number tells apart.
        assert_eq!(certain("###111000"), "SMS");
        assert_eq!(certain("##1#"), "UUU");
    }

    #[test]
    fn only_the_certain_letters_are_right() {
        let reward = |answer: &str| {
            let verdict = Mines.grade("###121000", &format!("\\boxed{{{answer}}}"));
            verdict.reward().expect("always graded")
        };
        assert_eq!((reward("m, s\nM"), reward("MSM")), (1.0, 1.0));
        for wrong in ["MSU", "USM", "MS", "MSMM", "SMS", ""] {
            assert_eq!(reward(wrong), 0.0, "{wrong}");
        }
    }

    #[test]
    fn the_search_says_what_all_arrangements_say() {
        for (level, seed) in (1..=4).flat_map(|level| (0..25).map(move |seed| (level, seed))) {
            let key = FamilyKey {
                family: Family::Mines,
                split: Split::HeldOut,
                level,
                seed,
            };
            let gold = Family::task(&key).gold;
            let field = Field::new(&gold);
            let fits = |&mines: &u32| {
                let num_near =
                    |near: &[usize]| near.iter().filter(|&&cell| mines >> cell & 1 == 1).count();
                field
                    .numbers
                    .iter()
                    .all(|(near, count)| num_near(near) == *count)
            };
            let all: Vec<u32> = (0..1 << field.num_covered).filter(fits).collect();
            let by_hand: Vec<Option<bool>> = (0..field.num_covered)
                .map(|cell| {
                    let first = all[0] >> cell & 1;
                    all.iter()
                        .all(|mines| mines >> cell & 1 == first)
                        .then_some(first == 1)
                })
                .collect();
            assert_eq!(field.certain().0, by_hand, "{gold}");
        }
    }
}
