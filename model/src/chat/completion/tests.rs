//! Completions that are right, and what is said about those that are not.

use super::*;

const EOS: &str = "<｜end▁of▁sentence｜>";

/// A call block around `inside`.
fn block(inside: &str) -> String {
    format!("\n\n<｜DSML｜function_calls>\n{inside}</｜DSML｜function_calls>")
}

/// A call of `f` around `inside`.
fn invoke(inside: &str) -> String {
    format!("<｜DSML｜invoke name=\"f\">\n{inside}</｜DSML｜invoke>\n")
}

fn parameter(key: &str, is_string: bool, value: &str) -> String {
    format!(
        "<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">{value}</｜DSML｜parameter>\n"
    )
}

fn problem(text: &str, thinking: Thinking) -> String {
    parse(text, thinking).unwrap_err().to_string()
}

#[test]
fn reasoning_content_and_calls_are_told_apart() {
    let calls = block(&invoke(
        &(parameter("a", false, "[1,2]") + &parameter("b", true, "x\n\"y\" <z>")),
    ));
    let message = parse(&format!("R</think>C{calls}{EOS}"), Thinking::On).unwrap();
    let expected = AssistantMessage {
        content: "C".to_string(),
        reasoning_content: "R".to_string(),
        tool_calls: vec![ToolCall {
            id: None,
            name: "f".to_string(),
            // A value that is JSON stays as it was written.
            arguments: r#"{"a": [1,2], "b": "x\n\"y\" <z>"}"#.to_string(),
        }],
    };
    assert_eq!(message, expected);
    assert_eq!(
        message.to_json().to_string(),
        r#"{"role": "assistant", "content": "C", "reasoning_content": "R", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"a\": [1,2], \"b\": \"x\\n\\\"y\\\" <z>\"}"}}]}"#
    );
    // Empty texts are texts; line breaks belong to the content.
    let message = parse(&format!("</think>{EOS}"), Thinking::On).unwrap();
    assert_eq!(message, AssistantMessage::default());
    assert_eq!(
        parse(&format!("a\n\n{EOS}"), Thinking::Off)
            .unwrap()
            .content,
        "a\n\n"
    );
    assert_eq!(
        parse(&format!("a\n{calls}"), Thinking::Off)
            .unwrap()
            .content,
        "a\n"
    );
}

#[test]
fn a_call_without_arguments_has_empty_arguments() {
    // With the empty line that the encoder writes, and without.
    for inside in ["\n", ""] {
        let message = parse(&(block(&invoke(inside)) + EOS), Thinking::Off).unwrap();
        assert_eq!(message.tool_calls[0].arguments, "{}");
    }
}

#[test]
fn the_end_token_may_be_missing_after_calls_alone() {
    assert!(parse(&block(&invoke("\n")), Thinking::Off).is_ok());
    assert_eq!(
        problem("é.", Thinking::Off),
        "after 2 characters (3 bytes) of the completion: expected \"<｜end▁of▁sentence｜>\" or \
         \"\\n\\n<｜DSML｜function_calls\" to end the content, but the completion ends; was it cut short, \
         or its end token removed?"
    );
}

#[test]
fn special_tokens_inside_texts_are_refused() {
    for marker in MARKERS {
        if marker != END {
            let expected = format!(
                "after 1 characters (1 bytes) of the completion: {marker:?} inside the content"
            );
            let found = problem(&format!("a{marker}b{EOS}"), Thinking::Off);
            assert!(found.starts_with(&expected), "{found}");
        }
        if marker != END_THINK {
            let found = problem(&format!("a{marker}b</think>{EOS}"), Thinking::On);
            assert!(
                found.contains(&format!("{marker:?} inside the reasoning")),
                "{found}"
            );
        }
    }
    let found = problem(&format!("R</think>C{EOS}"), Thinking::Off);
    assert!(
        found.ends_with("may end; was it sampled in thinking mode?"),
        "{found}"
    );
    // An argument is another's text: it may speak of tokens, but not end the completion.
    let value = |value: &str| block(&invoke(&parameter("a", true, value))) + EOS;
    assert_eq!(
        parse(&value("<think>"), Thinking::Off).unwrap().tool_calls[0].arguments,
        r#"{"a": "<think>"}"#
    );
    let found = problem(&value("x<｜end▁of▁sentence｜>"), Thinking::Off);
    assert!(
        found.contains("\"<｜end▁of▁sentence｜>\" inside a parameter"),
        "{found}"
    );
}

#[test]
fn a_parameter_given_twice_is_refused_where_it_stands() {
    let twice = parameter("a", false, "1") + &parameter("a", false, "2");
    let text = block(&invoke(&twice)) + EOS;
    let expected = "the parameter \"a\" of f a second time";
    let error = parse(&text, Thinking::Off).unwrap_err();
    assert_eq!(error.problem, expected);
    assert!(text[error.bytes..].starts_with(" name=\"a\" string=\"false\">2"));
    assert_eq!(text[..error.bytes].chars().count(), error.characters);
}

#[test]
fn arguments_keep_their_names_and_values() {
    let given = [
        ("", "true", ""),
        ("a\"b", "true", "1"),
        ("k", "true", "v<"),
        ("é", "false", " {\"x\": NaN} "),
        ("l", "false", "[1,\n 2]"),
    ];
    let inside: String = given
        .iter()
        .map(|(key, is_string, value)| parameter(key, *is_string == "true", value))
        .collect();
    let message = parse(&(block(&invoke(&inside)) + EOS), Thinking::Off).unwrap();
    assert_eq!(
        message.tool_calls[0].arguments,
        "{\"\": \"\", \"a\\\"b\": \"1\", \"k\": \"v<\", \"é\":  {\"x\": NaN} , \"l\": [1,\n 2]}"
    );
    assert_eq!(message.tool_calls[0].parsed_arguments().unwrap().len(), 5);
}

/// Every way in which a call block can leave the format, with what stands at the place of the error.
#[test]
fn malformed_calls_are_refused_at_their_place() {
    let good = parameter("a", false, "1");
    for (text, place, expected) in [
        (
            block(""),
            "</｜DSML｜function_calls>",
            "expected \"<｜DSML｜invoke\", found",
        ),
        (block(" \n"), " \n<", "expected \"<｜DSML｜invoke\""),
        (
            block(&invoke("\n")).replacen("calls>\n", "calls>", 1),
            "><｜DSML｜invoke",
            "expected \">\\n\"",
        ),
        (
            block(&invoke("\n")) + "\n",
            "\n",
            "expected the end of the completion",
        ),
        (
            block(&invoke("\n")) + EOS + "x",
            "x",
            "expected the end of the completion",
        ),
        (
            block(&(invoke("\n") + "\n")),
            "\n</",
            "expected \"<｜DSML｜invoke\" or \"</｜DSML｜function_calls>\"",
        ),
        (
            block(&invoke("x")),
            "x</",
            "expected \"<｜DSML｜parameter\" or \"</｜DSML｜invoke\"",
        ),
        (
            block(&invoke(&format!("{good}\n"))),
            "\n</",
            "expected \"<｜DSML｜parameter\"",
        ),
        (block(&invoke(good.trim_end())), "></", "expected \">\\n\""),
        (
            block(&invoke("\n")).replace("\"f\"", "f"),
            "name=f>",
            "expected \"name=\\\"\"",
        ),
        (
            block(&invoke("\n")).replace("\"f\"", "\"\""),
            "\">",
            "expected the name of a tool",
        ),
        (
            block(&invoke("\n")).replace("\"f\"", "\"f\" x=\"g\""),
            "\" x",
            "expected \"\\\">\\n\"",
        ),
        (
            block(&invoke(
                "<｜DSML｜parameter name=\"a\">1</｜DSML｜parameter>\n",
            )),
            "a\">1",
            "expected a key, then",
        ),
        (
            block(&invoke(&good.replace("\"false\"", "\"no\""))),
            "a\" string",
            "expected a key, then",
        ),
        (
            block(&invoke(&good.replace("</｜DSML｜parameter>\n", ""))),
            "｜DSML｜invoke>",
            "\"｜DSML｜\" inside a parameter",
        ),
        (
            block(&invoke(&parameter("a", false, "yes"))),
            "yes",
            "the parameter \"a\" has string=\"false\", but its value is not JSON: line 1, column 1",
        ),
        (
            block(&invoke(&good)).replace("｜function_calls>\n", "｜tool_calls>\n"),
            "｜DSML｜tool_calls",
            "\"｜DSML｜\" inside the content",
        ),
        (
            "x".to_string() + block(&invoke(&good)).trim_start(),
            "｜DSML｜function",
            "\"｜DSML｜\" inside the content",
        ),
    ] {
        let error = parse(&text, Thinking::Off).unwrap_err();
        assert!(text[error.bytes..].starts_with(place), "{text:?}: {error}");
        assert!(error.problem.starts_with(expected), "{text:?}: {error}");
    }
}

#[test]
fn a_completion_cut_anywhere_is_refused() {
    let calls = block(&invoke(&parameter("a", true, "é")));
    for (text, thinking) in [
        (format!("R</think>C{calls}"), Thinking::On),
        (format!("R</think>C{EOS}"), Thinking::On),
        (format!("C{calls}"), Thinking::Off),
    ] {
        assert!(parse(&text, thinking).is_ok());
        for (len, _) in text.char_indices() {
            let error = parse(&text[..len], thinking).unwrap_err();
            assert!(error.bytes <= len);
        }
    }
}
