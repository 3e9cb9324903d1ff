//! Steps of lists of intervals [lo, hi] of integers, both ends included.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::programming::value::{Kind, Value};

/// A step of a list of intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum SpansStep {
    Sort,
    SortByLength,
    Shift(i64),
    Widen(i64),
    Shrink(i64),
    Clip(i64, i64),
    KeepLong(i64),
    KeepShort(i64),
    /// Unites those with a common integer.
    Merge,
    /// Unites those with a common integer and those that stand side by side.
    MergeTouching,
    Gaps,
    Lengths,
    Starts,
    Ends,
    NumCovered,
    Length,
}

impl SpansStep {
    pub(super) fn draw(draw: &mut Draw) -> SpansStep {
        match draw.index(17) {
            0 => SpansStep::Sort,
            1 => SpansStep::SortByLength,
            2 => SpansStep::Shift(draw.between(1..=9) * draw.choose(&[1, -1])),
            3 => SpansStep::Widen(draw.between(1..=3)),
            4 => SpansStep::Shrink(draw.between(1..=2)),
            5 => SpansStep::Clip(draw.between(-9..=2), draw.between(18..=30)),
            6 => SpansStep::KeepLong(draw.between(3..=6)),
            7 => SpansStep::KeepShort(draw.between(5..=8)),
            8 | 9 => SpansStep::Merge,
            10 => SpansStep::MergeTouching,
            11 => SpansStep::Gaps,
            12 => SpansStep::Lengths,
            13 => SpansStep::Starts,
            14 => SpansStep::Ends,
            15 => SpansStep::NumCovered,
            _ => SpansStep::Length,
        }
    }

    pub(super) fn result(self) -> Kind {
        match self {
            SpansStep::Lengths | SpansStep::Starts | SpansStep::Ends => Kind::List,
            SpansStep::NumCovered | SpansStep::Length => Kind::Integer,
            _ => Kind::Spans,
        }
    }

    pub(super) fn apply(self, spans: &[(i64, i64)]) -> Value {
        let map = |f: &dyn Fn(i64, i64) -> (i64, i64)| {
            spans.iter().map(|&(lo, hi)| f(lo, hi)).collect::<Vec<_>>()
        };
        let not_empty = |mut spans: Vec<(i64, i64)>| {
            spans.retain(|(lo, hi)| lo <= hi);
            spans
        };
        let lengths = || spans.iter().map(|(lo, hi)| hi - lo + 1);
        Value::Spans(match self {
            SpansStep::Sort => {
                let mut sorted = spans.to_vec();
                sorted.sort_unstable();
                sorted
            }
            SpansStep::SortByLength => {
                let mut sorted = spans.to_vec();
                sorted.sort_by_key(|(lo, hi)| hi - lo);
                sorted
            }
            SpansStep::Shift(by) => map(&|lo, hi| (lo + by, hi + by)),
            SpansStep::Widen(by) => map(&|lo, hi| (lo - by, hi + by)),
            SpansStep::Shrink(by) => not_empty(map(&|lo, hi| (lo + by, hi - by))),
            SpansStep::Clip(from, to) => not_empty(map(&|lo, hi| (lo.max(from), hi.min(to)))),
            SpansStep::KeepLong(least) => {
                let mut kept = spans.to_vec();
                kept.retain(|(lo, hi)| hi - lo >= least - 1);
                kept
            }
            SpansStep::KeepShort(most) => {
                let mut kept = spans.to_vec();
                kept.retain(|(lo, hi)| hi - lo < most);
                kept
            }
            SpansStep::Merge => merged(spans, 0),
            SpansStep::MergeTouching => merged(spans, 1),
            SpansStep::Gaps => merged(spans, 1)
                .windows(2)
                .map(|pair| (pair[0].1 + 1, pair[1].0 - 1))
                .collect(),
            SpansStep::Lengths => return Value::List(lengths().collect()),
            SpansStep::Starts => return Value::List(spans.iter().map(|span| span.0).collect()),
            SpansStep::Ends => return Value::List(spans.iter().map(|span| span.1).collect()),
            SpansStep::NumCovered => {
                let covered = merged(spans, 0);
                return Value::Integer(covered.iter().map(|(lo, hi)| hi - lo + 1).sum());
            }
            SpansStep::Length => return Value::Integer(spans.len() as i64),
        })
    }

    pub(super) fn prose(self) -> String {
        let text = match self {
            SpansStep::Sort => "Sort the intervals by lo, those with equal lo by hi, ascending.",
            SpansStep::SortByLength => {
                "Sort the intervals by their length, shortest first; of equal length they stay in their order."
            }
            SpansStep::Shift(by) if by < 0 => {
                return format!("Subtract {} from both ends of every interval.", -by);
            }
            SpansStep::Shift(by) => return format!("Add {by} to both ends of every interval."),
            SpansStep::Widen(by) => {
                return format!(
                    "Widen every interval: lo becomes lo - {by}, hi becomes hi + {by}."
                );
            }
            SpansStep::Shrink(by) => {
                return format!(
                    "Shrink every interval: lo becomes lo + {by}, hi becomes hi - {by}; remove those whose lo is then greater than hi."
                );
            }
            SpansStep::Clip(from, to) => {
                return format!(
                    "Cut every interval down to what of it lies in [{from}, {to}]; remove those of which nothing does."
                );
            }
            SpansStep::KeepLong(least) => {
                return format!("Keep only the intervals that hold at least {least} integers.");
            }
            SpansStep::KeepShort(most) => {
                return format!("Keep only the intervals that hold at most {most} integers.");
            }
            SpansStep::Merge => {
                "Unite intervals that share an integer, until no two do (so [1, 3] and [4, 5] stay apart); the result is sorted ascending."
            }
            SpansStep::MergeTouching => {
                "Unite intervals that share an integer or stand side by side (so [1, 3] and [4, 5] become [1, 5]), until no two do; the result is sorted ascending."
            }
            SpansStep::Gaps => {
                "Make the list of gaps: the maximal intervals of integers between the least lo and the greatest hi that no interval holds, ascending."
            }
            SpansStep::Lengths => {
                "Make a list of how many integers each interval holds, in their order."
            }
            SpansStep::Starts => "Make a list of the lo of each interval, in their order.",
            SpansStep::Ends => "Make a list of the hi of each interval, in their order.",
            SpansStep::NumCovered => "Return how many integers lie in at least one interval.",
            SpansStep::Length => "Return how many intervals there are.",
        };
        text.to_string()
    }

    pub(super) fn python(self) -> String {
        let text = match self {
            SpansStep::Sort => "x = sorted(x)",
            SpansStep::SortByLength => "x = sorted(x, key=lambda s: s[1] - s[0])",
            SpansStep::Shift(by) if by < 0 => {
                return format!("x = [[a - {}, b - {}] for a, b in x]", -by, -by);
            }
            SpansStep::Shift(by) => return format!("x = [[a + {by}, b + {by}] for a, b in x]"),
            SpansStep::Widen(by) => return format!("x = [[a - {by}, b + {by}] for a, b in x]"),
            SpansStep::Shrink(by) => {
                return format!("x = [[a + {by}, b - {by}] for a, b in x if a + {by} <= b - {by}]");
            }
            SpansStep::Clip(from, to) => {
                return format!(
                    "x = [[max(a, {from}), min(b, {to})] for a, b in x if a <= {to} and b >= {from}]"
                );
            }
            SpansStep::KeepLong(least) => {
                return format!("x = [[a, b] for a, b in x if b - a + 1 >= {least}]");
            }
            SpansStep::KeepShort(most) => {
                return format!("x = [[a, b] for a, b in x if b - a + 1 <= {most}]");
            }
            SpansStep::Merge => return united("m[-1][1]"),
            SpansStep::MergeTouching => return united("m[-1][1] + 1"),
            SpansStep::Gaps => {
                return united("m[-1][1] + 1")
                    + "\nx = [[a[1] + 1, b[0] - 1] for a, b in zip(x, x[1:])]";
            }
            SpansStep::Lengths => "x = [b - a + 1 for a, b in x]",
            SpansStep::Starts => "x = [a for a, b in x]",
            SpansStep::Ends => "x = [b for a, b in x]",
            SpansStep::NumCovered => "x = len({v for a, b in x for v in range(a, b + 1)})",
            SpansStep::Length => "x = len(x)",
        };
        text.to_string()
    }
}

/// Lines that unite what begins at most at `reach`.
fn united(reach: &str) -> String {
    format!(
        "m = []\nfor a, b in sorted(x):\n    if m and a <= {reach}:\n        m[-1][1] = max(m[-1][1], b)\n    else:\n        m.append([a, b])\nx = m"
    )
}

/// The unions of those that overlap or are at most `apart` apart, sorted.
fn merged(spans: &[(i64, i64)], apart: i64) -> Vec<(i64, i64)> {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (lo, hi) in sorted {
        match merged.last_mut() {
            Some(last) if lo <= last.1 + apart => last.1 = last.1.max(hi),
            _ => merged.push((lo, hi)),
        }
    }
    merged
}
