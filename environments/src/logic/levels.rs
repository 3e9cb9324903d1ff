//! How hard the levels of the logic families are: work of a plain search, and length of the question.
//!
//! `cargo run -p environments --example logic_levels [FAMILY...]` prints the table of `docs/families/logic.md`.

use crate::family::Family;
use crate::logic::{Puzzle, colouring, cryptarithm, knights, mines, sat, sokoban, sudoku, zebra};
use crate::task::{FamilyKey, Split};

/// The families with a measured effort.
pub const FAMILIES: [Family; 8] = [
    Family::Sudoku,
    Family::Zebra,
    Family::Knights,
    Family::Sat,
    Family::Colouring,
    Family::Cryptarithm,
    Family::Sokoban,
    Family::Mines,
];

fn puzzle(family: Family) -> Option<&'static dyn Puzzle> {
    Some(match family {
        Family::Sudoku => &sudoku::Sudoku,
        Family::Zebra => &zebra::Zebra,
        Family::Knights => &knights::Knights,
        Family::Sat => &sat::Sat,
        Family::Colouring => &colouring::Colouring,
        Family::Cryptarithm => &cryptarithm::Cryptarithm,
        Family::Sokoban => &sokoban::Sokoban,
        Family::Mines => &mines::Mines,
        _ => return None,
    })
}

/// Least, median and largest effort over the training tasks of seeds `0..num_seeds`, and the mean number of bytes of
/// question and worked solution, as the rows of a Markdown table.
pub fn table(families: &[Family], num_seeds: u32) -> String {
    let mut rows = String::from(
        "| family | level | effort | least | median | most | question, bytes | solution, bytes |\n|---|---|---|---|---|---|---|---|\n",
    );
    for &family in families {
        let Some(puzzle) = puzzle(family) else {
            continue;
        };
        for level in family.levels() {
            let tasks = (0..u64::from(num_seeds)).map(|seed| {
                Family::task(&FamilyKey {
                    family,
                    split: Split::Train,
                    level,
                    seed,
                })
            });
            let (mut efforts, mut asked, mut worked) = (Vec::new(), 0, 0);
            for task in tasks {
                efforts.push(puzzle.effort(&task.gold));
                asked += task.question.len();
                worked += task.solution.len();
            }
            efforts.sort_unstable();
            let count = efforts.len().max(1);
            let at = |index: usize| efforts.get(index).copied().unwrap_or(0);
            rows += &format!(
                "| {family} | {level} | {} | {} | {} | {} | {} | {} |\n",
                puzzle.unit(),
                at(0),
                at(count / 2),
                at(count - 1),
                asked / count,
                worked / count
            );
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_efforts_are_the_measured_ones() {
        let page = include_str!("../../../docs/families/logic.md");
        let table = table(&FAMILIES, 100);
        for row in table.lines() {
            assert!(page.contains(row), "put this table on the page:\n{table}");
        }
    }

    #[test]
    fn harder_levels_take_more_work() {
        for family in FAMILIES {
            let table = table(&[family], 40);
            let medians: Vec<u64> = table
                .lines()
                .skip(2)
                .filter_map(|row| row.split('|').nth(5)?.trim().parse().ok())
                .collect();
            assert_eq!(medians.len(), family.levels().count(), "{family}");
            assert!(medians.is_sorted(), "{family}: {medians:?}");
            assert!(medians.first() < medians.last(), "{family}: {medians:?}");
        }
    }
}
