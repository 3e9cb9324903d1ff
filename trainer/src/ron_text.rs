//! Where the keys of a RON text lie: a flat list of `(key path, byte range of the value)`.
//!
//! A path reads like `stages[3].grpo.group_size`: struct fields and enum variants are joined by
//! dots, list elements are counted from 0, a struct's own name and `Some` leave no trace. Error
//! messages use the list to name the key at a position, `--set` to find the value to replace.
//! Text that isn't RON yields the entries before the first stumble; judging it is `ron`'s work.

use std::ops::Range;

/// One value of a RON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// For example `sampling.temperature`; empty for the whole document.
    pub path: String,
    /// The value's bytes.
    pub value: Range<usize>,
}

/// Every value of `text`, outer ones before the inner ones.
pub(crate) fn entries(text: &str) -> Vec<Entry> {
    let mut scanner = Scanner {
        text,
        at: 0,
        entries: Vec::new(),
    };
    scanner.value("");
    scanner.entries
}

/// The path of the innermost value that covers byte `offset`; empty outside every key.
pub(crate) fn path_at(entries: &[Entry], offset: usize) -> &str {
    entries
        .iter()
        .rev()
        .find(|entry| entry.value.start <= offset && offset < entry.value.end)
        .map_or("", |entry| &entry.path)
}

/// The names one level below `parent`, in file order: `["grpo"]` below `stages[3]`.
pub(crate) fn children<'a>(entries: &'a [Entry], parent: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for entry in entries {
        let below = if parent.is_empty() {
            Some(entry.path.as_str())
        } else {
            entry
                .path
                .strip_prefix(parent)
                .map(|rest| rest.trim_start_matches('.'))
        };
        let Some(below) = below.filter(|rest| !rest.is_empty()) else {
            continue;
        };
        let end = below[1..].find(['.', '[']).map_or(below.len(), |i| i + 1);
        if end == below.len() && !names.contains(&below) {
            names.push(below);
        }
    }
    names
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    entries: Vec<Entry>,
}

impl Scanner<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            let skipped = rest.len() - trimmed.len();
            let comment = if trimmed.starts_with("//") || trimmed.starts_with("#!") {
                trimmed.find('\n').unwrap_or(trimmed.len())
            } else if trimmed.starts_with("/*") {
                trimmed.find("*/").map_or(trimmed.len(), |end| end + 2)
            } else {
                0
            };
            self.at += skipped + comment;
            if comment == 0 {
                return;
            }
        }
    }

    fn take(&mut self, c: char) -> bool {
        self.skip_blanks();
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn identifier(&mut self) -> Option<Range<usize>> {
        self.skip_blanks();
        let rest = self.rest();
        if !rest.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            return None;
        }
        let len = rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        let range = self.at..self.at + len;
        self.at += len;
        Some(range)
    }

    /// Reads one value and records it under `path`. Returns false at the first stumble.
    fn value(&mut self, path: &str) -> bool {
        self.skip_blanks();
        let start = self.at;
        let index = self.entries.len();
        self.entries.push(Entry {
            path: path.to_string(),
            value: start..self.text.len(),
        });
        let sound = self.value_body(path);
        if sound {
            self.entries[index].value.end = self.at;
        }
        sound
    }

    fn value_body(&mut self, path: &str) -> bool {
        match self.rest().chars().next() {
            Some('(') => self.parentheses(path, false),
            Some('[') => self.list(path),
            Some('"') => self.string(),
            Some('r') if self.raw_string() => true,
            Some(_) => match self.identifier() {
                Some(name) => self.after_name(path, name),
                None => self.number(),
            },
            None => false,
        }
    }

    /// What follows a bare name: nothing (`None`, `true`, a unit variant) or a parenthesis.
    fn after_name(&mut self, path: &str, name: Range<usize>) -> bool {
        let end = self.at;
        self.skip_blanks();
        if !self.rest().starts_with('(') {
            self.at = end;
            return true;
        }
        let name = &self.text[name];
        if name == "Some" || path.is_empty() {
            return self.parentheses(path, true);
        }
        let inner = format!("{path}.{name}");
        let index = self.entries.len();
        self.entries.push(Entry {
            path: inner.clone(),
            value: self.at..self.text.len(),
        });
        let sound = self.parentheses(&inner, true);
        if sound {
            self.entries[index].value.end = self.at;
        }
        sound
    }

    /// `(key: value, ...)` or `(value, ...)`. The lone value of a named tuple, as in
    /// `Path("model")`, takes the name's path instead of an index.
    fn parentheses(&mut self, path: &str, named: bool) -> bool {
        self.take('(');
        let mut index = 0;
        loop {
            if self.take(')') {
                return true;
            }
            let before = self.at;
            let key = self.identifier();
            let sound = match key {
                Some(key) if self.take(':') => {
                    let key = &self.text[key];
                    let inner = if path.is_empty() {
                        key.to_string()
                    } else {
                        format!("{path}.{key}")
                    };
                    self.value(&inner)
                }
                _ => {
                    self.at = before;
                    let inner = if named {
                        path.to_string()
                    } else {
                        format!("{path}[{index}]")
                    };
                    index += 1;
                    self.value(&inner)
                }
            };
            if !sound {
                return false;
            }
            if !self.take(',') {
                return self.take(')');
            }
        }
    }

    fn list(&mut self, path: &str) -> bool {
        self.take('[');
        let mut index = 0;
        loop {
            if self.take(']') {
                return true;
            }
            if !self.value(&format!("{path}[{index}]")) {
                return false;
            }
            index += 1;
            if !self.take(',') {
                return self.take(']');
            }
        }
    }

    fn string(&mut self) -> bool {
        let mut escaped = false;
        for (i, c) in self.rest().char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == '"' {
                self.at += i + 1;
                return true;
            }
        }
        false
    }

    /// `r"..."`, `r#"..."#` and so on; false, and nothing read, when the `r` starts a name.
    fn raw_string(&mut self) -> bool {
        let rest = &self.rest()[1..];
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let Some(body) = rest[hashes..].strip_prefix('"') else {
            return false;
        };
        let close = format!("\"{}", "#".repeat(hashes));
        match body.find(&close) {
            Some(end) => {
                self.at += 1 + hashes + 1 + end + close.len();
                true
            }
            None => false,
        }
    }

    /// A number, or anything else up to the next punctuation: the value parser will complain.
    fn number(&mut self) -> bool {
        let rest = self.rest();
        let len = rest
            .find(|c: char| c.is_whitespace() || ",()[]{}:\"".contains(c))
            .unwrap_or(rest.len());
        self.at += len;
        len > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r##"// A comment with (brackets, and "quotes".
RunConfig(
    name: "a \"b\", c", /* : */
    stages: [
        sft(steps: 1),
        grpo(group_size: 8, learning_rate: (peak: -1e-3, decay: cosine(floor: 0.1))),
    ],
    source: Path(r#"x "y""#),
    betas: (0.9, 0.95),
    delta: Some(0.5),
    gone: None,
)"##;

    fn value<'a>(entries: &[Entry], path: &str) -> &'a str {
        // The innermost: `Some(0.5)` and `0.5` share a path.
        let entry = entries.iter().rev().find(|e| e.path == path);
        &TEXT[entry.unwrap_or_else(|| panic!("{path}")).value.clone()]
    }

    #[test]
    fn every_value_is_found_under_its_path() {
        let found = entries(TEXT);
        assert_eq!(value(&found, "name"), r#""a \"b\", c""#);
        assert_eq!(value(&found, "stages[0].sft.steps"), "1");
        assert_eq!(value(&found, "stages[1].grpo.group_size"), "8");
        assert_eq!(value(&found, "stages[1].grpo.learning_rate.peak"), "-1e-3");
        assert_eq!(
            value(&found, "stages[1].grpo.learning_rate.decay"),
            "cosine(floor: 0.1)"
        );
        assert_eq!(
            value(&found, "stages[1].grpo.learning_rate.decay.cosine.floor"),
            "0.1"
        );
        assert_eq!(value(&found, "source.Path"), r##"r#"x "y""#"##);
        assert_eq!(value(&found, "betas[1]"), "0.95");
        assert_eq!(value(&found, "delta"), "0.5");
        assert_eq!(value(&found, "gone"), "None");
    }

    #[test]
    fn position_names_the_innermost_key() {
        let found = entries(TEXT);
        let offset = TEXT.find("8,").expect("in the text");
        assert_eq!(path_at(&found, offset), "stages[1].grpo.group_size");
    }

    #[test]
    fn broken_text_keeps_the_keys_before_the_stumble() {
        let found = entries("(a: 1, b: (c: 2, d: ");
        assert!(found.iter().any(|entry| entry.path == "b.c"));
    }

    #[test]
    fn children_are_one_level_deep() {
        let found = entries(TEXT);
        assert_eq!(children(&found, "stages"), ["[0]", "[1]"]);
        assert_eq!(children(&found, "stages[1]"), ["grpo"]);
        assert_eq!(
            children(&found, "stages[1].grpo"),
            ["group_size", "learning_rate"]
        );
        assert_eq!(children(&found, "")[..2], ["name", "stages"]);
    }
}
