//! The steps of the small language. Each says in one place what it does three times over: [`Step::apply`] in Rust,
//! [`Step::prose`] in English and [`Step::python`] in Python, on the variable `x`.
//!
//! Steps of sequences in general are here; those of one kind of value are in `steps/`.

mod list;
mod spans;
mod text;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::programming::value::{Kind, Value};

use list::ListStep;
use spans::SpansStep;
use text::TextStep;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Of any sequence.
    Slice(Slice),
    /// Of lists.
    List(ListStep),
    /// Of texts.
    Text(TextStep),
    /// Of lists of intervals.
    Spans(SpansStep),
}

/// Chooses and orders items by their places alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Slice {
    Reverse,
    TakeFirst(usize),
    TakeLast(usize),
    DropFirst(usize),
    DropLast(usize),
    /// The first items go to the end.
    FirstToEnd(usize),
    /// The last items go to the front.
    LastToFront(usize),
    /// Every second item, from the first (0) or the second (1) on.
    EverySecond(usize),
}

impl Step {
    /// A random step of an input of `kind`.
    pub(crate) fn draw(kind: Kind, draw: &mut Draw) -> Step {
        if draw.index(4) == 0 {
            return Step::Slice(Slice::draw(draw));
        }
        match kind {
            Kind::Integer | Kind::List => Step::List(ListStep::draw(draw)),
            Kind::Text => Step::Text(TextStep::draw(draw)),
            Kind::Spans => Step::Spans(SpansStep::draw(draw)),
        }
    }

    /// What comes of an input of `kind`, if the step takes one.
    pub(crate) fn result(&self, kind: Kind) -> Option<Kind> {
        match (self, kind) {
            (_, Kind::Integer) => None,
            (Step::Slice(_), kind) => Some(kind),
            (Step::List(step), Kind::List) => Some(step.result()),
            (Step::Text(step), Kind::Text) => Some(step.result()),
            (Step::Spans(step), Kind::Spans) => Some(step.result()),
            _ => None,
        }
    }

    /// The result.
    ///
    /// # Panics
    /// When the step takes no input of this kind.
    pub(crate) fn apply(&self, value: &Value) -> Value {
        match (self, value) {
            (Step::Slice(slice), Value::List(list)) => Value::List(slice.of(list)),
            (Step::Slice(slice), Value::Spans(spans)) => Value::Spans(slice.of(spans)),
            (Step::Slice(slice), Value::Text(text)) => {
                let letters = slice.of(text.as_bytes());
                Value::Text(letters.into_iter().map(char::from).collect())
            }
            (Step::List(step), Value::List(list)) => step.apply(list),
            (Step::Text(step), Value::Text(text)) => step.apply(text),
            (Step::Spans(step), Value::Spans(spans)) => step.apply(spans),
            _ => panic!("{self:?} takes no {:?}", value.kind()),
        }
    }

    /// What it does to an input of `kind`, in words.
    pub(crate) fn prose(&self, kind: Kind) -> String {
        match self {
            Step::Slice(slice) => slice.prose(match kind {
                Kind::Text => "letter",
                Kind::Spans => "interval",
                Kind::Integer | Kind::List => "number",
            }),
            Step::List(step) => step.prose(),
            Step::Text(step) => step.prose(),
            Step::Spans(step) => step.prose(),
        }
    }

    /// What it does, as lines of Python that set `x`.
    pub(crate) fn python(&self) -> String {
        match self {
            Step::Slice(slice) => slice.python(),
            Step::List(step) => step.python(),
            Step::Text(step) => step.python(),
            Step::Spans(step) => step.python(),
        }
    }
}

impl Slice {
    fn draw(draw: &mut Draw) -> Slice {
        let num = draw.between(1..=3) as usize;
        match draw.index(8) {
            0 => Slice::Reverse,
            // Taking few leaves little for the steps that follow.
            1 => Slice::TakeFirst(num + 2),
            2 => Slice::TakeLast(num + 2),
            3 => Slice::DropFirst(num),
            4 => Slice::DropLast(num),
            5 => Slice::FirstToEnd(num),
            6 => Slice::LastToFront(num),
            _ => Slice::EverySecond(draw.index(2)),
        }
    }

    fn of<T: Copy>(self, items: &[T]) -> Vec<T> {
        let len = items.len();
        match self {
            Slice::Reverse => items.iter().rev().copied().collect(),
            Slice::TakeFirst(num) => items[..num.min(len)].to_vec(),
            Slice::TakeLast(num) => items[len.saturating_sub(num)..].to_vec(),
            Slice::DropFirst(num) => items[num.min(len)..].to_vec(),
            Slice::DropLast(num) => items[..len.saturating_sub(num)].to_vec(),
            Slice::FirstToEnd(num) => {
                let (first, rest) = items.split_at(num.min(len));
                [rest, first].concat()
            }
            Slice::LastToFront(num) => {
                let (rest, last) = items.split_at(len.saturating_sub(num));
                [last, rest].concat()
            }
            Slice::EverySecond(from) => items.iter().skip(from).step_by(2).copied().collect(),
        }
    }

    fn prose(self, item: &str) -> String {
        let some = |num: usize| match num {
            1 => item.to_string(),
            _ => format!("{num} {item}s"),
        };
        let all = "(all of them if there are no more)";
        match self {
            Slice::Reverse => format!("Reverse the order of the {item}s."),
            Slice::TakeFirst(num) => format!("Keep only the first {} {all}.", some(num)),
            Slice::TakeLast(num) => format!("Keep only the last {} {all}.", some(num)),
            Slice::DropFirst(num) => format!("Remove the first {} {all}.", some(num)),
            Slice::DropLast(num) => format!("Remove the last {} {all}.", some(num)),
            Slice::FirstToEnd(num) => format!(
                "Move the first {} to the end, in the same order (nothing changes if there are no more).",
                some(num)
            ),
            Slice::LastToFront(num) => format!(
                "Move the last {} to the front, in the same order (nothing changes if there are no more).",
                some(num)
            ),
            Slice::EverySecond(0) => {
                format!("Keep every second {item}: the first, the third, the fifth and so on.")
            }
            Slice::EverySecond(_) => {
                format!("Keep every second {item}: the second, the fourth, the sixth and so on.")
            }
        }
    }

    fn python(self) -> String {
        match self {
            Slice::Reverse => "x = x[::-1]".to_string(),
            Slice::TakeFirst(num) => format!("x = x[:{num}]"),
            Slice::TakeLast(num) => format!("x = x[-{num}:]"),
            Slice::DropFirst(num) => format!("x = x[{num}:]"),
            Slice::DropLast(num) => format!("x = x[:-{num}]"),
            Slice::FirstToEnd(num) => format!("x = x[{num}:] + x[:{num}]"),
            Slice::LastToFront(num) => format!("x = x[-{num}:] + x[:-{num}]"),
            Slice::EverySecond(from) => format!("x = x[{from}::2]"),
        }
    }
}
