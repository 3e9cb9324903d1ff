//! Files as they may be, and the first mistake of those that are not.

use super::*;

fn problem(text: &str) -> String {
    Conversation::parse(text).unwrap_err().to_string()
}

const TOOL: &str =
    r#"{"type": "function", "function": {"name": "f", "parameters": {"b": 1.0, "a": 2}}}"#;

#[test]
fn every_role_is_read() {
    let text = format!(
        r#"[
        {{"role": "system", "content": "S", "tools": [{TOOL}], "response_format": {{"type": "object"}}}},
        {{"role": "developer", "content": "D", "tools": null, "response_format": {{}}}},
        {{"role": "user", "content": "", "name": "me"}},
        {{"role": "assistant", "content": null, "reasoning_content": "R", "refusal": null, "tool_calls":
            [{{"id": "c1", "type": "function", "function": {{"name": "f", "arguments": "{{\"x\": 1}}"}}}}]}},
        {{"role": "tool", "tool_call_id": "c1", "content": "5"}},
        {{"role": "assistant", "content": "A", "tool_calls": []}}]"#
    );
    let Conversation {
        messages,
        num_added,
    } = Conversation::parse(&text).unwrap();
    let expected = [
        Message::System(Instructions {
            content: "S".to_string(),
            tools: vec![ToolDefinition {
                function: Json::parse(r#"{"name": "f", "parameters": {"b": 1.0, "a": 2}}"#)
                    .unwrap(),
            }],
            response_format: Some(Json::parse(r#"{"type": "object"}"#).unwrap()),
        }),
        Message::developer("D"),
        Message::user(""),
        Message::Assistant(AssistantMessage {
            content: String::new(),
            reasoning_content: "R".to_string(),
            tool_calls: vec![ToolCall {
                id: Some("c1".to_string()),
                name: "f".to_string(),
                arguments: "{\"x\": 1}".to_string(),
            }],
        }),
        Message::Tool {
            content: "5".to_string(),
            tool_call_id: Some("c1".to_string()),
        },
        Message::assistant("A"),
    ];
    assert_eq!(messages, expected);
    assert_eq!(num_added, 0);
    let roles: Vec<&str> = messages.iter().map(Message::role).collect();
    assert_eq!(
        roles,
        [
            "system",
            "developer",
            "user",
            "assistant",
            "tool",
            "assistant"
        ]
    );
}

#[test]
fn tools_of_the_request_go_into_the_leading_system_message() {
    let tools = |messages: &str| {
        let text = format!(r#"{{"messages": [{messages}], "tools": [{TOOL}]}}"#);
        Conversation::parse(&text)
    };
    let user = r#"{"role": "user", "content": "q"}"#;
    for (first, content, num_added) in [
        ("", "", 1),
        (r#"{"role": "system", "content": "S"},"#, "S", 0),
        (r#"{"role": "system", "content": null},"#, "", 0),
    ] {
        let conversation = tools(&format!("{first}{user}")).unwrap();
        assert_eq!(conversation.num_added, num_added);
        assert_eq!(conversation.messages.len(), 2);
        let Message::System(leading) = &conversation.messages[0] else {
            panic!("a system message leads")
        };
        assert_eq!(
            (leading.content.as_str(), leading.tools.len()),
            (content, 1)
        );
        assert_eq!(conversation.messages[1], Message::user("q"));
    }
    let twice = tools(&format!(
        r#"{{"role": "system", "content": "S", "tools": [{TOOL}]}}"#
    ));
    assert_eq!(
        twice.unwrap_err().to_string(),
        "tools are given for the request and in messages[0] too; give them once"
    );
}

#[test]
fn mistakes_are_named_with_their_place() {
    let message = |keys: &str| format!(r#"[{{"role": "user", "content": "q"}}, {{{keys}}}]"#);
    let assistant =
        |calls: &str| message(&format!(r#""role": "assistant", "tool_calls": {calls}"#));
    let tool = |tools: &str| message(&format!(r#""role": "system", "tools": {tools}"#));
    for (text, expected) in [
        (
            "[".to_string(),
            "not JSON: line 1, column 2: expected a value, the text ends",
        ),
        (
            "3".to_string(),
            "the file is a number; a conversation is a list of messages, or {\"messages\"",
        ),
        (
            "[]".to_string(),
            "messages is empty; give at least one message",
        ),
        ("{}".to_string(), "messages is missing or not a list"),
        (
            r#"{"messages": [], "model": "x"}"#.to_string(),
            "the file has the unknown key 'model'; a conversation has messages, tools",
        ),
        (
            r#"["hi"]"#.to_string(),
            "messages[0] is a string; a message is an object with role and content",
        ),
        (
            message(r#""content": "x""#),
            "messages[1] has no role; it is one of system, developer, user, assistant, tool",
        ),
        (
            message(r#""role": "bot""#),
            "messages[1].role is 'bot'; it is one of system",
        ),
        (
            message(r#""role": 1"#),
            "messages[1].role is a number; it is a string",
        ),
        (
            message(r#""role": "user""#),
            "messages[1] has no content; a user message needs it",
        ),
        (
            message(r#""role": "tool", "content": null"#),
            "messages[1] has no content; a tool message needs it",
        ),
        (
            message(r#""role": "developer", "content": """#),
            "messages[1] has no content; a developer message needs it",
        ),
        (
            message(r#""role": "user", "content": [{"type": "text"}]"#),
            "messages[1].content is a list; join the parts of a message",
        ),
        (
            message(r#""role": "user", "content": "x", "reasoning_content": "r""#),
            "messages[1].reasoning_content belongs to a message of role assistant, not user",
        ),
        (
            message(&format!(
                r#""role": "user", "content": "x", "tools": [{TOOL}]"#
            )),
            "messages[1].tools belongs to a message of role system or developer, not user",
        ),
        (
            message(r#""role": "assistant", "reasoning": "r""#),
            "messages[1] has the unknown key 'reasoning'; a message of role assistant has role, content, name, reasoning_content, tool_calls",
        ),
        (
            message(r#""role": "system", "response_format": "json""#),
            "messages[1].response_format is a string; it is a JSON schema, an object",
        ),
        (tool("{}"), "messages[1].tools is an object; it is a list"),
        (
            tool(r#"[{"name": "f"}]"#),
            "messages[1].tools[0] has no function; a tool is {\"type\": \"function\"",
        ),
        (
            tool(r#"[{"function": {"name": "f"}, "strict": true}]"#),
            "messages[1].tools[0] has the unknown key 'strict'; a tool has type, function",
        ),
        (
            tool(r#"[{"type": "retrieval", "function": {"name": "f"}}]"#),
            "messages[1].tools[0].type is 'retrieval'; \"function\" is the only type there is",
        ),
        (
            tool(r#"[{"function": {}}]"#),
            "messages[1].tools[0].function has no name; a tool needs it",
        ),
        (
            assistant(r#"[{"name": "f", "arguments": "{}"}]"#),
            "messages[1].tool_calls[0] has no function; a call is",
        ),
        (
            assistant(r#"[{"function": {"name": "f"}}]"#),
            "messages[1].tool_calls[0].function has no arguments; a call is",
        ),
        (
            assistant(r#"[{"function": {"arguments": "{}"}}]"#),
            "messages[1].tool_calls[0].function has no name; a call is",
        ),
        (
            assistant(r#"[{"function": {"name": "f", "arguments": {"a": 1}}}]"#),
            "messages[1].tool_calls[0].function.arguments is an object; the arguments of a call are a JSON object as text",
        ),
        (
            assistant(r#"[{"function": {"name": "f", "arguments": ""}}]"#),
            "messages[1].tool_calls[0].function.arguments is empty; a call without arguments has \"{}\"",
        ),
        (
            assistant(r#"[{"function": {"name": "f", "arguments": "{\"a\": }"}}]"#),
            "messages[1].tool_calls[0].function.arguments is not JSON: line 1, column 7: expected a value, found '}'",
        ),
        (
            assistant(r#"[{"function": {"name": "f", "arguments": "[]"}}]"#),
            "messages[1].tool_calls[0].function.arguments is a list; the arguments of a call",
        ),
        (
            assistant(r#"[{"index": 1, "function": {"name": "f", "arguments": "{}"}}]"#),
            "messages[1].tool_calls[0] has the unknown key 'index'; a call has id, type, function",
        ),
    ] {
        let found = problem(&text);
        assert!(found.starts_with(expected), "{text}\n{found}\n{expected}");
    }
}
