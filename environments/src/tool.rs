//! Tools: what the policy may call, its calls, and what comes back.
//!
//! A bad call is the policy's own fault, and it is told so: an unknown name, arguments that are no JSON object or that
//! the tool's schema refuses come back as a result with `is_error`. Only a [`Fault`](crate::Fault) of the service makes
//! a sample invalid.

use serde_json::{Map, Value};

/// A tool as the policy is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolDef {
    /// Name: letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the policy.
    pub description: String,
    /// JSON schema (draft 2020-12) of its arguments, an object.
    pub parameters: Value,
}

/// A call that the policy wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Names the call within the episode.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// Arguments: a JSON object as text.
    pub arguments: String,
}

/// What a session answers to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolOutput {
    /// Text for the policy.
    pub content: String,
    /// It says what was wrong with the call.
    pub is_error: bool,
}

/// A message of role `tool`: the answer to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolMessage {
    /// The call's id.
    pub call_id: String,
    /// Text, at most as long as the episode's limit.
    pub content: String,
    /// It says what was wrong with the call.
    pub is_error: bool,
    /// Its middle was cut out.
    pub is_truncated: bool,
}

impl ToolOutput {
    /// A result.
    pub fn ok(content: impl Into<String>) -> ToolOutput {
        ToolOutput {
            content: content.into(),
            is_error: false,
        }
    }

    /// What was wrong with the call, in words that help the policy to mend it.
    pub fn error(content: impl Into<String>) -> ToolOutput {
        ToolOutput {
            content: content.into(),
            is_error: true,
        }
    }
}

impl ToolDef {
    /// A tool whose arguments are all required. `parameters` are (name, JSON type, description).
    pub fn new(name: &str, description: &str, parameters: &[(&str, &str, &str)]) -> ToolDef {
        let properties: Map<String, Value> = parameters
            .iter()
            .map(|(name, kind, description)| {
                let schema = serde_json::json!({"type": kind, "description": description});
                ((*name).to_string(), schema)
            })
            .collect();
        let required: Vec<&str> = parameters.iter().map(|(name, ..)| *name).collect();
        ToolDef {
            name: name.to_string(),
            description: description.to_string(),
            parameters: serde_json::json!({
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": false,
            }),
        }
    }

    /// As the `function` of OpenAI's chat format.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        })
    }
}

/// Checks calls against the schemas of an episode's tools.
#[derive(Debug)]
pub(crate) struct ToolBox {
    tools: Vec<(ToolDef, jsonschema::Validator)>,
}

impl ToolBox {
    /// # Errors
    /// A schema that is none, by the tool's name.
    pub(crate) fn new(tools: &[ToolDef]) -> Result<ToolBox, String> {
        let compiled = tools.iter().map(|tool| {
            let validator = jsonschema::validator_for(&tool.parameters);
            let validator = validator
                .map_err(|error| format!("the schema of tool {} is none: {error}", tool.name))?;
            Ok((tool.clone(), validator))
        });
        Ok(ToolBox {
            tools: compiled.collect::<Result<_, String>>()?,
        })
    }

    /// The arguments of a sound call.
    ///
    /// # Errors
    /// What is wrong with it, for the policy.
    pub(crate) fn arguments(&self, call: &ToolCall) -> Result<Map<String, Value>, String> {
        let known = self.tools.iter().find(|(tool, _)| tool.name == call.name);
        let Some((_, validator)) = known else {
            let names: Vec<&str> = self.tools.iter().map(|(tool, _)| &*tool.name).collect();
            return Err(match names.is_empty() {
                true => format!("Error: there is no tool {:?}; there are none.", call.name),
                false => format!(
                    "Error: there is no tool {:?}. The tools are {}.",
                    call.name,
                    names.join(", ")
                ),
            });
        };
        let arguments: Value = serde_json::from_str(&call.arguments)
            .map_err(|error| format!("Error: the arguments are not JSON: {error}."))?;
        let problems: Vec<String> = validator
            .iter_errors(&arguments)
            .take(3)
            .map(|error| match error.instance_path().to_string() {
                path if path.is_empty() => error.to_string(),
                path => format!("{error} (at {path})"),
            })
            .collect();
        match arguments {
            Value::Object(arguments) if problems.is_empty() => Ok(arguments),
            Value::Object(_) => Err(format!(
                "Error: wrong arguments for {}: {}.",
                call.name,
                problems.join("; ")
            )),
            _ => Err("Error: the arguments are no JSON object.".to_string()),
        }
    }
}

/// `text` with its middle cut out where it is longer than `max_bytes`, and whether it was.
pub(crate) fn head_and_tail(text: &str, max_bytes: usize) -> (String, bool) {
    if text.len() <= max_bytes {
        return (text.to_string(), false);
    }
    let half = max_bytes / 2;
    let is_boundary = |at: &usize| text.is_char_boundary(*at);
    let head = (0..=half).rev().find(is_boundary).unwrap_or(0);
    let mut after = text.len() - half..text.len();
    let tail = after.find(is_boundary).unwrap_or(text.len());
    let cut = format!(
        "{}\n[... {} bytes cut ...]\n{}",
        &text[..head],
        tail - head,
        &text[tail..]
    );
    (cut, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall {
            id: "1".to_string(),
            name: name.to_string(),
            arguments: arguments.to_string(),
        }
    }

    #[test]
    fn a_bad_call_says_what_is_wrong_with_it() {
        let tools = [ToolDef::new(
            "add",
            "Adds.",
            &[("a", "integer", "a number")],
        )];
        let tools = ToolBox::new(&tools).expect("a schema");
        assert_eq!(
            tools.arguments(&call("add", r#"{"a": 3}"#)).expect("sound")["a"],
            3
        );
        for (name, arguments, words) in [
            ("sub", "{}", "there is no tool \"sub\". The tools are add."),
            ("add", "{\"a\": 3", "not JSON"),
            ("add", "[3]", "no JSON object"),
            ("add", "{}", "\"a\" is a required property"),
            ("add", r#"{"a": "3"}"#, "(at /a)"),
            ("add", r#"{"a": 3, "b": 4}"#, "'b' was unexpected"),
        ] {
            let error = tools.arguments(&call(name, arguments)).expect_err("bad");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_schema_that_is_none_names_its_tool() {
        let mut tool = ToolDef::new("add", "Adds.", &[]);
        tool.parameters = serde_json::json!({"type": 7});
        let error = ToolBox::new(&[tool]).expect_err("no schema");
        assert!(error.contains("tool add"), "{error}");
    }

    #[test]
    fn long_texts_keep_head_and_tail() {
        assert_eq!(head_and_tail("abc", 3), ("abc".to_string(), false));
        let (text, is_cut) = head_and_tail(&format!("{}{}", "a".repeat(50), "é".repeat(50)), 21);
        assert!(is_cut);
        assert_eq!(
            text,
            format!(
                "{}\n[... 130 bytes cut ...]\n{}",
                "a".repeat(10),
                "é".repeat(5)
            )
        );
    }
}
