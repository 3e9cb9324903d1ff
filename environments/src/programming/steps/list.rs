//! Steps of lists of integers. Remainders are Python's and Euclid's: never negative.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::programming::value::{Kind, Value};

/// A condition on a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Condition {
    Even,
    Odd,
    Above(i64),
    AtLeast(i64),
    Below(i64),
    AtMost(i64),
    MultipleOf(i64),
    NoMultipleOf(i64),
}

/// A step of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum ListStep {
    Keep(Condition),
    Add(i64),
    Times(i64),
    From(i64),
    Remainder(i64),
    Absolute,
    SortUp,
    SortDown,
    RunningSum,
    RunningMaximum,
    Differences,
    NeighbourSums,
    FirstOccurrences,
    CollapseRuns,
    TimesPlace,
    PlusPlace,
    PlusMirrored,
    NumSmaller,
    Sum,
    Length,
    Maximum,
    NumDistinct,
    PairsToSpans,
}

impl Condition {
    fn draw(draw: &mut Draw) -> Condition {
        let bound = draw.between(-5..=15);
        let divisor = draw.between(3..=5);
        match draw.index(8) {
            0 => Condition::Even,
            1 => Condition::Odd,
            2 => Condition::Above(bound),
            3 => Condition::AtLeast(bound),
            4 => Condition::Below(bound),
            5 => Condition::AtMost(bound),
            6 => Condition::MultipleOf(divisor),
            _ => Condition::NoMultipleOf(divisor),
        }
    }

    fn holds(self, number: i64) -> bool {
        match self {
            Condition::Even => number.rem_euclid(2) == 0,
            Condition::Odd => number.rem_euclid(2) == 1,
            Condition::Above(bound) => number > bound,
            Condition::AtLeast(bound) => number >= bound,
            Condition::Below(bound) => number < bound,
            Condition::AtMost(bound) => number <= bound,
            Condition::MultipleOf(divisor) => number.rem_euclid(divisor) == 0,
            Condition::NoMultipleOf(divisor) => number.rem_euclid(divisor) != 0,
        }
    }

    fn prose(self) -> String {
        match self {
            Condition::Even => "even".to_string(),
            Condition::Odd => "odd".to_string(),
            Condition::Above(bound) => format!("greater than {bound}"),
            Condition::AtLeast(bound) => format!("at least {bound}"),
            Condition::Below(bound) => format!("less than {bound}"),
            Condition::AtMost(bound) => format!("at most {bound}"),
            Condition::MultipleOf(divisor) => format!("multiples of {divisor} (0 is one)"),
            Condition::NoMultipleOf(divisor) => format!("no multiples of {divisor} (0 is one)"),
        }
    }

    fn python(self) -> String {
        match self {
            Condition::Even => "v % 2 == 0".to_string(),
            Condition::Odd => "v % 2 == 1".to_string(),
            Condition::Above(bound) => format!("v > {bound}"),
            Condition::AtLeast(bound) => format!("v >= {bound}"),
            Condition::Below(bound) => format!("v < {bound}"),
            Condition::AtMost(bound) => format!("v <= {bound}"),
            Condition::MultipleOf(divisor) => format!("v % {divisor} == 0"),
            Condition::NoMultipleOf(divisor) => format!("v % {divisor} != 0"),
        }
    }
}

impl ListStep {
    pub(super) fn draw(draw: &mut Draw) -> ListStep {
        match draw.index(24) {
            0..3 => ListStep::Keep(Condition::draw(draw)),
            3 => ListStep::Add(draw.between(1..=9) * draw.choose(&[1, -1])),
            4 => ListStep::Times(draw.choose(&[-1, 2, 3])),
            5 => ListStep::From(draw.between(1..=20)),
            6 => ListStep::Remainder(draw.between(4..=11)),
            7 => ListStep::Absolute,
            8 => ListStep::SortUp,
            9 => ListStep::SortDown,
            10 => ListStep::RunningSum,
            11 => ListStep::RunningMaximum,
            12 => ListStep::Differences,
            13 => ListStep::NeighbourSums,
            14 => ListStep::FirstOccurrences,
            15 => ListStep::CollapseRuns,
            16 => ListStep::TimesPlace,
            17 => ListStep::PlusPlace,
            18 => ListStep::PlusMirrored,
            19 => ListStep::NumSmaller,
            20 => ListStep::Sum,
            21 => draw.choose(&[ListStep::Length, ListStep::NumDistinct]),
            22 => ListStep::Maximum,
            _ => ListStep::PairsToSpans,
        }
    }

    pub(super) fn result(self) -> Kind {
        match self {
            ListStep::Sum | ListStep::Length | ListStep::Maximum | ListStep::NumDistinct => {
                Kind::Integer
            }
            ListStep::PairsToSpans => Kind::Spans,
            _ => Kind::List,
        }
    }

    pub(super) fn apply(self, list: &[i64]) -> Value {
        let map = |f: &dyn Fn(i64) -> i64| list.iter().map(|&v| f(v)).collect::<Vec<i64>>();
        let placed = || (1i64..).zip(list.iter().copied());
        let pairs = || list.windows(2).map(|pair| (pair[0], pair[1]));
        let distinct = || {
            let mut kept: Vec<i64> = Vec::new();
            for &v in list {
                if !kept.contains(&v) {
                    kept.push(v);
                }
            }
            kept
        };
        let sorted = || {
            let mut sorted = list.to_vec();
            sorted.sort_unstable();
            sorted
        };
        Value::List(match self {
            ListStep::Keep(condition) => list
                .iter()
                .copied()
                .filter(|&v| condition.holds(v))
                .collect(),
            ListStep::Add(number) => map(&|v| v + number),
            ListStep::Times(number) => map(&|v| v * number),
            ListStep::From(number) => map(&|v| number - v),
            ListStep::Remainder(number) => map(&|v| v.rem_euclid(number)),
            ListStep::Absolute => map(&i64::abs),
            ListStep::SortUp => sorted(),
            ListStep::SortDown => sorted().into_iter().rev().collect(),
            ListStep::RunningSum => list
                .iter()
                .scan(0, |sum, v| {
                    *sum += v;
                    Some(*sum)
                })
                .collect(),
            ListStep::RunningMaximum => list
                .iter()
                .scan(i64::MIN, |most, &v| {
                    *most = v.max(*most);
                    Some(*most)
                })
                .collect(),
            ListStep::Differences => pairs().map(|(a, b)| b - a).collect(),
            ListStep::NeighbourSums => pairs().map(|(a, b)| a + b).collect(),
            ListStep::FirstOccurrences => distinct(),
            ListStep::CollapseRuns => {
                let mut kept = list.to_vec();
                kept.dedup();
                kept
            }
            ListStep::TimesPlace => placed().map(|(place, v)| place * v).collect(),
            ListStep::PlusPlace => placed().map(|(place, v)| place + v).collect(),
            ListStep::PlusMirrored => list
                .iter()
                .zip(list.iter().rev())
                .map(|(a, b)| a + b)
                .collect(),
            ListStep::NumSmaller => {
                map(&|v| list.iter().filter(|&&other| other < v).count() as i64)
            }
            ListStep::Sum => return Value::Integer(list.iter().sum()),
            ListStep::Length => return Value::Integer(list.len() as i64),
            ListStep::Maximum => return Value::Integer(list.iter().copied().max().unwrap_or(0)),
            ListStep::NumDistinct => return Value::Integer(distinct().len() as i64),
            ListStep::PairsToSpans => {
                return Value::Spans(pairs().map(|(a, b)| (a.min(b), a.max(b))).collect());
            }
        })
    }

    pub(super) fn prose(self) -> String {
        let text = match self {
            ListStep::Keep(condition) => {
                return format!("Keep only the numbers that are {}.", condition.prose());
            }
            ListStep::Add(number) if number < 0 => {
                return format!("Subtract {} from every number.", -number);
            }
            ListStep::Add(number) => return format!("Add {number} to every number."),
            ListStep::Times(-1) => "Change the sign of every number.",
            ListStep::Times(number) => return format!("Multiply every number by {number}."),
            ListStep::From(number) => {
                return format!("Replace every number v by {number} - v.");
            }
            ListStep::Remainder(number) => {
                return format!(
                    "Replace every number by its remainder modulo {number}, from 0 to {}.",
                    number - 1
                );
            }
            ListStep::Absolute => "Replace every number by its absolute value.",
            ListStep::SortUp => "Sort the numbers in ascending order.",
            ListStep::SortDown => "Sort the numbers in descending order.",
            ListStep::RunningSum => {
                "Replace every number by the sum of the numbers from the first up to it."
            }
            ListStep::RunningMaximum => {
                "Replace every number by the largest of the numbers from the first up to it."
            }
            ListStep::Differences => {
                "Make the list of differences of neighbours: each number from the second on, minus the number before it."
            }
            ListStep::NeighbourSums => {
                "Make the list of sums of neighbours: each number from the second on, plus the number before it."
            }
            ListStep::FirstOccurrences => {
                "Of equal numbers keep only the first, wherever they are."
            }
            ListStep::CollapseRuns => {
                "Of equal numbers that follow each other directly keep only one."
            }
            ListStep::TimesPlace => "Multiply every number by its place, counted from 1.",
            ListStep::PlusPlace => "Add to every number its place, counted from 1.",
            ListStep::PlusMirrored => {
                "Add to every number the one at the same place counted from the end."
            }
            ListStep::NumSmaller => {
                "Replace every number by how many numbers of the list are less than it."
            }
            ListStep::Sum => "Return the sum of the numbers (0 if there are none).",
            ListStep::Length => "Return how many numbers there are.",
            ListStep::Maximum => "Return the largest number (0 if there are none).",
            ListStep::NumDistinct => "Return how many different numbers there are.",
            ListStep::PairsToSpans => {
                "Make an interval of each two neighbours: the lesser is lo, the greater is hi."
            }
        };
        text.to_string()
    }

    pub(super) fn python(self) -> String {
        let text = match self {
            ListStep::Keep(condition) => {
                return format!("x = [v for v in x if {}]", condition.python());
            }
            ListStep::Add(number) if number < 0 => {
                return format!("x = [v - {} for v in x]", -number);
            }
            ListStep::Add(number) => return format!("x = [v + {number} for v in x]"),
            ListStep::Times(-1) => "x = [-v for v in x]",
            ListStep::Times(number) => return format!("x = [v * {number} for v in x]"),
            ListStep::From(number) => return format!("x = [{number} - v for v in x]"),
            ListStep::Remainder(number) => return format!("x = [v % {number} for v in x]"),
            ListStep::Absolute => "x = [abs(v) for v in x]",
            ListStep::SortUp => "x = sorted(x)",
            ListStep::SortDown => "x = sorted(x, reverse=True)",
            ListStep::RunningSum => "x = [sum(x[:i + 1]) for i in range(len(x))]",
            ListStep::RunningMaximum => "x = [max(x[:i + 1]) for i in range(len(x))]",
            ListStep::Differences => "x = [b - a for a, b in zip(x, x[1:])]",
            ListStep::NeighbourSums => "x = [b + a for a, b in zip(x, x[1:])]",
            ListStep::FirstOccurrences => "x = list(dict.fromkeys(x))",
            ListStep::CollapseRuns => "x = [v for i, v in enumerate(x) if i == 0 or v != x[i - 1]]",
            ListStep::TimesPlace => "x = [v * i for i, v in enumerate(x, 1)]",
            ListStep::PlusPlace => "x = [v + i for i, v in enumerate(x, 1)]",
            ListStep::PlusMirrored => "x = [a + b for a, b in zip(x, x[::-1])]",
            ListStep::NumSmaller => "x = [sum(w < v for w in x) for v in x]",
            ListStep::Sum => "x = sum(x)",
            ListStep::Length => "x = len(x)",
            ListStep::Maximum => "x = max(x, default=0)",
            ListStep::NumDistinct => "x = len(set(x))",
            ListStep::PairsToSpans => "x = [[min(a, b), max(a, b)] for a, b in zip(x, x[1:])]",
        };
        text.to_string()
    }
}
