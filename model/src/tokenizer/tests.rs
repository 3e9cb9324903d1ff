use super::*;
use crate::chat::{ChatOptions, Message};

/// 256 byte symbols, then six merged tokens and one special token.
fn vocabulary(pre_tokenizer: &str) -> GgufVocabulary {
    let mut tokens: Vec<String> = (0..=255)
        .map(|byte| byte_symbol(byte).to_string())
        .collect();
    tokens.extend(["Ġa", "Ġab", "ab", "'s", "12", "ĠĠ", "<end>", "<tool>"].map(String::from));
    let mut token_types = vec![1; 262];
    token_types.extend([3, 4]);
    GgufVocabulary {
        tokens,
        merges: ["Ġ a", "a b", "Ġa b", "' s", "1 2", "Ġ Ġ"]
            .map(String::from)
            .to_vec(),
        token_types,
        pre_tokenizer: pre_tokenizer.to_string(),
        eos_token_id: Some(262),
        ..GgufVocabulary::default()
    }
}

fn build(vocabulary: GgufVocabulary) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(vocabulary, Path::new("test.gguf"))
}

fn problem(change: impl Fn(&mut GgufVocabulary)) -> String {
    let mut vocabulary = vocabulary("smollm");
    change(&mut vocabulary);
    build(vocabulary).unwrap_err().to_string()
}

/// Ids made by the Python package tokenizers with the same tables.
#[test]
fn both_pre_tokenizers_give_the_ids_of_the_python_package() {
    let texts = ["ab's 12", "   ab", "e\u{301} ab"];
    let smollm = build(vocabulary("smollm")).unwrap();
    let expected: [&[u32]; 3] = [&[258, 259, 32, 49, 50], &[261, 257], &[101, 204, 129, 257]];
    assert_eq!(texts.map(|text| smollm.encode(text)), expected);
    let qwen2 = build(vocabulary("qwen2")).unwrap();
    // NFC makes one letter of e and the accent.
    let expected: [&[u32]; 3] = [&[258, 259, 32, 49, 50], &[261, 257], &[195, 169, 257]];
    assert_eq!(texts.map(|text| qwen2.encode(text)), expected);
}

#[test]
fn special_tokens_are_recognised_and_left_out_of_text() {
    let tokenizer = build(vocabulary("smollm")).unwrap();
    assert_eq!(tokenizer.encode("ab<end><tool>"), [258, 262, 263]);
    // Type 4 is added but not special: it belongs to the text.
    assert_eq!(tokenizer.decode(&[258, 262, 263]), "ab<tool>");
    assert_eq!(tokenizer.eos_token(), Some("<end>"));
    assert_eq!(tokenizer.token_id("<end>"), Some(262));
    assert_eq!(tokenizer.token_id("<nope>"), None);
    assert_eq!(tokenizer.vocab_size(), 264);
}

#[test]
fn a_token_stands_for_its_bytes_even_for_a_part_of_a_character() {
    let tokenizer = build(vocabulary("smollm")).unwrap();
    let bytes = |id: u32| tokenizer.token_bytes(id).unwrap();
    for byte in 0..=255 {
        assert_eq!(bytes(u32::from(byte)), [byte]);
    }
    // A merged one, a special one, one added as text.
    assert_eq!(bytes(257), b" ab");
    assert_eq!(bytes(262), b"<end>");
    assert_eq!(bytes(263), b"<tool>");
    assert_eq!(tokenizer.token_bytes(264), None);
    // A letter that stands for no byte: the token is its text.
    let mut other = vocabulary("smollm");
    other.tokens[263] = "<→é>".to_string();
    let other = build(other).unwrap();
    assert_eq!(other.token_bytes(263).unwrap(), "<→é>".as_bytes());
}

#[test]
fn contradictory_tables_are_refused() {
    assert!(problem(|v| v.tokens[1] = v.tokens[0].clone()).contains("lists a token twice"));
    assert!(problem(|v| v.merges.push("ab".to_string())).contains("'ab' is not two tokens"));
    assert!(problem(|v| v.merges.push("zz y".to_string())).contains("do not fit the vocabulary"));
    assert!(problem(|v| v.bos_token_id = Some(264)).contains("264 is outside the vocabulary"));
    assert!(problem(|v| v.pre_tokenizer = "llama-bpe".to_string()).contains("'llama-bpe'"));
}

#[test]
fn byte_level_ids_are_the_bytes() {
    let tokenizer = Tokenizer::byte_level();
    assert_eq!(tokenizer.vocab_size(), 259);
    let text = "a 1\n\u{e9}\u{0}<|im_end|>";
    assert_eq!(tokenizer.encode(text), [97, 32, 49, 10, 0xc3, 0xa9, 0, 257]);
    for byte in 0..=127 {
        assert_eq!(
            tokenizer.encode(&char::from(byte).to_string()),
            [u32::from(byte)]
        );
    }
    let everything: String = (0..0x2000).filter_map(char::from_u32).collect();
    assert_eq!(tokenizer.decode(&tokenizer.encode(&everything)), everything);
    assert_eq!(tokenizer.decode(&[97, 0xc3, 258, 98]), "a\u{fffd}b");
    assert_eq!(tokenizer.decode(&[97, 300]), "a");
}

#[test]
fn byte_level_speaks_chatml() {
    let tokenizer = Tokenizer::byte_level();
    let ids = tokenizer
        .chat(&[Message::user("hi")], &ChatOptions::default())
        .unwrap();
    let expected = [
        &[256][..],
        &tokenizer.encode("user\nhi"),
        &[257, 10, 256],
        &tokenizer.encode("assistant\n"),
    ];
    assert_eq!(ids, expected.concat());
}

#[test]
fn a_saved_tokenizer_is_read_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut tables = vocabulary("qwen2");
    tables.chat_template = Some("{{ messages[0].content }}{{ eos_token }}".to_string());
    for tokenizer in [build(tables).unwrap(), Tokenizer::byte_level()] {
        tokenizer.save(folder.path()).unwrap();
        let again = Tokenizer::from_folder(folder.path()).unwrap();
        let text = "ab's  12 <end>é\u{301}<|im_end|>";
        assert_eq!(again.encode(text), tokenizer.encode(text));
        assert_eq!(again.settings, tokenizer.settings);
        assert_eq!(again.vocab_size(), tokenizer.vocab_size());
        let messages = [Message::user("ab")];
        let options = ChatOptions::default();
        assert_eq!(
            again.chat(&messages, &options).unwrap(),
            tokenizer.chat(&messages, &options).unwrap()
        );
    }
}

#[test]
fn every_form_of_tokenizer_config_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    build(vocabulary("smollm"))
        .unwrap()
        .save(folder.path())
        .unwrap();
    let config = r#"{"eos_token": {"content": "<end>", "special": true}, "bos_token": null,
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
    std::fs::write(path("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.eos_token(), Some("<end>"));
    assert_eq!(tokenizer.bos_token(), None);
    assert_eq!(tokenizer.chat_template(), Some("yes"));

    std::fs::write(path("chat_template.jinja"), "from its own file").unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.chat_template(), Some("from its own file"));

    std::fs::write(path("tokenizer_config.json"), r#"{"eos_token": "<gone>"}"#).unwrap();
    let error = Tokenizer::from_folder(folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("eos_token '<gone>'"), "{error}");
}

#[test]
fn truncation_and_padding_in_the_file_are_not_applied() {
    let folder = tempfile::tempdir().unwrap();
    let mut tokenizer = build(vocabulary("smollm")).unwrap();
    let two = tokenizers::TruncationParams {
        max_length: 2,
        ..Default::default()
    };
    tokenizer.inner.with_truncation(Some(two)).unwrap();
    assert_eq!(tokenizer.encode("xyz").len(), 2);
    tokenizer.save(folder.path()).unwrap();
    let again = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(again.encode("xyz").len(), 3);
}

#[test]
fn an_added_token_whose_id_would_change_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    build(vocabulary("smollm"))
        .unwrap()
        .save(folder.path())
        .unwrap();
    let path = folder.path().join("tokenizer.json");
    let file = std::fs::read_to_string(&path).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&file).unwrap();
    let mut token = file["added_tokens"][0].clone();
    (token["id"], token["content"]) = (270.into(), "<far>".into());
    file["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(&path, file.to_string()).unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("'<far>' has id 270, but would get 264: added tokens must follow the vocabulary and each other without a gap"),
        "{error}"
    );
}

#[test]
fn ids_without_a_token_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = r#"{"version": "1.0", "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 4}, "merges": []}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 5);
    assert_eq!(tokenizer.unused_ids(), [2, 3]);
    assert!(Tokenizer::byte_level().unused_ids().is_empty());
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = || {
        Tokenizer::from_folder(folder.path())
            .unwrap_err()
            .to_string()
    };
    assert!(
        error().contains("tokenizer.json: No such file"),
        "{}",
        error()
    );
    std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(error().contains("tokenizer.json: "), "{}", error());
    let word_level = r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}"#;
    std::fs::write(folder.path().join("tokenizer.json"), word_level).unwrap();
    assert!(error().contains("not a BPE tokenizer"), "{}", error());
}
