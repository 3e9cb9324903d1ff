//! The level table of the page, and what all of these families share.

use super::*;
use crate::family::Family;
use crate::task::{FamilyKey, Split};

const MATH: [Family; 8] = [
    Family::Congruences,
    Family::Recurrences,
    Family::LatticePaths,
    Family::Partitions,
    Family::Polynomials,
    Family::MatrixInverse,
    Family::Diophantine,
    Family::WaitingTime,
];

/// Mean work of the training tasks of seeds 0 to 999, in tenths, rounded down.
fn mean_work_tenths(family: Family, level: u32) -> u64 {
    let work = |seed| {
        let key = FamilyKey {
            family,
            split: Split::Train,
            level,
            seed,
        };
        let gold = Family::task(&key).gold;
        let (work, _) = gold.split_once('|').expect("work in front");
        work.parse::<u64>().expect("a number")
    };
    (0..1000).map(work).sum::<u64>() / 100
}

#[test]
fn the_documented_work_is_the_measured_one_and_grows_with_the_level() {
    let page = include_str!("../../../docs/families/math.md");
    let mut table = String::new();
    for family in MATH {
        let mut works: Vec<u64> = Vec::new();
        for level in family.levels() {
            works.push(mean_work_tenths(family, level));
        }
        assert!(works.is_sorted(), "{family}: {works:?}");
        let shown: Vec<String> = works
            .iter()
            .map(|work| format!("{}.{}", work / 10, work % 10))
            .collect();
        table += &format!("| {family} | {} |\n", shown.join(" | "));
    }
    println!("{table}");
    for row in table.lines() {
        assert!(page.contains(row), "put this table on the page:\n{table}");
    }
}

#[test]
fn lists_are_read_strictly() {
    let reward = |answer: &str| grade_same("1|3 -4", answer).reward();
    for right in ["\\boxed{3, -4}", "so \\boxed{3,\u{2212}4}."] {
        assert_eq!(reward(right), Some(1.0), "{right}");
    }
    for wrong in [
        "3, -4",
        "\\boxed{3 -4}",
        "\\boxed{3, -4,}",
        "\\boxed{+3, -4}",
        "\\boxed{3, - 4}",
        "\\boxed{3, -4} \\boxed{3, 4}",
    ] {
        assert_eq!(reward(wrong), Some(0.0), "{wrong}");
    }
    assert_eq!(
        reward(&format!("\\boxed{{{}}}", "3,".repeat(1000))),
        Some(0.0)
    );
}

#[test]
fn a_congruence_answer_is_the_least_that_trying_all_finds() {
    for (level, seed) in (1..=3).flat_map(|level| (0..50).map(move |seed| (level, seed))) {
        let key = FamilyKey {
            family: Family::Congruences,
            split: Split::HeldOut,
            level,
            seed,
        };
        let task = Family::task(&key);
        let numbers = integers(&task.question);
        let conditions = &numbers[1..];
        let least = (0..).find(|x| conditions.chunks(2).all(|c| x % c[0] == c[1]));
        assert_eq!(
            Some(gold_numbers(&task.gold)[0]),
            least,
            "{}",
            task.question
        );
    }
}
