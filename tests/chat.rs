//! `baleen chat`: conversations to text and ids, completions to messages, and what is refused.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use model::Tokenizer;
use model::chat::deepseek_v32::MARKERS;

use crate::program;
use crate::refusal::{WRONG_INPUT, refused};
use crate::run_files::text;

/// A folder with nothing but a byte-level tokenizer that has the tokens of DeepSeek-V3.2.
fn v32_folder(dir: &Path) -> PathBuf {
    let folder = dir.join("v32");
    fs::create_dir(&folder).unwrap();
    Tokenizer::byte_level().save(&folder).unwrap();
    let path = folder.join("tokenizer.json");
    let file = fs::read_to_string(&path).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&file).unwrap();
    let added = MARKERS.iter().zip(259..).map(|(marker, id)| {
        serde_json::json!({"id": id, "content": marker, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    });
    file["added_tokens"].as_array_mut().unwrap().extend(added);
    fs::write(&path, file.to_string()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    folder
}

/// Runs `baleen chat ARGS...` with `input` on its standard input; what it prints.
fn piped(args: &[&str], input: &str) -> String {
    let mut command = program::command(&[&["chat"], args].concat());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "baleen chat {args:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_conversation_is_printed_as_text_and_ids() {
    let dir = tempfile::tempdir().unwrap();
    let v32 = v32_folder(dir.path());
    let golden = program::workspace().join("tests/golden/chat");
    let expected = fs::read_to_string(golden.join("v32_weather.txt")).unwrap();
    let weather = golden.join("v32_weather.json");
    let encode = [
        "chat",
        "encode",
        text(&weather),
        "--model",
        text(&v32),
        "--thinking",
    ];
    let printed = program::succeed(&encode).stdout;
    let (shown, ids) = printed.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(shown, expected);
    let ids: Vec<u32> = serde_json::from_str(ids).unwrap();
    let tokenizer = Tokenizer::from_folder(&v32).unwrap();
    assert_eq!(ids, tokenizer.encode(&expected));
    assert_eq!(ids[0], 259);

    let printed = program::succeed(&[&encode[..], &["--json"]].concat()).stdout;
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["text"], expected.as_str());
    assert_eq!(printed["ids"], serde_json::json!(ids));

    let printed = program::succeed(&[&encode[..], &["--keep-reasoning"]].concat()).stdout;
    assert!(printed.contains("<think>已获取两个城市明天的天气信息"));
}

#[test]
fn tools_of_a_request_and_standard_input_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let v32 = v32_folder(dir.path());
    let request = r#"{"messages": [{"role": "user", "content": "2 + 3?"}], "tools": [{"type": "function",
        "function": {"name": "add", "parameters": {}}}]}"#;
    let printed = piped(&["encode", "-", "--model", text(&v32)], request);
    assert!(printed.starts_with("<｜begin▁of▁sentence｜>\n\n## Tools\n"));
    assert!(printed.contains(
        "\n<functions>\n{\"name\": \"add\", \"parameters\": {}}\n</functions>\n<｜User｜>2 + 3?"
    ));
    assert!(printed.contains("<｜Assistant｜></think>\n[259, 10, 10, 35, 35, "));
}

#[test]
fn a_completion_is_printed_as_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let v32 = v32_folder(dir.path());
    let parse = ["parse", "--model", text(&v32), "--thinking"];
    let completion = "R</think>C\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n\n\
                      </｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>";
    let expected = "{\"role\": \"assistant\", \"content\": \"C\", \"reasoning_content\": \"R\", \
                    \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \
                    \"arguments\": \"{}\"}}]}\n";
    assert_eq!(piped(&parse, completion), expected);
    assert_eq!(piped(&parse, &format!("{completion}\n")), expected);
    let ids = Tokenizer::from_folder(&v32).unwrap().encode(completion);
    let with_ids = [&parse[..], &["--ids"]].concat();
    assert_eq!(piped(&with_ids, &format!("{ids:?}\n")), expected);
    // What was parsed can be encoded again.
    let conversation = format!("[{{\"role\": \"user\", \"content\": \"q\"}}, {expected}]");
    let printed = piped(
        &["encode", "-", "--model", text(&v32), "--thinking"],
        &conversation,
    );
    assert!(printed.contains(completion));
}

#[test]
fn other_families_use_their_template() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("chatml");
    fs::create_dir(&folder).unwrap();
    Tokenizer::byte_level().save(&folder).unwrap();
    let conversation = r#"[{"role": "user", "content": "hi"}]"#;
    let printed = piped(&["encode", "-", "--model", text(&folder)], conversation);
    assert!(
        printed.starts_with("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n[256, 117, ")
    );
    let parse = ["parse", "--model", text(&folder)];
    assert_eq!(
        piped(&parse, "x<|im_end|>\n"),
        "{\"role\": \"assistant\", \"content\": \"x\", \"reasoning_content\": \"\", \"tool_calls\": []}\n"
    );
    let call = "x\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call><|im_end|>";
    let message = piped(&parse, call);
    assert!(
        message.contains("\"name\": \"f\"") && message.contains("\\\"a\\\": 1"),
        "{message}"
    );
    let file = dir.path().join("completion.txt");
    fs::write(&file, "x<tool_call>{\"name\": 3}</tool_call><|im_end|>").unwrap();
    let parse = [&["chat", "parse", text(&file)], &parse[1..]].concat();
    refused(&parse, WRONG_INPUT, &["completion.txt", "name"]);
    let gguf = program::workspace().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let printed = piped(&["encode", "-", "--model", text(&gguf)], conversation);
    assert!(printed.contains("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n[1, "));
}

#[test]
fn wrong_conversations_are_named_by_file_and_message() {
    let dir = tempfile::tempdir().unwrap();
    let v32 = v32_folder(dir.path());
    let file = dir.path().join("conversation.json");
    let tool = r#"{"type": "function", "function": {"name": "f"}}"#;
    for (content, problem) in [
        (
            "[{]".to_string(),
            "not JSON: line 1, column 3: expected a key in double quotes, found ']'",
        ),
        (
            r#"[{"role": "user"}]"#.to_string(),
            "messages[0] has no content; a user message needs it",
        ),
        // Found when it is rendered, and numbered as in the file although a message is put in front.
        (
            format!(
                r#"{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "a"}}], "tools": [{tool}]}}"#
            ),
            "messages[1] has neither reasoning_content nor tool_calls",
        ),
    ] {
        fs::write(&file, content).unwrap();
        let encode = [
            "chat",
            "encode",
            text(&file),
            "--model",
            text(&v32),
            "--thinking",
        ];
        refused(
            &encode,
            WRONG_INPUT,
            &[&format!("{}: {problem}", text(&file))],
        );
    }
    let missing = dir.path().join("missing.json");
    let encode = ["chat", "encode", text(&missing), "--model", text(&v32)];
    refused(
        &encode,
        WRONG_INPUT,
        &["can't read", "missing.json", "No such file"],
    );
    // A mode that a template can't have.
    fs::write(&file, r#"[{"role": "user", "content": "q"}]"#).unwrap();
    let chatml = dir.path().join("chatml");
    fs::create_dir(&chatml).unwrap();
    let encode = ["chat", "encode", text(&file), "--model", text(&chatml)];
    refused(
        &encode,
        WRONG_INPUT,
        &["chatml has no tokenizer.json", "--model"],
    );
    Tokenizer::byte_level().save(&chatml).unwrap();
    let encode = [&encode[..], &["--thinking", "--keep-reasoning"]].concat();
    refused(&encode, WRONG_INPUT, &["chat template decides itself"]);
}

#[test]
fn wrong_completions_are_named_by_file_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let v32 = v32_folder(dir.path());
    let file = dir.path().join("completion");
    let parse = ["chat", "parse", text(&file), "--model", text(&v32)];
    let with_ids = [&parse[..], &["--ids"]].concat();
    for (args, content, problem) in [
        (
            &parse[..],
            "é",
            "after 1 characters (2 bytes) of the completion: expected \"<｜end▁of▁sentence｜>\"",
        ),
        (&parse, "R</think>x", "\"</think>\" inside the content"),
        (
            &with_ids,
            "[97, 400]",
            "id 400 is no token of this tokenizer",
        ),
        (&with_ids, "97 98", "not a list of ids [1, 2, 3]: "),
    ] {
        fs::write(&file, content).unwrap();
        refused(args, WRONG_INPUT, &[&format!("{}: ", text(&file)), problem]);
    }
}
