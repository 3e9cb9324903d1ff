//! Completions of DeepSeek-V3.2 back to messages, strictly: what the encoder would not have written is
//! an error that says where.
//!
//! ```text
//! completion = [reasoning </think>] content (EOS | calls [EOS])        reasoning in thinking mode
//! calls      = \n\n<｜DSML｜function_calls>\n  invoke+  </｜DSML｜function_calls>
//! invoke     = <｜DSML｜invoke name="NAME">\n  (parameter* | \n)  </｜DSML｜invoke>\n
//! parameter  = <｜DSML｜parameter name="KEY" string="true|false">VALUE</｜DSML｜parameter>\n
//! ```
//!
//! The grammar is that of the release's own parser. Beyond it are refused: a value that says it is JSON and
//! is not, a call block without calls or without its end, an end token or tag inside a value, a role token
//! inside a text. Nothing is repaired.

use super::Thinking;
use super::deepseek_v32::{DSML, END, END_THINK, MARKERS, is_tool_name};
use super::json::{Json, quoted};
use super::message::{AssistantMessage, ToolCall};

/// A completion is not of the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("after {characters} characters ({bytes} bytes) of the completion: {problem}")]
pub struct CompletionError {
    /// Characters before the place.
    pub characters: usize,
    /// Bytes before the place.
    pub bytes: usize,
    /// What was expected there and what is there.
    pub problem: String,
}

/// The message that `text`, sampled after a prompt of the same mode, says; special tokens are text.
///
/// # Errors
/// The first place where the text leaves the format.
pub fn parse(text: &str, thinking: Thinking) -> Result<AssistantMessage, CompletionError> {
    let mut parser = Parser { text, at: 0 };
    parser
        .completion(thinking)
        .map_err(|problem| CompletionError {
            characters: text[..parser.at].chars().count(),
            bytes: parser.at,
            problem,
        })
}

/// Reads left to right; `at` is the byte where the next thing starts, or where an error is.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn completion(&mut self, thinking: Thinking) -> Result<AssistantMessage, String> {
        let mut message = AssistantMessage::default();
        if thinking == Thinking::On {
            let (reasoning, token) = self.until(&MARKERS);
            if token != Some(END_THINK) {
                return Err(self.misplaced(token, "the reasoning", &[END_THINK]));
            }
            message.reasoning_content = reasoning.to_string();
            self.at += END_THINK.len();
        }
        let calls_start = format!("\n\n<{DSML}function_calls");
        let start = self.at;
        let (content, token) = self.until(&MARKERS);
        // The DSML token is the fourth character of the tag that begins the calls.
        let before_tag = content.strip_suffix("\n\n<");
        match (token, before_tag) {
            (Some(END), _) => {
                message.content = content.to_string();
                self.at += END.len();
            }
            (Some(DSML), Some(content))
                if self
                    .rest_from(start + content.len())
                    .starts_with(&calls_start) =>
            {
                message.content = content.to_string();
                self.at = start + content.len() + calls_start.len();
                message.tool_calls = self.calls()?;
                self.accept(END);
            }
            _ => {
                let expected = [END, calls_start.as_str()];
                let mut problem = self.misplaced(token, "the content", &expected);
                if token == Some(END_THINK) && thinking == Thinking::Off {
                    problem += "; was it sampled in thinking mode?";
                }
                return Err(problem);
            }
        }
        match self.rest().is_empty() {
            true => Ok(message),
            false => Err(self.expected("the end of the completion")),
        }
    }

    /// From behind the name of the opening tag to behind the closing one.
    fn calls(&mut self) -> Result<Vec<ToolCall>, String> {
        let (open, close) = (format!("<{DSML}invoke"), format!("</{DSML}function_calls>"));
        self.expect(">\n")?;
        let mut calls = Vec::new();
        loop {
            if self.accept(&open) {
                calls.push(self.invoke()?);
            } else if !calls.is_empty() && self.accept(&close) {
                return Ok(calls);
            } else if calls.is_empty() {
                return Err(self.expected(&format!("{open:?}")));
            } else {
                return Err(self.expected(&format!("{open:?} or {close:?}")));
            }
        }
    }

    /// From behind `<invoke` to behind the line that closes it.
    fn invoke(&mut self) -> Result<ToolCall, String> {
        let (open, close) = (format!("<{DSML}parameter"), format!("</{DSML}invoke"));
        let blanks = self.rest().len() - self.rest().trim_start().len();
        self.at += blanks;
        self.expect("name=\"")?;
        let name = self.rest().split('"').next().unwrap_or_default();
        if !is_tool_name(name) {
            return Err(self.expected("the name of a tool and '\"'"));
        }
        let name = name.to_string();
        self.at += name.len();
        self.expect("\">\n")?;
        // A call without arguments has an empty line between its tags.
        self.accept("\n");
        let mut arguments: Vec<(String, String)> = Vec::new();
        while self.accept(&open) {
            let start = self.at;
            let (key, value) = self.parameter()?;
            if arguments.iter().any(|(known, _)| *known == key) {
                self.at = start;
                return Err(format!("the parameter {key:?} of {name} a second time"));
            }
            arguments.push((key, value));
        }
        if !self.accept(&close) {
            return Err(self.expected(&format!("{open:?} or {close:?}")));
        }
        self.expect(">\n")?;
        let arguments: Vec<String> = arguments
            .into_iter()
            .map(|(key, value)| format!("{}: {value}", quoted(&key)))
            .collect();
        Ok(ToolCall {
            id: None,
            name,
            arguments: format!("{{{}}}", arguments.join(", ")),
        })
    }

    /// From behind `<parameter` to behind the line that closes it: the key, and the value as JSON.
    fn parameter(&mut self) -> Result<(String, String), String> {
        let close = format!("</{DSML}parameter");
        self.expect(" name=\"")?;
        let start = self.at;
        let (body, token) = self.until(&[END, DSML]);
        let body = match (token, body.strip_suffix("</")) {
            (Some(DSML), Some(body)) if self.rest_from(start + body.len()).starts_with(&close) => {
                body
            }
            _ => return Err(self.misplaced(token, "a parameter", &[&close])),
        };
        let attributes = [
            ("\" string=\"true\">", true),
            ("\" string=\"false\">", false),
        ];
        let first = attributes
            .iter()
            .filter_map(|(text, is_string)| Some((body.find(text)?, text.len(), *is_string)))
            .min();
        let Some((key_len, attribute_len, is_string)) = first else {
            self.at = start;
            return Err(
                self.expected("a key, then '\" string=\"true\">' or '\" string=\"false\">'")
            );
        };
        let (key, value) = (&body[..key_len], &body[key_len + attribute_len..]);
        let value = if is_string {
            quoted(value)
        } else if let Err(error) = Json::parse(value) {
            self.at = start + key_len + attribute_len;
            return Err(format!(
                "the parameter {key:?} has string=\"false\", but its value is not JSON: {error}"
            ));
        } else {
            value.to_string()
        };
        self.at = start + body.len() + close.len();
        self.expect(">\n")?;
        Ok((key.to_string(), value))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn rest_from(&self, at: usize) -> &'a str {
        &self.text[at..]
    }

    /// Goes to the first of `tokens`, or to the end: the text before it, and which it is.
    fn until(&mut self, tokens: &[&'static str]) -> (&'a str, Option<&'static str>) {
        let rest = self.rest();
        let places = tokens
            .iter()
            .filter_map(|&token| Some((rest.find(token)?, token)));
        let (len, token) = match places.min() {
            Some((len, token)) => (len, Some(token)),
            None => (rest.len(), None),
        };
        self.at += len;
        (&rest[..len], token)
    }

    fn accept(&mut self, token: &str) -> bool {
        let is_there = self.rest().starts_with(token);
        if is_there {
            self.at += token.len();
        }
        is_there
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        match self.accept(token) {
            true => Ok(()),
            false => Err(self.expected(&format!("{token:?}"))),
        }
    }

    /// The text does not go on as it must.
    fn expected(&self, what: &str) -> String {
        if self.rest().is_empty() {
            return format!("expected {what}, but the completion ends; was it cut short?");
        }
        let found: String = self.rest().chars().take(EXCERPT).collect();
        format!("expected {what}, found {found:?}")
    }

    /// `part` does not end as it must, but with `token` or with the completion.
    fn misplaced(&self, token: Option<&str>, part: &str, expected: &[&str]) -> String {
        let expected: Vec<String> = expected.iter().map(|token| format!("{token:?}")).collect();
        let expected = expected.join(" or ");
        match token {
            Some(token) => format!("{token:?} inside {part}, which only {expected} may end"),
            None => format!(
                "expected {expected} to end {part}, but the completion ends; was it cut short, or its \
                 end token removed?"
            ),
        }
    }
}

/// Characters that an error shows of what it found.
const EXCERPT: usize = 24;

#[cfg(test)]
mod tests;
