//! The reading half of [`Json`]: a recursive descent over the grammar of JSON, extended as Python's is
//! (`NaN`, `Infinity`, `-Infinity`). Errors say what was expected and found; line and column follow
//! from the place.

use super::{Json, JsonError};

/// Values nested deeper are refused.
const MAX_DEPTH: usize = 128;

/// Reads left to right; `at` is the byte where the next thing starts, or where an error is.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Reader<'a> {
        Reader { text, at: 0 }
    }

    /// One value and nothing else.
    pub(super) fn document(mut self) -> Result<Json, JsonError> {
        self.only_value().map_err(|problem| self.error(problem))
    }

    fn error(&self, problem: String) -> JsonError {
        let before = &self.text[..self.at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        JsonError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            problem,
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// What stands at the current place, for error messages.
    fn found(&self) -> String {
        match self.peek() {
            None => "the text ends".to_string(),
            Some(c) => format!("found {c:?}"),
        }
    }

    fn skip_blanks(&mut self) {
        let blanks = |c| matches!(c, ' ' | '\t' | '\n' | '\r');
        self.at += self.rest().len() - self.rest().trim_start_matches(blanks).len();
    }

    fn accept(&mut self, token: &str) -> bool {
        let is_there = self.rest().starts_with(token);
        if is_there {
            self.at += token.len();
        }
        is_there
    }

    fn only_value(&mut self) -> Result<Json, String> {
        if self.text.starts_with('\u{feff}') {
            return Err("a byte order mark; save the text as plain UTF-8".to_string());
        }
        let value = self.value(0)?;
        self.skip_blanks();
        match self.rest().is_empty() {
            true => Ok(value),
            false => Err(format!("expected nothing more, {}", self.found())),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested more than {MAX_DEPTH} deep"));
        }
        self.skip_blanks();
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
            ("-Infinity", Json::Float(f64::NEG_INFINITY)),
        ] {
            if self.accept(word) {
                return Ok(value);
            }
        }
        match self.peek() {
            Some('"') => Ok(Json::Text(self.string()?)),
            Some('[') => self.list(depth),
            Some('{') => self.object(depth),
            Some('-' | '0'..='9') => self.number(),
            _ => Err(format!("expected a value, {}", self.found())),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json, String> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_blanks();
        if self.accept("]") {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_blanks();
            if self.accept("]") {
                return Ok(Json::List(items));
            }
            if !self.accept(",") {
                return Err(format!("expected ',' or ']', {}", self.found()));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        self.at += 1;
        let mut entries: Vec<(String, Json)> = Vec::new();
        self.skip_blanks();
        if self.accept("}") {
            return Ok(Json::Object(entries));
        }
        loop {
            self.skip_blanks();
            if self.peek() != Some('"') {
                return Err(format!("expected a key in double quotes, {}", self.found()));
            }
            let key = self.string()?;
            self.skip_blanks();
            if !self.accept(":") {
                return Err(format!("expected ':', {}", self.found()));
            }
            let value = self.value(depth + 1)?;
            match entries.iter_mut().find(|(known, _)| *known == key) {
                Some((_, old)) => *old = value,
                None => entries.push((key, value)),
            }
            self.skip_blanks();
            if self.accept("}") {
                return Ok(Json::Object(entries));
            }
            if !self.accept(",") {
                return Err(format!("expected ',' or '}}', {}", self.found()));
            }
        }
    }

    /// -?(0|[1-9][0-9]*)(.[0-9]+)?([eE][+-]?[0-9]+)?
    fn number(&mut self) -> Result<Json, String> {
        let digits =
            |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let text = self.rest();
        let sign = usize::from(text.starts_with('-'));
        let whole = match text[sign..].starts_with('0') {
            true => 1,
            false => digits(&text[sign..]),
        };
        if whole == 0 {
            self.at += sign;
            return Err(format!("expected a digit, {}", self.found()));
        }
        let mut len = sign + whole;
        if text[len..].starts_with('.') && digits(&text[len + 1..]) > 0 {
            len += 1 + digits(&text[len + 1..]);
        }
        if text[len..].starts_with(['e', 'E']) {
            let signed = usize::from(text[len + 1..].starts_with(['+', '-']));
            let exponent = digits(&text[len + 1 + signed..]);
            if exponent > 0 {
                len += 1 + signed + exponent;
            }
        }
        let number = &text[..len];
        let value = match len == sign + whole {
            // Python has no negative integer zero.
            true if number == "-0" => Json::Integer("0".to_string()),
            true => Json::Integer(number.to_string()),
            false => Json::Float(number.parse().expect("the grammar is a part of Rust's")),
        };
        self.at += len;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, String> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                self.at = start;
                return Err("a string without its closing '\"'".to_string());
            };
            match c {
                '"' => {
                    self.at += 1;
                    return Ok(out);
                }
                '\\' => out.push(self.escape()?),
                c if c < ' ' => {
                    let code = c as u32;
                    return Err(format!(
                        "a control character in a string: write it as \\u{code:04x}"
                    ));
                }
                c => {
                    self.at += c.len_utf8();
                    out.push(c);
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let code = self.rest().chars().nth(1);
        let c = match code {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode_escape(),
            _ => return Err("a backslash that starts no escape; write it twice".to_string()),
        };
        self.at += 2;
        Ok(c)
    }

    /// `\uXXXX`, or two of them that are a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char, String> {
        let unit = |text: &str| {
            let digits = text.strip_prefix("\\u")?.get(..4)?;
            let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u32::from_str_radix(digits, 16).ok())?
        };
        let Some(first) = unit(self.rest()) else {
            return Err("\\u needs four hexadecimal digits".to_string());
        };
        let second = unit(&self.rest()[6..]).filter(|low| (0xdc00..0xe000).contains(low));
        let (code, len) = match second {
            Some(low) if (0xd800..0xdc00).contains(&first) => {
                (0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00), 12)
            }
            _ => (first, 6),
        };
        let c = char::from_u32(code)
            .ok_or_else(|| format!("\\u{first:04x} is half a surrogate pair, no character"))?;
        self.at += len;
        Ok(c)
    }
}
