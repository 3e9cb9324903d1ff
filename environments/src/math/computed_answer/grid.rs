//! The cheapest way through a square grid whose costs a formula gives. A step: a cell entered from a neighbour, whether
//! that was cheaper or not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::Solved;
use crate::draw::Draw;

/// Cell (i, j) costs k = 1 + (a i i + b j j + c i j + d i + e j) mod m, or k k k where a path may turn back: with costs that
/// differ so much it pays to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Grid {
    size: i64,
    /// a, b, c, d, e.
    factors: [i64; 5],
    modulus: i64,
    /// All four neighbours; otherwise right and down.
    is_free: bool,
}

impl Grid {
    pub(super) fn draw(level: u32, draw: &mut Draw) -> Grid {
        let size = draw.between(match level {
            1 => 3..=3,
            2 => 7..=9,
            3 => 25..=35,
            4 => 30..=40,
            _ => 70..=90,
        });
        let modulus = draw.between(match level {
            1 => 200..=999,
            2 | 3 => 90..=999,
            _ => 30..=99,
        });
        Grid {
            size,
            factors: std::array::from_fn(|_| draw.between(1..=modulus - 1)),
            modulus,
            is_free: level >= 4,
        }
    }

    pub(super) fn asked(&self) -> String {
        let (last, [a, b, c, d, e], m) = (self.size - 1, self.factors, self.modulus);
        let moves = match self.is_free {
            true => "to any of the up to four cells beside, above and below it",
            false => "only from (i, j) to (i + 1, j) or to (i, j + 1)",
        };
        let costs = match self.is_free {
            true => "k*k*k",
            false => "k",
        };
        format!(
            "The cell (i, j) of a square grid, i and j from 0 to {last}, costs {costs} with k = 1 + (({a}*i*i + {b}*j*j + {c}*i*j + {d}*i + {e}*j) mod {m}). A path goes from (0, 0) to ({last}, {last}), from a cell {moves}, and costs the sum of the costs of all its cells, both ends included. What does the cheapest path cost?"
        )
    }

    fn cost(&self, i: i64, j: i64) -> i64 {
        let [a, b, c, d, e] = self.factors;
        let k = 1 + (a * i * i + b * j * j + c * i * j + d * i + e * j) % self.modulus;
        if self.is_free { k * k * k } else { k }
    }

    /// Dijkstra's search.
    pub(super) fn solve(&self) -> Solved {
        let place = |i: i64, j: i64| (i * self.size + j) as usize;
        let mut best = vec![i64::MAX; (self.size * self.size) as usize];
        let mut queue = BinaryHeap::from([Reverse((self.cost(0, 0), 0, 0))]);
        best[0] = self.cost(0, 0);
        let steps: &[(i64, i64)] = match self.is_free {
            true => &[(1, 0), (0, 1), (-1, 0), (0, -1)],
            false => &[(1, 0), (0, 1)],
        };
        let mut work = 0;
        while let Some(Reverse((cost, i, j))) = queue.pop() {
            if cost > best[place(i, j)] {
                continue;
            }
            for (di, dj) in steps {
                let (i, j) = (i + di, j + dj);
                if !(0..self.size).contains(&i) || !(0..self.size).contains(&j) {
                    continue;
                }
                work += 1;
                let through = cost + self.cost(i, j);
                if through < best[place(i, j)] {
                    best[place(i, j)] = through;
                    queue.push(Reverse((through, i, j)));
                }
            }
        }
        Solved {
            answer: best[best.len() - 1],
            work,
        }
    }

    pub(super) fn cells(&self) -> [String; 2] {
        let ([a, b, c, d, e], m) = (self.factors, self.modulus);
        let steps = match self.is_free {
            true => "((1, 0), (0, 1), (-1, 0), (0, -1))",
            false => "((1, 0), (0, 1))",
        };
        let costs = if self.is_free { "k*k*k" } else { "k" };
        let define = format!(
            "import heapq\n\ndef cost(i, j):\n    k = 1 + ({a}*i*i + {b}*j*j + {c}*i*j + {d}*i + {e}*j) % {m}\n    return {costs}\n\ndef cheapest(n):\n    best, queue = {{(0, 0): cost(0, 0)}}, [(cost(0, 0), 0, 0)]\n    while queue:\n        total, i, j = heapq.heappop(queue)\n        if (i, j) == (n - 1, n - 1):\n            return total\n        if total > best[i, j]:\n            continue\n        for di, dj in {steps}:\n            x, y = i + di, j + dj\n            if 0 <= x < n and 0 <= y < n and total + cost(x, y) < best.get((x, y), 10**18):\n                best[x, y] = total + cost(x, y)\n                heapq.heappush(queue, (best[x, y], x, y))"
        );
        [define, format!("cheapest({})", self.size)]
    }

    /// A path without a detour has 2 size - 1 cells, most of which have k below half of the modulus.
    pub(super) fn range(&self) -> RangeInclusive<i64> {
        let (num_cells, k) = (2 * self.size - 1, self.modulus / 2);
        num_cells..=num_cells * if self.is_free { k * k * k } else { k }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_path_of_a_small_grid_is_the_one_seen() {
        // cost = 1 + (5 i j + i + 2 j) mod 7:   1 3 5
        //                                       2 2 2
        //                                       3 1 6
        let mut grid = Grid {
            size: 3,
            factors: [0, 0, 5, 1, 2],
            modulus: 7,
            is_free: false,
        };
        let rows: Vec<Vec<i64>> = (0..3)
            .map(|i| (0..3).map(|j| grid.cost(i, j)).collect())
            .collect();
        assert_eq!(rows, [[1, 3, 5], [2, 2, 2], [3, 1, 6]]);
        // 1 + 2 + 2 + 1 + 6.
        assert_eq!(grid.solve().answer, 12);
        // The same path: 1 + 8 + 8 + 1 + 216.
        grid.is_free = true;
        assert_eq!(grid.solve().answer, 234);
    }

    /// Costs of the cheapest paths, lowered by sweeps over the grid until nothing changes.
    fn by_sweeps(grid: &Grid) -> i64 {
        let size = grid.size;
        let mut best = vec![vec![i64::MAX / 2; size as usize]; size as usize];
        best[0][0] = grid.cost(0, 0);
        loop {
            let before = best.clone();
            for (i, j) in (0..size).flat_map(|i| (0..size).map(move |j| (i, j))) {
                let beside = [(i + 1, j), (i, j + 1), (i - 1, j), (i, j - 1)];
                let on_grid = |at: i64| (0..size).contains(&at);
                let beside = beside
                    .into_iter()
                    .filter(|&(i, j)| on_grid(i) && on_grid(j));
                let least = beside.map(|(i, j)| best[i as usize][j as usize]).min();
                let through = least.unwrap_or(i64::MAX / 2) + grid.cost(i, j);
                let own = &mut best[i as usize][j as usize];
                *own = through.min(*own);
            }
            if best == before {
                return best[size as usize - 1][size as usize - 1];
            }
        }
    }

    #[test]
    fn detours_pay_where_all_neighbours_are_allowed() {
        let mut num_detours = 0;
        for seed in 1..=20 {
            let grid = Grid {
                size: 25,
                factors: [17, 31, 53, 71, 89].map(|prime| prime * seed * seed % 97),
                modulus: 97,
                is_free: true,
            };
            let cheapest = grid.solve().answer;
            assert_eq!(cheapest, by_sweeps(&grid), "{grid:?}");
            num_detours += usize::from(cheapest < without_turning_back(&grid));
        }
        assert!(num_detours >= 15, "{num_detours} of 20");
    }

    fn without_turning_back(grid: &Grid) -> i64 {
        let mut best = vec![i64::MAX / 2; grid.size as usize];
        best[0] = 0;
        for i in 0..grid.size {
            for j in 0..grid.size as usize {
                let left = if j > 0 { best[j - 1] } else { i64::MAX / 2 };
                best[j] = best[j].min(left) + grid.cost(i, j as i64);
            }
        }
        best[grid.size as usize - 1]
    }
}
