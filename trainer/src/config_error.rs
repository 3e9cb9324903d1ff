//! What can be wrong with a configuration, said so that it can be mended.
//!
//! A [`Diagnostic`] points at one place of a file (or of a `--set` argument) and prints
//! `file:line:column: message`, the line with a caret under the culprit, the nearest valid name
//! and all valid names. [`ConfigError::Problems`] lists contradictions between sound values.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use ron::error::{Error as Ron, SpannedError};

use crate::ron_text::{self, Entry};

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read config {path}")]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// One place of the text is wrong: a misspelt key, a value of another type, broken syntax.
    #[error("{0}")]
    Text(Box<Diagnostic>),
    /// Every value reads well, but some contradict each other or make no sense.
    #[error("{origin}: {}", counted(problems))]
    Problems {
        /// File, or `--set`.
        origin: String,
        /// One sentence each, starting with the key path.
        problems: Vec<String>,
    },
    /// The configuration of a run was changed where a resumed run must keep it.
    #[error(
        "a resumed run must continue with the configuration it began with: {}",
        counted(changed)
    )]
    NotResumable {
        /// One sentence per changed key.
        changed: Vec<String>,
    },
    /// The `config.ron` of a run is not the one that its checkpoints were made with.
    #[error("{path} was edited since the run began, where a resumed run must keep it")]
    Edited {
        /// The run's configuration.
        path: PathBuf,
    },
}

fn counted(lines: &[String]) -> String {
    let noun = if lines.len() == 1 {
        "problem"
    } else {
        "problems"
    };
    let mut text = format!("{} {noun}", lines.len());
    for line in lines {
        text.push_str("\n  - ");
        text.push_str(line);
    }
    text
}

/// One wrong place in a configuration text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// `configs/a.ron:12:9`, or `--set`.
    pub origin: String,
    /// Line number shown beside the line; empty for a `--set` argument.
    pub line_label: String,
    /// The offending line.
    pub line: String,
    /// Columns of the culprit within `line`, counted in characters from 0.
    pub caret: Range<usize>,
    /// What is wrong, naming the key.
    pub message: String,
    /// Valid name closest to the one given.
    pub nearest: Option<String>,
    /// Every valid name.
    pub valid: Vec<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = " ".repeat(self.line_label.len());
        writeln!(f, "{}: {}", self.origin, self.message)?;
        writeln!(f, " {gutter} |")?;
        writeln!(f, " {} | {}", self.line_label, self.line)?;
        let indent = " ".repeat(self.caret.start);
        let marks = "^".repeat(self.caret.len().max(1));
        write!(f, " {gutter} | {indent}{marks}")?;
        if let Some(nearest) = &self.nearest {
            write!(f, " did you mean `{nearest}`?")?;
        }
        if !self.valid.is_empty() {
            write!(f, "\n {gutter} = valid here: {}", self.valid.join(", "))?;
        }
        Ok(())
    }
}

/// The valid name closest to `found`, unless nothing comes close.
pub(crate) fn nearest(found: &str, valid: &[&str]) -> Option<String> {
    valid
        .iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .filter(|(distance, name)| *distance <= found.len().max(name.len()) / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.to_string())
}

/// What is wrong, and at which bytes of the text.
#[derive(Debug)]
pub(crate) struct Finding {
    pub at: Range<usize>,
    pub message: String,
    pub nearest: Option<String>,
    pub valid: Vec<String>,
}

impl Finding {
    /// Places the finding in file `origin` with content `text`.
    pub fn in_file(self, origin: &str, text: &str) -> Diagnostic {
        let start = self.at.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let number = text[..line_start].matches('\n').count() + 1;
        let from = text[line_start..start].chars().count();
        let end = self.at.end.clamp(start, line_start + line.len());
        let width = text[start..end].chars().count();
        Diagnostic {
            origin: format!("{origin}:{number}:{}", from + 1),
            line_label: number.to_string(),
            line: line.to_string(),
            caret: from..from + width,
            message: self.message,
            nearest: self.nearest,
            valid: self.valid,
        }
    }

    /// Places the finding in a `--set` argument; `at` counts its bytes.
    pub fn in_argument(self, argument: &str) -> Diagnostic {
        let chars = |bytes: usize| argument[..bytes.min(argument.len())].chars().count();
        Diagnostic {
            origin: "--set".to_string(),
            line_label: String::new(),
            line: argument.to_string(),
            caret: chars(self.at.start)..chars(self.at.end),
            message: self.message,
            nearest: self.nearest,
            valid: self.valid,
        }
    }
}

/// Byte offset of a RON position (1-based line and column, columns in characters).
pub(crate) fn byte_offset(text: &str, position: ron::error::Position) -> usize {
    let line_start: usize = text
        .split_inclusive('\n')
        .take(position.line.saturating_sub(1))
        .map(str::len)
        .sum();
    let line = &text[line_start..];
    line_start
        + line
            .char_indices()
            .nth(position.col.saturating_sub(1))
            .map_or(line.len(), |(i, _)| i)
}

/// Puts a RON error into words. `variants` asks for the variant names that are valid in place of
/// the value at some bytes.
pub(crate) fn explain(
    error: &SpannedError,
    text: &str,
    variants: impl Fn(Range<usize>) -> Vec<String>,
) -> Finding {
    let entries = ron_text::entries(text);
    let span_start = byte_offset(text, error.span.start);
    let end = byte_offset(text, error.span.end).max(span_start);
    // Spans begin where the parser looked for a value, blanks included.
    let blanks = text[span_start..end].len() - text[span_start..end].trim_start().len();
    let start = span_start + blanks;
    let at = start..end;
    let path = ron_text::path_at(&entries, start);
    let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    let plain = |at: Range<usize>, message: String| Finding {
        at,
        message,
        nearest: None,
        valid: Vec::new(),
    };
    match &error.code {
        Ron::NoSuchStructField {
            expected, found, ..
        } => Finding {
            at,
            message: format!("unknown key `{found}`{}", within(path)),
            nearest: nearest(found, expected),
            valid: owned(expected),
        },
        Ron::NoSuchEnumVariant {
            expected, found, ..
        } => Finding {
            at,
            message: format!("`{path}` can't be `{found}`"),
            nearest: nearest(found, expected),
            valid: owned(expected),
        },
        Ron::MissingStructField { field, .. } => {
            let container = entries.iter().find(|entry| entry.path == path);
            plain(
                container.map_or(at, |entry| entry.value.start..entry.value.start + 1),
                format!("key `{field}` is missing{}", within(path)),
            )
        }
        Ron::DuplicateStructField { field, .. } => {
            plain(at, format!("key `{field}` is given twice{}", within(path)))
        }
        Ron::Eof => {
            let unclosed = entries.iter().rev().find(|entry| {
                entry.value.end == text.len() && text[entry.value.start..].starts_with(['(', '['])
            });
            plain(
                unclosed.map_or(at, |entry| entry.value.start..entry.value.start + 1),
                "the text ends before this bracket is closed".to_string(),
            )
        }
        Ron::ExpectedStringEnd => plain(at, "the closing quote is missing".to_string()),
        code => match wrong_value(code, &entries, text, start) {
            Some((value, problem)) => {
                let valid = match code {
                    Ron::ExpectedIdentifier => variants(value.clone()),
                    _ => Vec::new(),
                };
                Finding {
                    at: value,
                    message: format!("`{path}` {problem}"),
                    nearest: None,
                    valid,
                }
            }
            None => plain(
                at,
                match code {
                    Ron::ExpectedComma => "a comma is missing before this".to_string(),
                    Ron::ExpectedIdentifier => {
                        "unexpected here; a bracket before it may not be closed".to_string()
                    }
                    other => format!("{other}{}", within(path)),
                },
            ),
        },
    }
}

fn within(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(" in `{path}`")
    }
}

/// The value at `start` and what it must be, when the error is that it has another type.
fn wrong_value(
    code: &Ron,
    entries: &[Entry],
    text: &str,
    start: usize,
) -> Option<(Range<usize>, String)> {
    let entry = entries
        .iter()
        .rev()
        .find(|entry| !entry.path.is_empty() && entry.value.contains(&start))?;
    let value = text[entry.value.clone()].trim_end();
    let at = entry.value.start..entry.value.start + value.len();
    // Past the first character of a number: the integer parser stopped at `.` or `e`.
    let stopped_inside =
        start > at.start && value.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let expected = match code {
        Ron::ExpectedInteger | Ron::InvalidIntegerDigit { .. } => "must be a whole number",
        Ron::ExpectedComma | Ron::ExpectedStructLikeEnd | Ron::ExpectedArrayEnd
            if stopped_inside =>
        {
            "must be a whole number"
        }
        Ron::IntegerOutOfBounds if value.starts_with('-') => "must not be negative",
        Ron::IntegerOutOfBounds => "is too large",
        Ron::ExpectedFloat => "must be a number",
        Ron::ExpectedBoolean => "must be true or false",
        Ron::ExpectedString => "must be text in double quotes",
        Ron::ExpectedIdentifier if start == at.start => "must be one of the names below, unquoted",
        Ron::ExpectedArray => "must be a list in square brackets",
        Ron::ExpectedStructLike | Ron::ExpectedNamedStructLike(_) => {
            "must be written in parentheses, (key: value, ...)"
        }
        _ => return None,
    };
    // Long values speak for themselves in the quoted line.
    let found = match value.len() {
        0..=40 if !value.contains('\n') => format!(", found `{value}`"),
        _ => String::new(),
    };
    Some((at, format!("{expected}{found}")))
}
