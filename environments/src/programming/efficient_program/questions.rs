//! What is asked of a long list y: in words, by a fast algorithm here and in Python, and by a slow one in Python.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::draw::Draw;

/// A question about y. Places i < j < k; a sublist is not empty and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Question {
    /// Pairs with y_i + y_j = sum.
    PairSum { sum: i64 },
    /// Sublists with this sum.
    SublistSum { sum: i64 },
    /// Pairs with |y_i - y_j| <= most.
    ClosePairs { most: i64 },
    /// Pairs with y_i + y_j < bound.
    SumBelow { bound: i64 },
    /// Sum of the largest numbers of all windows of a third of the length.
    WindowMaxima,
    /// Sum of the distances to the next greater number, or of `none`.
    NextGreater { none: i64 },
    /// Pairs with y_i > y_j + by.
    Inversions { by: i64 },
    /// Triples with y_i < y_j < y_k.
    Triples,
    /// Sublists whose sum lies in a range.
    SublistsBetween { least: i64, most: i64 },
    /// Length of the longest increasing subsequence.
    LongestRise,
}

use Question::{
    ClosePairs, Inversions, LongestRise, NextGreater, PairSum, SublistSum, SublistsBetween,
    SumBelow, Triples, WindowMaxima,
};

impl Question {
    /// A question of the level, and the modulus of its y.
    pub(super) fn draw(level: u32, draw: &mut Draw) -> (Question, i64) {
        let small = draw.between(31..=199);
        let large = draw.between(20_000..=90_000);
        let is_first = draw.coin();
        match (level, is_first) {
            (1, true) => (
                PairSum {
                    sum: draw.between(-15..=15),
                },
                small,
            ),
            (1, false) => (
                SublistSum {
                    sum: draw.between(-15..=15),
                },
                small,
            ),
            (2, true) => (
                ClosePairs {
                    most: draw.between(500..=5000),
                },
                large,
            ),
            (2, false) => (
                SumBelow {
                    bound: draw.between(-5000..=5000),
                },
                large,
            ),
            (3, true) => (WindowMaxima, large),
            (3, false) => (
                NextGreater {
                    none: draw.between(0..=99),
                },
                large + 90_000,
            ),
            (4, true) => (
                Inversions {
                    by: draw.between(0..=5000),
                },
                large,
            ),
            (4, false) => (Triples, large),
            (_, true) => {
                let least = draw.between(-5000..=0);
                let most = least + draw.between(1000..=9000);
                (SublistsBetween { least, most }, large)
            }
            (_, false) => (LongestRise, large),
        }
    }

    /// Length of the longest hidden list: the slow algorithm takes ten times the limit.
    pub(super) fn max_len(self) -> usize {
        match self {
            // Its slow algorithm runs in C.
            WindowMaxima => 120_000,
            // Both of its algorithms do twice the work of the others.
            Triples => 25_000,
            _ => 50_000,
        }
    }

    /// On a random list the slow algorithm stops early.
    pub(super) fn is_slow_where_falling(self) -> bool {
        matches!(self, NextGreater { .. })
    }

    /// What is to be returned, in words.
    pub(super) fn prose(self) -> String {
        match self {
            PairSum { sum } => format!("the number of pairs of places i < j with y[i] + y[j] equal to {sum}."),
            SublistSum { sum } => format!("how many non-empty contiguous sublists of y have the sum {sum} (those at different places count apart)."),
            ClosePairs { most } => format!("the number of pairs of places i < j for which y[i] and y[j] differ by at most {most}."),
            SumBelow { bound } => format!("the number of pairs of places i < j with y[i] + y[j] less than {bound}."),
            WindowMaxima => "the sum of the largest numbers of all contiguous sublists of y of length w, where w is len(y) // 3 + 1 (0 if y is empty).".to_string(),
            NextGreater { none } => format!("the sum over all places i of d(i): j - i for the first place j after i with y[j] greater than y[i], or {none} if there is no such j."),
            Inversions { by } => format!("the number of pairs of places i < j with y[i] greater than y[j] + {by}."),
            Triples => "the number of triples of places i < j < k with y[i] < y[j] < y[k].".to_string(),
            SublistsBetween { least, most } => format!("how many non-empty contiguous sublists of y have a sum from {least} to {most}, both included (those at different places count apart)."),
            LongestRise => "the length of the longest strictly increasing subsequence of y (0 if y is empty).".to_string(),
        }
    }

    /// The thought behind the fast algorithm.
    pub(super) fn idea(self) -> &'static str {
        match self {
            PairSum { .. } => {
                "Count the numbers seen so far; each new one pairs with the number that it lacks."
            }
            SublistSum { .. } => {
                "A sublist's sum is a difference of two prefix sums; count the earlier prefix sums."
            }
            ClosePairs { .. } => {
                "Sort; for each number find by bisection how many before it are close enough."
            }
            SumBelow { .. } => {
                "Sort; for each number find by bisection how many before it keep the sum below."
            }
            WindowMaxima => {
                "Keep a queue of places whose numbers fall; its head is the window's largest."
            }
            NextGreater { .. } => "Keep a stack of places that wait for a greater number.",
            Inversions { .. } => {
                "Keep the earlier numbers sorted and count the greater ones by bisection."
            }
            Triples => {
                "For each middle: how many smaller come before it, times how many greater come after."
            }
            SublistsBetween { .. } => {
                "Keep the earlier prefix sums sorted and count those in range by bisection."
            }
            LongestRise => {
                "Keep the least last number of a rise of each length and place each number by bisection."
            }
        }
    }

    /// Imports, and lines that make `r` of `y` fast.
    pub(super) fn fast_python(self) -> (&'static str, String) {
        let bisect = "from bisect import bisect_left, bisect_right, insort";
        match self {
            PairSum { sum } => ("", format!("r, seen = 0, {{}}\nfor v in y:\n    r += seen.get({sum} - v, 0)\n    seen[v] = seen.get(v, 0) + 1")),
            SublistSum { sum } => ("", format!("r, s, seen = 0, 0, {{0: 1}}\nfor v in y:\n    s += v\n    r += seen.get(s - {sum}, 0)\n    seen[s] = seen.get(s, 0) + 1")),
            ClosePairs { most } => (bisect, format!("y.sort()\nr = sum(i - bisect_left(y, v - {most}, 0, i) for i, v in enumerate(y))")),
            SumBelow { bound } => (bisect, format!("y.sort()\nr = sum(bisect_left(y, {bound} - v, 0, i) for i, v in enumerate(y))")),
            WindowMaxima => ("from collections import deque", "r, w, q = 0, len(y) // 3 + 1, deque()\nfor i, v in enumerate(y):\n    while q and y[q[-1]] <= v:\n        q.pop()\n    q.append(i)\n    if q[0] == i - w:\n        q.popleft()\n    if i >= w - 1:\n        r += y[q[0]]".to_string()),
            NextGreater { none } => ("", format!("r, waiting = 0, []\nfor i, v in enumerate(y):\n    while waiting and y[waiting[-1]] < v:\n        r += i - waiting.pop()\n    waiting.append(i)\nr += {none} * len(waiting)")),
            Inversions { by } => (bisect, format!("r, before = 0, []\nfor v in y:\n    r += len(before) - bisect_right(before, v + {by})\n    insort(before, v)")),
            Triples => (bisect, "less, before = [], []\nfor v in y:\n    less.append(bisect_left(before, v))\n    insort(before, v)\nr, after = 0, []\nfor v, n in zip(y[::-1], less[::-1]):\n    r += n * (len(after) - bisect_right(after, v))\n    insort(after, v)".to_string()),
            SublistsBetween { least, most } => (bisect, format!("r, s, before = 0, 0, [0]\nfor v in y:\n    s += v\n    r += bisect_right(before, s - ({least})) - bisect_left(before, s - ({most}))\n    insort(before, s)")),
            LongestRise => (bisect, "ends = []\nfor v in y:\n    at = bisect_left(ends, v)\n    ends[at:at + 1] = [v]\nr = len(ends)".to_string()),
        }
    }

    /// Lines that make `r` of `y` by looking at every pair or sublist.
    #[cfg(test)]
    pub(super) fn slow_python(self) -> String {
        let pairs = |condition: String| {
            format!(
                "r = 0\nfor i in range(len(y)):\n    a = y[i]\n    for b in y[i + 1:]:\n        if {condition}:\n            r += 1"
            )
        };
        match self {
            PairSum { sum } => pairs(format!("a + b == {sum}")),
            ClosePairs { most } => pairs(format!("abs(a - b) <= {most}")),
            SumBelow { bound } => pairs(format!("a + b < {bound}")),
            Inversions { by } => pairs(format!("a > b + {by}")),
            SublistSum { sum } => sublists(&format!("s == {sum}")),
            SublistsBetween { least, most } => sublists(&format!("{least} <= s <= {most}")),
            WindowMaxima => "w = len(y) // 3 + 1\nr = sum(max(y[i:i + w]) for i in range(len(y) - w + 1)) if y else 0".to_string(),
            NextGreater { none } => format!("r = 0\nfor i in range(len(y)):\n    a = y[i]\n    d = 0\n    for b in y[i + 1:]:\n        d += 1\n        if b > a:\n            break\n    else:\n        d = {none}\n    r += d"),
            Triples => "r = 0\nfor j in range(len(y)):\n    a = y[j]\n    r += sum([b < a for b in y[:j]]) * sum([b > a for b in y[j + 1:]])".to_string(),
            LongestRise => "best = []\nfor j in range(len(y)):\n    a, most = y[j], 0\n    for b, n in zip(y, best):\n        if b < a and n > most:\n            most = n\n    best.append(most + 1)\nr = max(best, default=0)".to_string(),
        }
    }

    /// The answer, fast.
    pub(super) fn answer(self, y: &[i64]) -> i64 {
        match self {
            PairSum { sum } => {
                let mut seen: HashMap<i64, i64> = HashMap::new();
                y.iter()
                    .map(|v| {
                        let pairs = seen.get(&(sum - v)).copied().unwrap_or(0);
                        *seen.entry(*v).or_default() += 1;
                        pairs
                    })
                    .sum()
            }
            SublistSum { sum } => {
                let mut seen = HashMap::from([(0, 1)]);
                prefix_sums(y)[1..]
                    .iter()
                    .map(|prefix| {
                        let sublists = seen.get(&(prefix - sum)).copied().unwrap_or(0);
                        *seen.entry(*prefix).or_default() += 1;
                        sublists
                    })
                    .sum()
            }
            ClosePairs { most } => {
                let sorted = sorted(y);
                let from = |v: &i64| sorted.partition_point(|w| *w < v - most);
                sorted
                    .iter()
                    .enumerate()
                    .map(|(i, v)| (i - from(v)) as i64)
                    .sum()
            }
            SumBelow { bound } => {
                let sorted = sorted(y);
                let below = |v: &i64| sorted.partition_point(|w| w + v < bound);
                sorted
                    .iter()
                    .enumerate()
                    .map(|(i, v)| below(v).min(i) as i64)
                    .sum()
            }
            WindowMaxima => window_maxima(y, y.len() / 3 + 1),
            NextGreater { none } => {
                let mut waiting: Vec<usize> = Vec::new();
                let mut sum = 0;
                for (i, v) in y.iter().enumerate() {
                    while let Some(last) = waiting.pop_if(|last| y[*last] < *v) {
                        sum += (i - last) as i64;
                    }
                    waiting.push(i);
                }
                sum + none * waiting.len() as i64
            }
            Inversions { by } => {
                let mut before = Counts::of(y);
                y.iter()
                    .map(|&v| {
                        let greater = before.num_all - before.num_at_most(v + by);
                        before.add(v);
                        greater
                    })
                    .sum()
            }
            Triples => {
                let (mut before, mut after) = (Counts::of(y), Counts::of(y));
                let less: Vec<i64> = y
                    .iter()
                    .map(|&v| {
                        let less = before.num_at_most(v - 1);
                        before.add(v);
                        less
                    })
                    .collect();
                let backwards = y.iter().zip(less).rev();
                backwards
                    .map(|(&v, less)| {
                        let greater = after.num_all - after.num_at_most(v);
                        after.add(v);
                        less * greater
                    })
                    .sum()
            }
            SublistsBetween { least, most } => {
                let sums = prefix_sums(y);
                let mut before = Counts::of(&sums);
                sums.iter()
                    .map(|&sum| {
                        let up_to = before.num_at_most(sum - least);
                        let sublists = up_to - before.num_at_most(sum - most - 1);
                        before.add(sum);
                        sublists
                    })
                    .sum()
            }
            LongestRise => {
                let mut ends: Vec<i64> = Vec::new();
                for &v in y {
                    let at = ends.partition_point(|end| *end < v);
                    ends.splice(at..ends.len().min(at + 1), [v]);
                }
                ends.len() as i64
            }
        }
    }
}

#[cfg(test)]
fn sublists(condition: &str) -> String {
    format!(
        "r = 0\nfor i in range(len(y)):\n    s = 0\n    for b in y[i:]:\n        s += b\n        if {condition}:\n            r += 1"
    )
}

fn sorted(y: &[i64]) -> Vec<i64> {
    let mut sorted = y.to_vec();
    sorted.sort_unstable();
    sorted
}

/// 0, y_0, y_0 + y_1, ...
fn prefix_sums(y: &[i64]) -> Vec<i64> {
    let sums = y.iter().scan(0, |sum, v| {
        *sum += v;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

fn window_maxima(y: &[i64], width: usize) -> i64 {
    let mut places: VecDeque<usize> = VecDeque::new();
    let mut sum = 0;
    for (i, v) in y.iter().enumerate() {
        while places.back().is_some_and(|&last| y[last] <= *v) {
            places.pop_back();
        }
        places.push_back(i);
        while places.front().is_some_and(|&first| first + width <= i) {
            places.pop_front();
        }
        if i + 1 >= width {
            sum += places.front().map_or(0, |&first| y[first]);
        }
    }
    sum
}

/// How many of the numbers added so far are at most as large as a number: a Fenwick tree over ranks.
struct Counts {
    values: Vec<i64>,
    tree: Vec<i64>,
    num_all: i64,
}

impl Counts {
    /// For numbers among `values`.
    fn of(values: &[i64]) -> Counts {
        let mut values = sorted(values);
        values.dedup();
        Counts {
            tree: vec![0; values.len() + 1],
            values,
            num_all: 0,
        }
    }

    fn rank(&self, value: i64) -> usize {
        self.values.partition_point(|known| *known <= value)
    }

    fn add(&mut self, value: i64) {
        let mut at = self.rank(value);
        while at < self.tree.len() {
            self.tree[at] += 1;
            at += at & at.wrapping_neg();
        }
        self.num_all += 1;
    }

    fn num_at_most(&self, value: i64) -> i64 {
        let mut at = self.rank(value);
        let mut num = 0;
        while at > 0 {
            num += self.tree[at];
            at &= at - 1;
        }
        num
    }
}
