//! Lattice paths: how many ways lead from (0, 0) to (w, h) by steps right and up that avoid blocked points. One integer.
//!
//! ways(x, y) = 0 where blocked, else ways(x-1, y) + ways(x, y-1). Work: additions of two counts that are not zero.

use std::ops::RangeInclusive;

use super::{boxed, gold, grade_same, last_number, listed};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct LatticePaths;

/// Width and height, and how many points are blocked.
fn size(level: u32) -> (i64, usize) {
    match level {
        1 => (3, 1),
        2 => (4, 2),
        3 => (5, 4),
        4 => (7, 7),
        5 => (9, 12),
        _ => (12, 20),
    }
}

/// Rows of counts from y = 0 up, and the additions.
fn count(w: i64, h: i64, blocked: &[(i64, i64)]) -> (Vec<Vec<i64>>, u64) {
    let mut rows: Vec<Vec<i64>> = Vec::new();
    let mut work = 0;
    for y in 0..=h {
        let mut row: Vec<i64> = Vec::new();
        for x in 0..=w {
            let left = row.last().copied().unwrap_or(0);
            let below = rows.last().map_or(0, |below: &Vec<i64>| below[x as usize]);
            row.push(match (x, y) {
                (0, 0) => 1,
                point if blocked.contains(&point) => 0,
                _ => {
                    work += u64::from(left > 0 && below > 0);
                    left + below
                }
            });
        }
        rows.push(row);
    }
    (rows, work)
}

impl TaskFamily for LatticePaths {
    fn name(&self) -> &'static str {
        "lattice_paths"
    }

    fn summary(&self) -> &'static str {
        "number of lattice paths around blocked points"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (side, num_blocked) = size(level);
        let (w, h) = (side, draw.between(side - 1..=side + 1));
        let mut blocked = Vec::new();
        while blocked.len() < num_blocked {
            let point = (draw.between(0..=w), draw.between(0..=h));
            if point != (0, 0) && point != (w, h) && !blocked.contains(&point) {
                blocked.push(point);
            }
        }
        blocked.sort_unstable();
        let (rows, work) = count(w, h, &blocked);
        let answer = *rows.last()?.last()?;
        if answer < 4 {
            return None;
        }
        let points: Vec<String> = blocked.iter().map(|(x, y)| format!("({x}, {y})")).collect();
        let rows: Vec<String> = rows.iter().map(|row| listed(row, " ")).collect();
        let points = points.join(", ");
        Some(Instance {
            canonical: format!("{w} {h} {points}"),
            question: format!(
                "A path from (0, 0) to ({w}, {h}) goes in unit steps right, x to x + 1, or up, y to y + 1, and never \
                 meets a blocked point. Blocked: {points}. How many paths are there? Give the number as \\boxed{{number}}."
            ),
            solution: format!(
                "Ways to each point, rows from y = 0: {}. {}",
                rows.join(" / "),
                boxed(&[answer])
            ),
            gold: gold(work, &[answer]),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        grade_same(gold, completion)
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        boxed(&[draw.between(4..=2 << size(level).0)])
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(x: i64, y: i64, w: i64, h: i64, blocked: &[(i64, i64)]) -> i64 {
        if x > w || y > h || blocked.contains(&(x, y)) {
            return 0;
        }
        if (x, y) == (w, h) {
            return 1;
        }
        walk(x + 1, y, w, h, blocked) + walk(x, y + 1, w, h, blocked)
    }

    #[test]
    fn counts_are_those_of_walking_every_path() {
        for blocked in [
            vec![],
            vec![(1, 1)],
            vec![(0, 1), (3, 2)],
            vec![(2, 2), (1, 3), (4, 0)],
        ] {
            let (rows, _) = count(5, 4, &blocked);
            assert_eq!(rows[4][5], walk(0, 0, 5, 4, &blocked), "{blocked:?}");
        }
        assert_eq!(count(5, 4, &[]).0[4][5], 126);
    }
}
