//! Sudoku: fill a square so that every row, column and box holds each digit once.
//!
//! A full square is drawn, then dug: cells are blanked in random order while the solution stays the only one, until
//! the level's number of blanks or of dead ends is reached. Effort is the number of dead ends of a search that always
//! tries the cell with the fewest candidates left, plus the number of blanks.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::answer::symbols;
use crate::logic::{Puzzle, shuffle, shuffled};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Sudoku;

/// What a level digs.
struct Size {
    side: usize,
    max_blanks: usize,
    /// It goes on digging up to these dead ends, and draws again where it does not reach them.
    min_dead_ends: u64,
}

fn size(level: u32) -> Size {
    let (side, max_blanks, min_dead_ends) = match level {
        1 => (4, 5, 0),
        2 => (4, 9, 0),
        3 => (6, 16, 0),
        4 => (6, 24, 1),
        5 => (9, 46, 0),
        _ => (9, 81, 10),
    };
    Size {
        side,
        max_blanks,
        min_dead_ends,
    }
}

/// Rows and columns of a box.
fn box_shape(side: usize) -> (usize, usize) {
    match side {
        4 => (2, 2),
        6 => (2, 3),
        _ => (3, 3),
    }
}

/// The box of a cell, from 0.
fn box_of(side: usize, row: usize, column: usize) -> usize {
    let (rows, columns) = box_shape(side);
    row / rows * (side / columns) + column / columns
}

/// Digits by cell, 0 where blank; row by row.
type Square = Vec<u8>;

/// Searches for solutions, the cell with the fewest candidates first.
struct Search {
    side: usize,
    square: Square,
    /// Digits used, as bits, by row, column and box.
    used: [[u16; 9]; 3],
    /// Cells in the order in which the search filled them.
    filled: Vec<usize>,
    max_found: usize,
    found: Vec<(Square, Vec<usize>)>,
    dead_ends: u64,
}

impl Search {
    /// `None` where the given digits already clash.
    fn new(side: usize, givens: &[u8], max_found: usize) -> Option<Search> {
        let mut search = Search {
            side,
            square: vec![0; side * side],
            used: [[0; 9]; 3],
            filled: Vec::new(),
            max_found,
            found: Vec::new(),
            dead_ends: 0,
        };
        for (cell, &digit) in givens.iter().enumerate() {
            if digit != 0 {
                if search.candidates(cell) & (1 << digit) == 0 {
                    return None;
                }
                search.put(cell, digit);
            }
        }
        Some(search)
    }

    fn places(&self, cell: usize) -> [usize; 3] {
        let (row, column) = (cell / self.side, cell % self.side);
        [row, column, box_of(self.side, row, column)]
    }

    fn candidates(&self, cell: usize) -> u16 {
        let [row, column, square] = self.places(cell);
        let all = ((1u16 << self.side) - 1) << 1;
        all & !(self.used[0][row] | self.used[1][column] | self.used[2][square])
    }

    /// Puts `digit` into a blank cell, or takes it out again.
    fn toggle(&mut self, cell: usize, digit: u8) {
        for (used, place) in self.places(cell).into_iter().enumerate() {
            self.used[used][place] ^= 1 << digit;
        }
    }

    fn put(&mut self, cell: usize, digit: u8) {
        self.toggle(cell, digit);
        self.square[cell] = digit;
    }

    /// `orders` says, by cell, in which order digits are tried.
    fn run(&mut self, orders: &dyn Fn(usize) -> Vec<u8>) {
        let blanks = (0..self.square.len()).filter(|&cell| self.square[cell] == 0);
        let Some(cell) = blanks.min_by_key(|&cell| self.candidates(cell).count_ones()) else {
            self.found.push((self.square.clone(), self.filled.clone()));
            return;
        };
        let candidates = self.candidates(cell);
        if candidates == 0 {
            self.dead_ends += 1;
            return;
        }
        for digit in orders(cell) {
            if candidates & (1 << digit) == 0 {
                continue;
            }
            self.put(cell, digit);
            self.filled.push(cell);
            self.run(orders);
            self.filled.pop();
            self.toggle(cell, digit);
            self.square[cell] = 0;
            if self.found.len() >= self.max_found {
                return;
            }
        }
    }
}

/// Up to two solutions, each with the order in which its blanks were filled, and the dead ends met.
fn solve(side: usize, givens: &[u8]) -> (Vec<(Square, Vec<usize>)>, u64) {
    let Some(mut search) = Search::new(side, givens, 2) else {
        return (Vec::new(), 0);
    };
    let ascending: Vec<u8> = (1..=side as u8).collect();
    search.run(&|_| ascending.clone());
    (search.found, search.dead_ends)
}

/// A random full square.
fn full_square(side: usize, draw: &mut Draw) -> Option<Square> {
    let orders: Vec<Vec<u8>> = (0..side * side)
        .map(|_| {
            let mut digits: Vec<u8> = (1..=side as u8).collect();
            shuffle(&mut digits, draw);
            digits
        })
        .collect();
    let mut search = Search::new(side, &vec![0; side * side], 1)?;
    search.run(&|cell| orders[cell].clone());
    search.found.pop().map(|(square, _)| square)
}

/// The side and the digits of a square written as digits and full stops.
fn parse(gold: &str) -> (usize, Square) {
    let square: Square = gold
        .bytes()
        .map(|byte| match byte {
            b'1'..=b'9' => byte - b'0',
            _ => 0,
        })
        .collect();
    (square.len().isqrt(), square)
}

fn rows(side: usize, square: &[u8], separator: &str) -> String {
    let rows = square.chunks(side).map(|row| {
        row.iter()
            .map(|&digit| match digit {
                0 => '.',
                digit => char::from(b'0' + digit),
            })
            .collect::<String>()
    });
    rows.collect::<Vec<_>>().join(separator)
}

/// Whether `digits` fills the square by the rules and keeps what was given.
fn is_solution(side: usize, givens: &[u8], digits: &[u8]) -> bool {
    let keeps = givens
        .iter()
        .zip(digits)
        .all(|(&given, &digit)| given == 0 || given == digit);
    // Digits that repeat in a row, column or box clash as givens.
    digits.len() == givens.len()
        && keeps
        && digits
            .iter()
            .all(|&digit| (1..=side as u8).contains(&digit))
        && Search::new(side, digits, 1).is_some()
}

impl Puzzle for Sudoku {
    fn unit(&self) -> &'static str {
        "blanks and dead ends"
    }

    fn effort(&self, gold: &str) -> u64 {
        let (side, givens) = parse(gold);
        let blanks = givens.iter().filter(|&&digit| digit == 0).count() as u64;
        blanks + solve(side, &givens).1
    }
}

impl TaskFamily for Sudoku {
    fn name(&self) -> &'static str {
        "sudoku"
    }

    fn summary(&self) -> &'static str {
        "fill a square with digits"
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
        let size = size(level);
        let side = size.side;
        let mut givens = full_square(side, draw)?;
        let (mut num_blanks, mut dead_ends) = (0, 0);
        for cell in shuffled(side * side, draw) {
            let is_hard = size.min_dead_ends > 0 && dead_ends >= size.min_dead_ends;
            if num_blanks == size.max_blanks || is_hard {
                break;
            }
            let digit = std::mem::replace(&mut givens[cell], 0);
            let (found, met) = solve(side, &givens);
            if found.len() == 1 {
                (num_blanks, dead_ends) = (num_blanks + 1, met);
            } else {
                givens[cell] = digit;
            }
        }
        if dead_ends < size.min_dead_ends {
            return None;
        }
        let (square, filled) = solve(side, &givens).0.pop()?;
        let steps: Vec<String> = filled
            .iter()
            .map(|&cell| format!("r{}c{}={}", cell / side + 1, cell % side + 1, square[cell]))
            .collect();
        let (box_rows, box_columns) = box_shape(side);
        let gold = rows(side, &givens, "");
        Some(Instance {
            canonical: gold.clone(),
            question: format!(
                "Fill in the sudoku: every row, every column and every box of {box_rows} rows by {box_columns} columns \
                 must hold each digit from 1 to {side} once. A full stop is a blank.\n{}\n\
                 Answer with all rows of the full square, from top to bottom, in \\boxed{{}}.",
                rows(side, &givens, "\n")
            ),
            solution: format!(
                "{} \\boxed{{{}}}",
                steps.join(" "),
                rows(side, &square, " ")
            ),
            gold,
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let (side, givens) = parse(gold);
        let extracted = symbols(completion);
        let is_right = extracted.as_deref().is_some_and(|answer| {
            answer.len() == givens.len() && is_solution(side, &givens, &parse(answer).1)
        });
        Verdict::exact(is_right, extracted)
    }

    /// Fills every blank with some digit.
    fn random_answer(&self, level: u32, question: &str, draw: &mut Draw) -> String {
        let side = size(level).side;
        let digits: String = squares(question)
            .chars()
            .map(|letter| match letter {
                '.' => char::from(b'0' + draw.between(1..=side as i64) as u8),
                given => given,
            })
            .collect();
        format!("\\boxed{{{digits}}}")
    }

    /// Fills the blanks of each row with its missing digits in ascending order.
    fn greedy_answer(&self, question: &str) -> String {
        let (side, mut square) = parse(&squares(question));
        for row in square.chunks_mut(side.max(1)) {
            let known = row.to_vec();
            let mut missing = (1..=side as u8).filter(|digit| !known.contains(digit));
            for digit in row.iter_mut().filter(|digit| **digit == 0) {
                *digit = missing.next().unwrap_or(1);
            }
        }
        format!("\\boxed{{{}}}", rows(side.max(1), &square, " "))
    }
}

/// The rows of the question's square, joined.
fn squares(question: &str) -> String {
    let is_row = |line: &&str| {
        line.bytes()
            .all(|byte| byte == b'.' || byte.is_ascii_digit())
    };
    question.lines().filter(is_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVENS: &str = "1..4..1.2.4..32.";

    fn reward(gold: &str, answer: &str) -> f64 {
        let verdict = Sudoku.grade(gold, &format!("\\boxed{{{answer}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn a_full_square_by_the_rules_is_right_however_it_is_spaced() {
        // Found by hand.
        for answer in [
            "1234 3412 2143 4321",
            "1234341221434321",
            "1,2,3,4\n3,4,1,2\n2 1 4 3 | 4321",
        ] {
            assert_eq!(reward("1..4..1.2.4..32.", answer), 1.0, "{answer}");
        }
    }

    #[test]
    fn a_clash_or_another_given_is_wrong() {
        for answer in [
            "1234 3412 2143 4312",
            "2134 3412 1243 4321",
            "1324 2413 2143 4321",
            "1234 3412 2143 432",
            "1234 3412 2143 43211",
            "1234 3412 2143 432.",
            "1234 3412 2143 4325",
            "",
        ] {
            assert_eq!(reward(GIVENS, answer), 0.0, "{answer}");
        }
        // An empty square has many right answers.
        assert_eq!(reward("................", "1234 3412 2143 4321"), 1.0);
        assert_eq!(reward("................", "4321 2143 3412 1234"), 1.0);
        assert_eq!(
            reward("................", "1234 2341 3412 4123"),
            0.0,
            "boxes clash"
        );
    }

    #[test]
    fn the_search_counts_the_solutions_that_trying_everything_counts() {
        // Of 4 by 4 squares, 288 are sudokus (a known count).
        let mut search = Search::new(4, &[0; 16], usize::MAX).expect("no clash");
        search.run(&|_| vec![1, 2, 3, 4]);
        assert_eq!(search.found.len(), 288);
        assert_eq!(solve(4, &parse(GIVENS).1).0.len(), 1);
        assert_eq!(
            solve(4, &parse("1...............").1).0.len(),
            2,
            "it stops at two"
        );
    }
}
