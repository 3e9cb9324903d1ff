//! The encoder against texts of the release's own, and what is ours beyond it.

use std::path::Path;

use super::super::completion;
use super::super::conversation::Conversation;
use super::*;

fn golden(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/chat");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn conversation(text: &str) -> Vec<Message> {
    Conversation::parse(text).unwrap().messages
}

const THINKING: ChatOptions = ChatOptions {
    thinking: Thinking::On,
    history: HistoryReasoning::LastUserTurn,
};
const CHAT: ChatOptions = ChatOptions {
    thinking: Thinking::Off,
    history: HistoryReasoning::LastUserTurn,
};
const KEEPING: ChatOptions = ChatOptions {
    thinking: Thinking::On,
    history: HistoryReasoning::All,
};

/// Messages, options and text of the golden conversation whose name begins with `number`.
fn vector(number: &str) -> (Vec<Message>, ChatOptions, String) {
    let vectors = Json::parse(&golden("v32_conversations.json")).unwrap();
    let Json::Object(vectors) = vectors else {
        panic!("an object of vectors")
    };
    let (_, vector) = vectors
        .iter()
        .find(|(name, _)| name.split(' ').next() == Some(number))
        .unwrap();
    let options = match vector.get("thinking_mode") {
        Some(Json::Text(mode)) if mode == "thinking" => THINKING,
        _ => CHAT,
    };
    let Some(Json::Text(output)) = vector.get("output") else {
        panic!("an output")
    };
    let messages = vector.get("messages").unwrap().to_string();
    (conversation(&messages), options, output.clone())
}

#[test]
fn conversations_equal_the_releases_byte_for_byte() {
    for number in 1..=10 {
        let (messages, options, expected) = vector(&format!("V{number}"));
        assert_eq!(
            render(&messages, 0, &options).unwrap(),
            expected,
            "V{number}"
        );
    }
}

#[test]
fn the_releases_example_is_rendered_byte_for_byte() {
    let messages = conversation(&golden("v32_weather.json"));
    assert_eq!(
        render(&messages, 0, &THINKING).unwrap(),
        golden("v32_weather.txt")
    );
}

#[test]
fn a_developer_message_before_the_last_user_message_is_kept() {
    // The release drops it together with the reasoning and then fails.
    let (messages, options, expected) = vector("V11");
    assert!(expected.starts_with("EXC"));
    assert_eq!(
        render(&messages, 0, &options).unwrap(),
        "<｜begin▁of▁sentence｜><｜User｜>\n\n# The user's message is: D0<｜Assistant｜></think>A0\
         <｜end▁of▁sentence｜><｜User｜>next<｜Assistant｜><think>"
    );
}

#[test]
fn messages_after_a_context_are_the_rest_of_the_whole_text() {
    let messages = conversation(&golden("v32_weather.json"));
    let whole = golden("v32_weather.txt");
    for num_context in 1..=messages.len() {
        let rest = render(&messages, num_context, &THINKING).unwrap();
        assert!(!rest.contains(BEGIN));
        assert!(whole.ends_with(&rest));
        assert_eq!(rest.is_empty(), num_context == messages.len());
    }
}

#[test]
fn within_a_user_turn_the_text_only_grows() {
    // Messages 9 to 12 follow the last user message, number 8.
    let messages = conversation(&golden("v32_weather.json"));
    let at = |len: usize| render(&messages[..len], 0, &THINKING).unwrap();
    for len in 9..messages.len() {
        assert!(at(len + 1).starts_with(&at(len)), "{len}");
    }
    // A new user message changes what is before it: its reasoning goes.
    assert!(!at(9).starts_with(&at(8)));
}

#[test]
fn reasoning_goes_with_a_new_user_or_developer_message_and_stays_with_a_result() {
    let (mut messages, _, _) = vector("V5");
    let text = |messages: &[Message]| render(messages, 0, &THINKING).unwrap();
    assert!(text(&messages).contains("<think>R1</think>"));
    messages.push(Message::developer("more"));
    assert!(!text(&messages).contains("R1"));
    assert!(text(&messages).contains("invoke name=\"add\""));
    assert!(text(&messages).contains("<result>5</result>"));
}

#[test]
fn keeping_all_reasoning_leaves_every_answer_as_it_was_sampled() {
    let (messages, _, _) = vector("V6");
    let expected = "<｜begin▁of▁sentence｜>S<｜User｜>2+3?<｜Assistant｜><think>R1</think>\n\n\
        <｜DSML｜function_calls>\n<｜DSML｜invoke name=\"add\">\n\
        <｜DSML｜parameter name=\"a\" string=\"false\">2</｜DSML｜parameter>\n\
        <｜DSML｜parameter name=\"b\" string=\"false\">3</｜DSML｜parameter>\n\
        <｜DSML｜parameter name=\"note\" string=\"true\">x \"q\"</｜DSML｜parameter>\n\
        </｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>\n\
        <result>5</result>\n</function_results>\n\n<think>R2</think>It is 5.<｜end▁of▁sentence｜>\
        <｜User｜>thanks, 4+4?<｜Assistant｜><think>";
    assert_eq!(render(&messages, 0, &KEEPING).unwrap(), expected);
    for len in 2..messages.len() {
        let shorter = render(&messages[..len], 0, &KEEPING).unwrap();
        assert!(expected.starts_with(&shorter), "{len}");
    }
    // An answer that never had reasoning keeps its closed block; without thinking there is none at all.
    let plain = [
        Message::user("a"),
        Message::assistant("b"),
        Message::user("c"),
    ];
    assert!(
        render(&plain, 0, &KEEPING)
            .unwrap()
            .contains("<｜Assistant｜></think>b")
    );
    let chat = ChatOptions {
        thinking: Thinking::Off,
        ..KEEPING
    };
    assert!(!render(&messages, 0, &chat).unwrap().contains("R1"));
}

#[test]
fn completions_are_read_back_as_the_messages_they_were() {
    let weather = conversation(&golden("v32_weather.json"));
    let (tools, ..) = vector("V5");
    let (parallel, ..) = vector("V7");
    let no_arguments = [Message::user("go"), called("now", "{}")];
    let mut num_calls = 0;
    for (messages, thinking) in [
        (&weather[..], Thinking::On),
        (&tools, Thinking::On),
        (&parallel, Thinking::Off),
        (&no_arguments, Thinking::On),
        (&no_arguments, Thinking::Off),
    ] {
        for (index, message) in messages.iter().enumerate() {
            let Message::Assistant(expected) = message else {
                continue;
            };
            // As sampled: everything before is a prompt that ends in the last turn.
            let options = ChatOptions { thinking, ..CHAT };
            let completion = render(&messages[..=index], index, &options).unwrap();
            let mut expected = expected.clone();
            expected
                .tool_calls
                .iter_mut()
                .for_each(|call| call.id = None);
            if thinking == Thinking::Off {
                expected.reasoning_content.clear();
            }
            num_calls += expected.tool_calls.len();
            assert_eq!(completion::parse(&completion, thinking).unwrap(), expected);
        }
    }
    assert_eq!(num_calls, 10);
}

/// An assistant message that calls `name`.
fn called(name: &str, arguments: &str) -> Message {
    Message::Assistant(AssistantMessage {
        tool_calls: vec![ToolCall {
            id: None,
            name: name.to_string(),
            arguments: arguments.to_string(),
        }],
        ..AssistantMessage::default()
    })
}

#[test]
fn a_call_without_arguments_has_an_empty_line() {
    let text = render(&[Message::user("go"), called("f", "{}")], 1, &CHAT).unwrap();
    assert_eq!(
        text,
        "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>\n\
         </｜DSML｜function_calls><｜end▁of▁sentence｜>"
    );
}

#[test]
fn argument_values_are_written_as_python_writes_json() {
    let arguments = r#"{"big": 123456789012345678901234567890, "x": 1e-7, "l": [1.0,{"k":"é\n"}], "s": "a<b>\n\"c\""}"#;
    let text = render(&[Message::user("go"), called("f", arguments)], 1, &CHAT).unwrap();
    for line in [
        "name=\"big\" string=\"false\">123456789012345678901234567890</",
        "name=\"x\" string=\"false\">1e-07</",
        "name=\"l\" string=\"false\">[1.0, {\"k\": \"é\\n\"}]</",
        "name=\"s\" string=\"true\">a<b>\n\"c\"</",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn what_can_not_be_shown_is_an_error_with_its_message() {
    let problem = |messages: &[Message], options: &ChatOptions| {
        render(messages, 0, options).unwrap_err().to_string()
    };
    let user = || Message::user("q");
    for (messages, expected) in [
        (
            vec![user(), Message::assistant("a")],
            "messages[1] has neither reasoning_content nor tool_calls; in thinking mode an answer to the \
             last user message needs one of them",
        ),
        (
            vec![user(), Message::tool("5")],
            "messages[1] is a tool's result, but no assistant message with tool_calls comes before it",
        ),
        (
            vec![Message::tool("5")],
            "messages[0] is a tool's result, but no assistant message with tool_calls comes before it",
        ),
        (
            vec![
                user(),
                called("f", "{}"),
                Message::tool("5"),
                Message::tool("6"),
            ],
            "messages[3] is result number 2, but the assistant message before it makes 1 call(s); give \
             one result a call",
        ),
        (
            vec![Message::developer("")],
            "messages[0] has no content; a developer message needs it",
        ),
        (
            vec![user(), called("f", "[1]")],
            "messages[1] has a call that can't be written: tool_calls[0].function.arguments is a list; \
             the arguments of a call are a JSON object as text, such as \"{\\\"a\\\": 1}\"",
        ),
        (
            vec![user(), called("f\"g", "{}")],
            "messages[1] has a call that can't be written: tool_calls[0].function.name \"f\\\"g\" is \
             empty or has a quote or line break in it",
        ),
    ] {
        assert_eq!(problem(&messages, &THINKING), expected);
    }
    // The first is none where the answer is not to the last user message, or without thinking.
    let earlier = [user(), Message::assistant("a"), user()];
    assert!(render(&earlier, 0, &THINKING).is_ok());
    assert!(render(&earlier[..2], 0, &CHAT).is_ok());
}
