//! RON file -> [`RunConfig`], with errors that point at the culprit, and back.
//!
//! Two RON extensions are always on: a value stands for `Some(value)`, and
//! `grpo(steps: 5)` for `grpo((steps: 5))`. `--set path=value` replaces a value in the fully
//! written-out configuration, whose text is then read again like any other.
//! What values mean together is judged by [`RunConfig::validate`].

use std::ops::Range;
use std::path::Path;

use ron::extensions::Extensions;

use crate::config::RunConfig;
pub use crate::config_error::{ConfigError, Diagnostic};
use crate::config_error::{Finding, explain, nearest};
use crate::ron_text::{self, Entry};

/// Reads the configuration at `path`, applies `overrides` (`path=value` each) and validates it.
///
/// # Errors
/// A file that can't be read, any wrong place in it or in an override, or contradictory values.
pub fn load(path: &Path, overrides: &[String]) -> Result<RunConfig, ConfigError> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let mut config = parse(&text, &origin)?;
    for argument in overrides {
        config = with_override(&config, argument)?;
    }
    match config.validate() {
        Ok(()) => Ok(config),
        Err(problems) => Err(ConfigError::Problems {
            problems: located(problems, &text, overrides),
            origin,
        }),
    }
}

/// Reads a configuration without validating it; `origin` names the text in errors.
///
/// # Errors
/// The first wrong place of the text.
pub fn parse(text: &str, origin: &str) -> Result<RunConfig, ConfigError> {
    options().from_str(text).map_err(|error| {
        let finding = explain(&error, text, |value| variants(text, value));
        ConfigError::Text(Box::new(finding.in_file(origin, text)))
    })
}

/// The configuration written out in full, every default included; [`parse`] gives it back equal.
pub fn to_ron(config: &RunConfig) -> String {
    let mut text = options()
        .to_string_pretty(config, ron::ser::PrettyConfig::default())
        .expect("a configuration holds no type that RON lacks");
    text.push('\n');
    text
}

/// Replaces one value: `stages[3].grpo.steps=5`. Text may come without quotes.
///
/// # Errors
/// An unknown path or a value of another type; the error quotes the argument.
pub fn with_override(config: &RunConfig, argument: &str) -> Result<RunConfig, ConfigError> {
    let wrong = |finding: Finding| ConfigError::Text(Box::new(finding.in_argument(argument)));
    let Some(equals) = argument.find('=') else {
        return Err(wrong(Finding {
            at: 0..argument.len(),
            message: format!("`{argument}` is not of the form path=value"),
            nearest: None,
            valid: Vec::new(),
        }));
    };
    let path = argument[..equals].trim();
    let value = argument[equals + 1..].trim();
    let text = to_ron(config);
    let entries = ron_text::entries(&text);
    // The last entry of a path is the innermost: the text inside `Path("...")`.
    let place = entries
        .iter()
        .rev()
        .find(|entry| entry.path == path && !path.is_empty())
        .ok_or_else(|| wrong(unknown_path(&entries, &text, path)))?
        .value
        .clone();

    let value_start = argument.len() - argument[equals + 1..].trim_start().len();
    let value_range = value_start..value_start + value.len();
    let quoted = format!("{value:?}");
    if !is_one_value(value) {
        return splice(&text, place, &quoted)
            .map_err(|rejected| wrong(in_value(&rejected, value_range, None)));
    }
    splice(&text, place.clone(), value).or_else(|rejected| {
        if rejected.error.code == ron::Error::ExpectedString
            && let Ok(config) = splice(&text, place.clone(), &quoted)
        {
            return Ok(config);
        }
        Err(wrong(in_value(&rejected, value_range, Some(place.start))))
    })
}

fn options() -> ron::Options {
    ron::Options::default()
        .with_default_extension(Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES)
}

/// A text with a value put in, and why it can't be read.
struct Rejected {
    error: ron::error::SpannedError,
    text: String,
}

/// Reads `text` with the bytes `place` replaced by `value`.
fn splice(text: &str, place: Range<usize>, value: &str) -> Result<RunConfig, Box<Rejected>> {
    let mut edited = text.to_string();
    edited.replace_range(place, value);
    options().from_str(&edited).map_err(|error| {
        Box::new(Rejected {
            error,
            text: edited,
        })
    })
}

/// Whether `value` is one whole RON value, so that it can't spill over its place.
fn is_one_value(value: &str) -> bool {
    !value.is_empty()
        && ron_text::entries(&format!("({value})"))
            .first()
            .is_some_and(|document| document.value.end == value.len() + 2)
        && ron_text::entries(value)
            .first()
            .is_some_and(|whole| whole.value == (0..value.len()))
}

/// Explains an error in a spliced text, placed in the argument: at the culprit when the value
/// went in unchanged at `spliced_at`, else at the whole value.
fn in_value(rejected: &Rejected, value: Range<usize>, spliced_at: Option<usize>) -> Finding {
    let Rejected { error, text } = rejected;
    let mut finding = explain(error, text, |place| variants(text, place));
    let moved = spliced_at.and_then(|place| {
        let start = finding.at.start.checked_sub(place)?;
        let end = finding.at.end.checked_sub(place)?.max(start);
        (end <= value.len()).then(|| value.start + start..value.start + end)
    });
    finding.at = moved.unwrap_or(value);
    finding
}

fn unknown_path(entries: &[Entry], text: &str, path: &str) -> Finding {
    // The longest known beginning of the path, and the first unknown name after it.
    let cuts = path
        .char_indices()
        .filter(|(_, c)| ".[".contains(*c))
        .map(|(i, _)| i)
        .rev()
        .chain([0]);
    for cut in cuts {
        let known = &path[..cut];
        let Some(entry) = entries.iter().rev().find(|entry| entry.path == known) else {
            continue;
        };
        let rest = path[cut..].trim_start_matches('.');
        let end = rest.char_indices().skip(1).find(|(_, c)| ".[".contains(*c));
        let name = &rest[..end.map_or(rest.len(), |(i, _)| i)];
        let start = path.len() - rest.len();
        let at = start..start + name.len();
        let valid = ron_text::children(entries, known);
        let parent = if known.is_empty() { "" } else { " in " };
        let quoted = if known.is_empty() {
            String::new()
        } else {
            format!("`{known}`")
        };
        let message = if valid.is_empty() {
            let value = &text[entry.value.clone()];
            format!("unknown key `{name}`: `{known}` is {value}; set it as a whole, {known}=...")
        } else {
            format!("unknown key `{name}`{parent}{quoted}")
        };
        return Finding {
            at,
            message,
            nearest: nearest(name, &valid),
            valid: valid.iter().map(|name| name.to_string()).collect(),
        };
    }
    unreachable!("the empty path is the document itself");
}

/// Variant names that may stand in place of the bytes `value`: what the parser says when it meets
/// a name that nothing has.
fn variants(text: &str, value: Range<usize>) -> Vec<String> {
    let mut probe = text.to_string();
    probe.replace_range(value, "__");
    match options().from_str::<RunConfig>(&probe) {
        Err(ron::error::SpannedError {
            code: ron::Error::NoSuchEnumVariant { expected, .. },
            ..
        }) => expected.iter().map(|name| name.to_string()).collect(),
        _ => Vec::new(),
    }
}

/// Puts in front of each problem where its value was given: a line of the file or a `--set`.
fn located(problems: Vec<String>, text: &str, overrides: &[String]) -> Vec<String> {
    let entries = ron_text::entries(text);
    let locate = |problem: String| {
        let path = problem.split([' ', ':']).next().unwrap_or_default();
        let given_by = overrides.iter().rev().find(|argument| {
            let target = argument.split('=').next().unwrap_or_default().trim();
            path.strip_prefix(target)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        if let Some(argument) = given_by {
            return format!("--set {argument}: {problem}");
        }
        match entries.iter().find(|entry| entry.path == path) {
            Some(entry) => {
                let line = text[..entry.value.start].matches('\n').count() + 1;
                format!("line {line}: {problem}")
            }
            None => problem,
        }
    };
    problems.into_iter().map(locate).collect()
}

#[cfg(test)]
mod tests;
