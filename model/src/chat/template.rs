//! Conversations to text through a model's own Jinja chat template.
//!
//! Rendering follows transformers' `apply_chat_template`: trim_blocks and lstrip_blocks are on, loop
//! controls and Python's string methods work, `tojson` writes as Python's `json.dumps`, `raise_exception`
//! fails the rendering, and the special tokens are variables. `enable_thinking` and `thinking` tell
//! templates that know a thinking mode which one is wanted; tool calls have their arguments as objects.
//! Left out: documents, `{% generation %}`, `strftime_now`, and response formats, which no template shows.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};

use super::json::Json;
use super::message::{Message, ToolDefinition};
use super::{ChatError, ChatOptions, HistoryReasoning, Thinking};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// The text that `template` makes of `messages`. The opening of the assistant's next turn follows unless
/// the last message is the assistant's.
///
/// # Errors
/// A template that fails or refuses the conversation, one that writes a `<|...|>` token which the
/// vocabulary of `tokenizer` lacks, and what templates can't show.
pub(super) fn render(
    tokenizer: &Tokenizer,
    template: &str,
    messages: &[Message],
    options: &ChatOptions,
) -> Result<String, TokenizerError> {
    if options.history == HistoryReasoning::All {
        return Err(TokenizerError::HistoryIsTheTemplates);
    }
    let turns: Vec<Value> = messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            turn(message).map_err(|problem| ChatError::Message { index, problem })
        })
        .collect::<Result<_, _>>()?;
    let tools: Vec<Value> = messages.iter().flat_map(tools_of).map(tool).collect();
    let thinks = options.thinking == Thinking::On;
    let context = context! {
        messages => turns.clone(),
        add_generation_prompt => !matches!(messages.last(), Some(Message::Assistant(_))),
        tools => if tools.is_empty() { Value::from(()) } else { Value::from(tools.clone()) },
        documents => Value::from(()),
        enable_thinking => thinks,
        thinking => thinks,
    };
    let text = environment(tokenizer)
        .render_str(template, context)
        .map_err(|error| TokenizerError::ChatTemplate(format!("{error:#}")))?;
    for marker in markers(&text) {
        let said = |value: &Value| value.to_string().contains(marker);
        let is_own = !turns.iter().chain(&tools).any(said);
        if tokenizer.token_id(marker).is_none() && is_own {
            return Err(TokenizerError::UnknownSpecialToken(marker.to_string()));
        }
    }
    Ok(text)
}

fn environment(tokenizer: &Tokenizer) -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    let syntax = syntax
        .build()
        .expect("Jinja's own delimiters do not collide");
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, _> {
        Err(Error::new(ErrorKind::InvalidOperation, reason))
    });
    for (key, token) in tokenizer.special_tokens() {
        environment.add_global(key.to_string(), token.to_string());
    }
    environment
}

fn tools_of(message: &Message) -> &[ToolDefinition] {
    match message {
        Message::System(instructions) | Message::Developer(instructions) => &instructions.tools,
        _ => &[],
    }
}

/// A message as templates expect it; keys that say nothing are not there.
fn turn(message: &Message) -> Result<Value, String> {
    let mut entries = vec![
        ("role", Value::from(message.role())),
        ("content", Value::from(message.content())),
    ];
    match message {
        Message::System(instructions) | Message::Developer(instructions) => {
            if instructions.response_format.is_some() {
                return Err(
                    "has a response_format, which chat templates can't show; write it into \
                            the content"
                        .to_string(),
                );
            }
        }
        Message::User { .. } => {}
        Message::Assistant(message) => {
            if !message.reasoning_content.is_empty() {
                let reasoning = Value::from(message.reasoning_content.as_str());
                entries.push(("reasoning_content", reasoning));
            }
            if !message.tool_calls.is_empty() {
                let calls: Result<Vec<Value>, String> =
                    message.tool_calls.iter().map(call).collect();
                entries.push(("tool_calls", Value::from(calls?)));
            }
        }
        Message::Tool { tool_call_id, .. } => {
            if let Some(id) = tool_call_id {
                entries.push(("tool_call_id", Value::from(id.as_str())));
            }
        }
    }
    Ok(Value::from_pairs(entries))
}

fn call(call: &super::ToolCall) -> Result<Value, String> {
    let arguments = call
        .parsed_arguments()
        .map_err(|problem| format!("has a call whose arguments text {problem}"))?;
    let function = [
        ("name", Value::from(call.name.as_str())),
        ("arguments", value(&Json::Object(arguments))),
    ];
    let mut entries = vec![
        ("type", Value::from("function")),
        ("function", Value::from_pairs(function)),
    ];
    if let Some(id) = &call.id {
        entries.insert(0, ("id", Value::from(id.as_str())));
    }
    Ok(Value::from_pairs(entries))
}

fn tool(tool: &ToolDefinition) -> Value {
    Value::from_pairs([
        ("type", Value::from("function")),
        ("function", value(&tool.function)),
    ])
}

/// JSON as a template's value. Integers beyond 128 bits become floats.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Integer(digits) => match (digits.parse::<i64>(), digits.parse::<i128>()) {
            (Ok(small), _) => Value::from(small),
            (_, Ok(large)) => Value::from(large),
            _ => Value::from(digits.parse::<f64>().expect("digits are a number")),
        },
        Json::Float(value) => Value::from(*value),
        Json::Text(text) => Value::from(text.as_str()),
        Json::List(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(entries) => {
            Value::from_pairs(entries.iter().map(|(k, v)| (k.as_str(), value(v))))
        }
    }
}

/// A template's value as JSON.
fn json(value: &Value) -> Result<Json, Error> {
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number if value.is_integer() => Json::Integer(value.to_string()),
        ValueKind::Number => Json::Float(f64::try_from(value.clone())?),
        ValueKind::String => Json::Text(value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => Json::List(
            value
                .try_iter()?
                .map(|item| json(&item))
                .collect::<Result<_, _>>()?,
        ),
        ValueKind::Map => {
            let entries = value
                .try_iter()?
                .map(|key| Ok((key.to_string(), json(&value.get_item(&key)?)?)));
            Json::Object(entries.collect::<Result<_, Error>>()?)
        }
        other => {
            let problem = format!("tojson can't write a value that is {other}");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
    })
}

/// The filter `tojson` with Python's defaults: `ensure_ascii=False`, `indent=None`.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = indent.or(options.get("indent")?);
    let is_ascii: Option<bool> = options.get("ensure_ascii")?;
    if is_ascii == Some(true) {
        let problem = "tojson with ensure_ascii=True is not supported";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    options.assert_all_used()?;
    let json = json(value)?;
    Ok(match indent {
        Some(indent) => json.indented(indent),
        None => json.to_string(),
    })
}

/// Every `<|name|>` in `text`, where name has neither spaces nor angle brackets.
fn markers(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("<|").filter_map(|(start, _)| {
        let inner = &text[start + 2..];
        let end = inner.find("|>")?;
        let plain = !inner[..end].contains(|c: char| c.is_whitespace() || "<>".contains(c));
        plain.then(|| &text[start..start + 2 + end + 2])
    })
}

#[cfg(test)]
mod tests;
