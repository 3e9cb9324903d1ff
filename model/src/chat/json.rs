//! JSON as Python's `json` module reads and writes it, which chat formats are defined by.
//!
//! Kept: the order of keys, integers of any size, and the difference between `1` and `1.0`. Written:
//! separators `", "` and `": "`, no escapes beyond `"`, `\` and control characters (the module's
//! `ensure_ascii=False`), floats as Python's `repr`. Like Python, `NaN` and `Infinity` are numbers and
//! of two equal keys the last value wins at the first one's place. Unlike Python, half a surrogate
//! pair is an error: it has no UTF-8. Left out: anything but text in memory.

mod reader;

use std::fmt;

use self::reader::Reader;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of any size, in its shortest decimal form.
    Integer(String),
    /// A number written with a point or an exponent, or none at all (NaN, the infinities).
    Float(f64),
    /// A string.
    Text(String),
    /// `[...]`.
    List(Vec<Json>),
    /// `{...}`, keys distinct and in the order of the text.
    Object(Vec<(String, Json)>),
}

/// A text is not JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct JsonError {
    /// Line, from 1.
    pub line: usize,
    /// Character of the line, from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: String,
}

impl Json {
    /// Reads one value and nothing else.
    ///
    /// # Errors
    /// The first place where `text` is not JSON.
    pub fn parse(text: &str) -> Result<Json, JsonError> {
        Reader::new(text).document()
    }

    /// The value of `key`, in an object that has it.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// What Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes.
    pub fn indented(&self, indent: usize) -> String {
        let mut out = String::new();
        self.write_indented(indent, 0, &mut out);
        out
    }

    fn write_indented(&self, indent: usize, depth: usize, out: &mut String) {
        let (open, close, entries): (_, _, Vec<(String, &Json)>) = match self {
            Json::List(items) if !items.is_empty() => {
                let items = items.iter().map(|item| (String::new(), item));
                ('[', ']', items.collect())
            }
            Json::Object(entries) if !entries.is_empty() => {
                let keyed = entries.iter().map(|(k, v)| (quoted(k) + ": ", v));
                ('{', '}', keyed.collect())
            }
            plain => return out.push_str(&plain.to_string()),
        };
        let line = |depth: usize| "\n".to_string() + &" ".repeat(indent * depth);
        out.push(open);
        for (i, (key, value)) in entries.into_iter().enumerate() {
            out.push_str(if i == 0 { "" } else { "," });
            out.push_str(&line(depth + 1));
            out.push_str(&key);
            value.write_indented(indent, depth + 1, out);
        }
        out.push_str(&line(depth));
        out.push(close);
    }

    /// What kind of value this is, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "true or false",
            Json::Integer(_) | Json::Float(_) => "a number",
            Json::Text(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// Python's falsehood: null, false, zero, and what is empty.
    pub fn is_falsy(&self) -> bool {
        match self {
            Json::Null => true,
            Json::Bool(value) => !value,
            Json::Integer(digits) => digits == "0",
            Json::Float(value) => *value == 0.0,
            Json::Text(text) => text.is_empty(),
            Json::List(items) => items.is_empty(),
            Json::Object(entries) => entries.is_empty(),
        }
    }
}

impl fmt::Display for Json {
    /// What Python's `json.dumps(value, ensure_ascii=False)` writes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Integer(digits) => f.write_str(digits),
            Json::Float(value) => f.write_str(&float(*value)),
            Json::Text(text) => f.write_str(&quoted(text)),
            Json::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Json::Object(entries) => {
                f.write_str("{")?;
                for (i, (key, value)) in entries.iter().enumerate() {
                    let separator = if i == 0 { "" } else { ", " };
                    write!(f, "{separator}{}: {value}", quoted(key))?;
                }
                f.write_str("}")
            }
        }
    }
}

/// `text` as a JSON string with its quotes.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Python's `repr` of a float: the shortest digits that read back the same; an exponent of ten below
/// -4 or from 16 on is written as such, with two digits at least.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    // Rust's digits are the shortest too: -1.25e-7.
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a small integer");
    if (-4..16).contains(&exponent) {
        // Without an exponent Rust writes the same digits, but no point after a whole number.
        let plain = format!("{value}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests;
