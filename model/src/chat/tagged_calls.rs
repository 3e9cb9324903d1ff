//! Tool calls of models that write them between tags, as Hermes, Qwen and others do:
//!
//! ```text
//! completion = [reasoning </think>] content call*            reasoning in thinking mode
//! call       = <tool_call> {"name": NAME, "arguments": {...}} </tool_call>
//! ```
//!
//! White space around calls and their JSON does not count. What is not of this form is an error that says where:
//! nothing is repaired.

use super::Thinking;
use super::completion::CompletionError;
use super::deepseek_v32::{END_THINK, THINK, is_tool_name};
use super::json::{Json, quoted};
use super::message::{AssistantMessage, ToolCall, ToolDefinition};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// What tells a model of its tools, for a chat template that can't show them.
pub fn tools_text(tools: &[ToolDefinition]) -> String {
    let tools: Vec<String> = tools.iter().map(|tool| tool.function.to_string()).collect();
    format!(
        "Tools:\n{}\nTo call a tool, write {OPEN}{{\"name\": NAME, \"arguments\": {{...}}}}{CLOSE}",
        tools.join("\n")
    )
}

/// `calls` as they are written behind the content.
pub fn calls_text(calls: &[ToolCall]) -> String {
    let call = |call: &ToolCall| {
        let (name, arguments) = (quoted(&call.name), &call.arguments);
        format!("{OPEN}{{\"name\": {name}, \"arguments\": {arguments}}}{CLOSE}")
    };
    calls.iter().map(call).collect::<Vec<_>>().join("\n")
}

/// The message that `text`, without its stop token, says.
///
/// # Errors
/// The first place where the text leaves the form.
pub fn parse(text: &str, thinking: Thinking) -> Result<AssistantMessage, CompletionError> {
    let mut message = AssistantMessage::default();
    let mut at = 0;
    let error = |at: usize, problem: String| CompletionError {
        characters: text[..at].chars().count(),
        bytes: at,
        problem,
    };
    if thinking == Thinking::On {
        let Some(end) = text.find(END_THINK) else {
            return Err(error(
                text.len(),
                format!("the reasoning does not end with {END_THINK:?}"),
            ));
        };
        // Some templates open the reasoning, others leave that to the model.
        let reasoning = text[..end].trim_start();
        let reasoning = reasoning.strip_prefix(THINK).unwrap_or(reasoning);
        message.reasoning_content = reasoning.trim().to_string();
        at = end + END_THINK.len();
    }
    let first = text[at..].find(OPEN).map_or(text.len(), |call| at + call);
    if let Some(stray) = text[at..first].find(CLOSE) {
        return Err(error(
            at + stray,
            format!("{CLOSE:?} without {OPEN:?} before it"),
        ));
    }
    message.content = text[at..first].trim().to_string();
    at = first;
    while at < text.len() {
        let blanks = text[at..].len() - text[at..].trim_start().len();
        at += blanks;
        if at == text.len() {
            break;
        }
        if !text[at..].starts_with(OPEN) {
            return Err(error(
                at,
                format!("text behind the calls; only {OPEN:?} may follow"),
            ));
        }
        let start = at + OPEN.len();
        let Some(len) = text[start..].find(CLOSE) else {
            return Err(error(start, format!("a call without {CLOSE:?}")));
        };
        let call = call(&text[start..start + len]);
        message
            .tool_calls
            .push(call.map_err(|problem| error(start, problem))?);
        at = start + len + CLOSE.len();
    }
    Ok(message)
}

fn call(text: &str) -> Result<ToolCall, String> {
    let wanted = "a call is {\"name\": NAME, \"arguments\": {...}}";
    let json = Json::parse(text).map_err(|error| format!("not JSON: {error}; {wanted}"))?;
    let Json::Object(entries) = &json else {
        return Err(format!("{}; {wanted}", json.kind()));
    };
    if let Some((key, _)) = entries
        .iter()
        .find(|(key, _)| key != "name" && key != "arguments")
    {
        return Err(format!("the key {key:?}; {wanted}"));
    }
    let (name, arguments) = match (json.get("name"), json.get("arguments")) {
        (Some(Json::Text(name)), Some(arguments @ Json::Object(_))) => (name, arguments),
        _ => return Err(format!("no name or no arguments; {wanted}")),
    };
    if !is_tool_name(name) {
        return Err(format!("{name:?} is no name of a tool"));
    }
    Ok(ToolCall {
        id: None,
        name: name.clone(),
        arguments: arguments.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_calls_are_told_apart() {
        let text = "I look.\n<tool_call>{\"name\": \"look\", \"arguments\": {\"key\": \"a\"}}</tool_call>\n\
                    <tool_call>\n{\"name\": \"go\", \"arguments\": {}}\n</tool_call>\n";
        let message = parse(text, Thinking::Off).expect("it is of the form");
        assert_eq!(message.content, "I look.");
        let calls: Vec<(&str, &str)> = message
            .tool_calls
            .iter()
            .map(|call| (call.name.as_str(), call.arguments.as_str()))
            .collect();
        assert_eq!(calls, [("look", "{\"key\": \"a\"}"), ("go", "{}")]);
        let again = format!("I look.{}", calls_text(&message.tool_calls));
        assert_eq!(parse(&again, Thinking::Off), Ok(message));
    }

    #[test]
    fn reasoning_ends_before_the_content() {
        let message = parse("<think>\nhm </think>\n\n7", Thinking::On).expect("it is of the form");
        assert_eq!(message.reasoning_content, "hm");
        assert_eq!(message.content, "7");
        assert!(parse("7", Thinking::On).is_err());
    }

    #[test]
    fn what_is_not_of_the_form_says_where() {
        for (text, characters, words) in [
            ("é<tool_call>{\"name\": 1}", 12, "without \"</tool_call>\""),
            ("<tool_call>x</tool_call>", 11, "not JSON"),
            ("<tool_call>[]</tool_call>", 11, "a list"),
            (
                "<tool_call>{\"name\": \"a\"}</tool_call>",
                11,
                "no arguments",
            ),
            (
                "<tool_call>{\"name\": \"a\", \"arguments\": {}, \"b\": 1}</tool_call>",
                11,
                "the key \"b\"",
            ),
            (
                "<tool_call>{\"name\": \"a\", \"arguments\": {}}</tool_call> and",
                54,
                "behind the calls",
            ),
            ("a </tool_call>", 2, "without \"<tool_call>\""),
        ] {
            let error = parse(text, Thinking::Off).expect_err(text);
            assert!(error.problem.contains(words), "{error}");
            assert_eq!(error.characters, characters, "{error}");
        }
    }
}
