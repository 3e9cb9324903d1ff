//! Which format a tokenizer speaks, and conversations as token ids.

use super::*;

/// A byte-level tokenizer with added tokens, as a model folder has it, and a chat template.
fn with_tokens(tokens: &[&str], template: Option<&str>) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::byte_level().save(folder.path()).unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = std::fs::read(path("tokenizer.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let added = tokens.iter().zip(259..).map(|(token, id)| {
        let special = !["<think>", "</think>"].contains(token);
        serde_json::json!({"id": id, "content": token, "special": special, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    });
    file["added_tokens"].as_array_mut().unwrap().extend(added);
    std::fs::write(path("tokenizer.json"), file.to_string()).unwrap();
    let mut settings = serde_json::json!({"eos_token": "<|im_end|>"});
    if let Some(template) = template {
        settings["chat_template"] = template.into();
    }
    std::fs::write(path("tokenizer_config.json"), settings.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

/// With the tokens of DeepSeek-V3.2; the ids differ from the real ones: they are looked up, never known.
fn tokenizer(template: Option<&str>) -> Tokenizer {
    with_tokens(&deepseek_v32::MARKERS, template)
}

#[test]
fn a_template_is_spoken_before_the_encoding_and_neither_is_an_error() {
    let v32 = tokenizer(None);
    assert_eq!(v32.chat_format().unwrap(), ChatFormat::DeepSeekV32);
    let with_template = tokenizer(Some("x"));
    assert_eq!(
        with_template.chat_format().unwrap(),
        ChatFormat::Template("x")
    );
    let markers = deepseek_v32::MARKERS;
    for without in 0..markers.len() {
        let rest = [&markers[..without], &markers[without + 1..]].concat();
        let lacking = with_tokens(&rest, None);
        let error = lacking.chat(&[Message::user("x")], &ChatOptions::default());
        assert!(
            matches!(error, Err(TokenizerError::NoChatTemplate)),
            "{without}"
        );
    }
    // DeepSeek-V4 has these tokens too, and speaks otherwise.
    let v4 = with_tokens(&[&markers[..], &[deepseek_v32::OF_V4]].concat(), None);
    assert!(matches!(
        v4.chat_format(),
        Err(TokenizerError::NoChatTemplate)
    ));
}

#[test]
fn every_marker_of_the_encoding_becomes_one_id() {
    let tokenizer = tokenizer(None);
    let [begin, end, user, assistant, think, end_think, dsml] =
        deepseek_v32::MARKERS.map(|marker| tokenizer.token_id(marker).unwrap());
    let messages = [
        Message::user("a"),
        Message::Assistant(AssistantMessage {
            reasoning_content: "b".to_string(),
            tool_calls: vec![ToolCall {
                id: None,
                name: "f".to_string(),
                arguments: "{}".to_string(),
            }],
            ..AssistantMessage::default()
        }),
        Message::tool("c"),
    ];
    let options = ChatOptions {
        thinking: Thinking::On,
        ..ChatOptions::default()
    };
    let ids = tokenizer.chat(&messages, &options).unwrap();
    let text = |text: &str| tokenizer.encode(text);
    let expected = [
        &[begin, user, 97, assistant, think, 98, end_think][..],
        &text("\n\n<"),
        &[dsml],
        &text("function_calls>\n<"),
        &[dsml],
        &text("invoke name=\"f\">\n\n</"),
        &[dsml],
        &text("invoke>\n</"),
        &[dsml],
        &text("function_calls>"),
        &[end],
        &text("\n\n<function_results>\n<result>c</result>\n</function_results>\n\n"),
        &[think],
    ];
    assert_eq!(ids, expected.concat());
    let rendered = tokenizer.render_chat(&messages, &options).unwrap();
    assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), rendered);
    assert!(!tokenizer.decode(&ids).contains("｜User｜"));
}

#[test]
fn ids_of_a_completion_are_read_back() {
    let tokenizer = tokenizer(None);
    let ids = tokenizer.encode("R 多</think>C<｜end▁of▁sentence｜>");
    let text = tokenizer.decode_with_special(&ids).unwrap();
    let message = tokenizer.parse_completion(&text, Thinking::On).unwrap();
    assert_eq!(
        (message.reasoning_content.as_str(), message.content.as_str()),
        ("R 多", "C")
    );
    let error = tokenizer
        .parse_completion(&text, Thinking::Off)
        .unwrap_err();
    assert!(matches!(error, TokenizerError::Completion(_)), "{error}");
    let error = tokenizer.decode_with_special(&[97, 9999]).unwrap_err();
    assert_eq!(error.to_string(), "id 9999 is no token of this tokenizer");
    let text = "<tool_call>{\"name\": \"look\", \"arguments\": {}}</tool_call><|im_end|>";
    let tagged = Tokenizer::byte_level().parse_completion(text, Thinking::Off);
    assert_eq!(tagged.unwrap().tool_calls[0].name, "look");
}

#[test]
fn a_template_decides_itself_which_reasoning_it_shows() {
    let options = ChatOptions {
        history: HistoryReasoning::All,
        ..ChatOptions::default()
    };
    let error = Tokenizer::byte_level().chat(&[Message::user("x")], &options);
    assert!(matches!(error, Err(TokenizerError::HistoryIsTheTemplates)));
}

#[test]
fn message_numbers_leave_out_what_was_added() {
    let error = |index| ChatError::Message {
        index,
        problem: "is wrong".to_string(),
    };
    assert_eq!(error(3).without_added(1), error(2));
    assert_eq!(error(3).without_added(0), error(3));
}
