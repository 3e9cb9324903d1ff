//! The values of the small language: integers, lists of them, texts of lower-case letters and lists of intervals.
//!
//! A value is written in one way, the JSON that Python's `json.dumps` writes without spaces, so that the outputs of a
//! program are compared as bytes.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;

/// Longest list that a drawn or answered input may be.
pub(crate) const MAX_ITEMS: usize = 10;
/// Integers of inputs, and ends of their intervals, lie within this of 0.
pub(crate) const MAX_INTEGER: i64 = 50;
/// Letters of drawn texts: few, so that they repeat, and more vowels than chance.
const LETTERS: &[u8] = b"aabbcdeefiiklmnoorsttuwyz";

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// One integer; only ever a last result.
    Integer,
    /// Integers.
    List,
    /// Lower-case letters.
    Text,
    /// Intervals of integers, both ends included.
    Spans,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Value {
    Integer(i64),
    List(Vec<i64>),
    Text(String),
    Spans(Vec<(i64, i64)>),
}

impl Kind {
    /// The kinds of inputs.
    pub(crate) const INPUTS: [Kind; 3] = [Kind::List, Kind::Text, Kind::Spans];

    /// What a value of it is called in a question.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Integer => "an integer",
            Kind::List => "a list of integers",
            Kind::Text => "a string of lower-case letters",
            Kind::Spans => "a list of intervals [lo, hi] with integers lo <= hi",
        }
    }

    /// The kind whose noun follows "takes" in a question.
    pub(crate) fn asked_in(question: &str) -> Option<Kind> {
        let is_taken = |kind: &Kind| question.contains(&format!("takes {}", kind.noun()));
        Kind::INPUTS.into_iter().find(is_taken)
    }

    /// A random input.
    pub(crate) fn draw(self, draw: &mut Draw) -> Value {
        let mut integers = |len: usize, from: i64, to: i64| -> Vec<i64> {
            (0..len).map(|_| draw.between(from..=to)).collect()
        };
        let len = integers(1, 0, MAX_ITEMS as i64)[0] as usize;
        match self {
            Kind::Integer => Value::Integer(integers(1, -MAX_INTEGER, MAX_INTEGER)[0]),
            // Half of the lists are dense, so that numbers repeat.
            Kind::List if integers(1, 0, 1)[0] == 0 => Value::List(integers(len, -9, 9)),
            Kind::List => Value::List(integers(len, -30, MAX_INTEGER)),
            Kind::Text => Value::Text((0..len).map(|_| char::from(draw.choose(LETTERS))).collect()),
            Kind::Spans => Value::Spans(
                (0..len.min(MAX_ITEMS - 2))
                    .map(|_| {
                        let lo = draw.between(-15..=40);
                        (lo, lo + draw.between(0..=9))
                    })
                    .collect(),
            ),
        }
    }

    /// Reads an input that somebody wrote; `None` where it is none or too large.
    pub(crate) fn parse(self, text: &str) -> Option<Value> {
        let is_small = |number: &i64| (-MAX_INTEGER..=MAX_INTEGER).contains(number);
        match self {
            Kind::Integer => None,
            Kind::List => {
                let list: Vec<i64> = serde_json::from_str(text).ok()?;
                let fits = list.len() <= MAX_ITEMS && list.iter().all(is_small);
                fits.then_some(Value::List(list))
            }
            Kind::Text => {
                let unquoted = ['"', '\'']
                    .iter()
                    .find_map(|&mark| text.strip_prefix(mark)?.strip_suffix(mark));
                let text = unquoted.unwrap_or(text);
                let is_plain = text.bytes().all(|byte| byte.is_ascii_lowercase());
                (is_plain && text.len() <= MAX_ITEMS).then(|| Value::Text(text.to_string()))
            }
            Kind::Spans => {
                let spans: Vec<(i64, i64)> = serde_json::from_str(text).ok()?;
                let is_span = |(lo, hi): &(i64, i64)| lo <= hi && is_small(lo) && is_small(hi);
                let fits = spans.len() <= MAX_ITEMS && spans.iter().all(is_span);
                fits.then_some(Value::Spans(spans))
            }
        }
    }
}

impl Value {
    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Value::Integer(_) => Kind::Integer,
            Value::List(_) => Kind::List,
            Value::Text(_) => Kind::Text,
            Value::Spans(_) => Kind::Spans,
        }
    }

    /// No item is in it; an integer is never empty.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Value::Integer(_) => false,
            Value::List(list) => list.is_empty(),
            Value::Text(text) => text.is_empty(),
            Value::Spans(spans) => spans.is_empty(),
        }
    }

    /// Its bytes on the wire: JSON without spaces.
    pub(crate) fn json(&self) -> String {
        self.written(",")
    }

    /// As people write it: JSON with a space after each comma.
    pub(crate) fn shown(&self) -> String {
        self.written(", ")
    }

    fn written(&self, comma: &str) -> String {
        let joined = |items: Vec<String>| format!("[{}]", items.join(comma));
        match self {
            Value::Integer(integer) => integer.to_string(),
            Value::List(list) => joined(list.iter().map(i64::to_string).collect()),
            Value::Text(text) => format!("\"{text}\""),
            Value::Spans(spans) => joined(
                spans
                    .iter()
                    .map(|(lo, hi)| format!("[{lo}{comma}{hi}]"))
                    .collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_as_they_are_shown() {
        for value in [
            Value::List(vec![3, -1]),
            Value::List(vec![]),
            Value::Text("abz".to_string()),
            Value::Text(String::new()),
            Value::Spans(vec![(-3, 4), (5, 5)]),
        ] {
            assert_eq!(value.kind().parse(&value.shown()), Some(value.clone()));
            assert_eq!(value.kind().parse(&value.json()), Some(value));
        }
        assert_eq!(
            Kind::Text.parse("abz"),
            Some(Value::Text("abz".to_string()))
        );
    }

    #[test]
    fn what_is_no_input_is_not_read() {
        for (kind, text) in [
            (Kind::List, "3, 1"),
            (Kind::List, "[1.0]"),
            (Kind::List, "[51]"),
            (Kind::List, "[0,0,0,0,0,0,0,0,0,0,0]"),
            (Kind::List, "[99999999999999999999]"),
            (Kind::Text, "aB"),
            (Kind::Text, "abcabcabcabc"),
            (Kind::Text, "\"ab"),
            (Kind::Spans, "[[2, 1]]"),
            (Kind::Spans, "[[1, 2, 3]]"),
            (Kind::Spans, "[1, 2]"),
        ] {
            assert_eq!(kind.parse(text), None, "{text}");
        }
    }
}
