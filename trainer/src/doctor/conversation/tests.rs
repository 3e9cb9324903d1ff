//! Chat templates with one fault each, on the byte-level tokenizer.

use std::fs;

use model::ModelConfig;
use serde_json::{Value, json};

use super::*;

/// ChatML with `head` before what an assistant says and `prompt` where its next turn is opened.
fn template(head: &str, prompt: &str) -> String {
    format!(
        "{{% for m in messages %}}{{% if m.role == 'assistant' %}}{head}{{{{ m.content }}}}<|im_end|>\n\
         {{% else %}}<|im_start|>{{{{ m.role + '\\n' + m.content }}}}<|im_end|>{{{{ '\\n' }}}}{{% endif %}}{{% endfor %}}\
         {{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )
}

/// The byte-level tokenizer with `template`, and with `merge` as one more token.
fn tokenizer(template: Option<&str>, merge: Option<[&str; 2]>) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::byte_level().save(dir.path()).unwrap();
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = dir.path().join(name);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    edit("tokenizer_config.json", &|settings| match template {
        Some(template) => settings["chat_template"] = json!(template),
        None => {
            settings.as_object_mut().unwrap().remove("chat_template");
        }
    });
    if let Some([a, b]) = merge {
        edit("tokenizer.json", &|file| {
            file["model"]["vocab"][format!("{a}{b}")] = json!(259);
            file["model"]["merges"] = json!([[a, b]]);
        });
    }
    Tokenizer::from_folder(dir.path()).unwrap()
}

fn shape(eos: u32) -> ModelConfig {
    ModelConfig {
        vocab_size: 260,
        eos_token_ids: vec![eos],
        ..ModelConfig::sizeless_llama()
    }
}

fn found(tokenizer: &Tokenizer, config: &ModelConfig) -> Vec<Finding> {
    let exchange = |question: &str, answer: &str| Exchange {
        question: question.to_string(),
        answer: answer.to_string(),
    };
    let exchanges = [
        exchange("What is 5 + 6?", "11"),
        exchange("Wie groß ist 7 · 2?", "7 · 2 = 14, so 14"),
    ];
    conversation_findings(tokenizer, config, Some("Answer with a number."), &exchanges)
}

#[track_caller]
fn assert_template_fails(tokenizer: &Tokenizer, cause: &str) -> Finding {
    let found = found(tokenizer, &shape(257));
    let finding = found.into_iter().find(|f| f.check == "chat template");
    let finding = finding.unwrap();
    assert!(finding.has_failed(), "{finding}");
    let named = finding.cause.as_deref().unwrap();
    assert!(named.contains(cause), "{named}");
    assert!(finding.advice.as_deref().unwrap().contains("chat_template"));
    finding
}

const OPENING: &str = "<|im_start|>assistant{{ '\\n' }}";

#[test]
fn a_sound_template_passes_without_notes() {
    for tokenizer in [
        Tokenizer::byte_level(),
        tokenizer(Some(&template(OPENING, OPENING)), None),
    ] {
        let found = found(&tokenizer, &shape(257));
        let checks: Vec<&str> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, ["tokenizer", "stop tokens", "chat template"]);
        assert!(found.iter().all(|f| f.state == super::super::State::Ok));
        assert_eq!(found[1].measured, "<|im_end|> (257)");
    }
}

#[test]
fn a_template_that_rewrites_the_opening_of_an_answer_is_named() {
    let rewrites = template("<|im_start|>assistant:{{ '\\n' }}", OPENING);
    let finding = assert_template_fails(&tokenizer(Some(&rewrites), None), "rewrites or strips");
    let parts = finding.measured;
    assert!(parts.contains("part at token"), "{parts}");
    assert!(
        parts.contains("ant\\n") && parts.contains("ant:\\n"),
        "{parts}"
    );
}

#[test]
fn a_template_that_strips_is_named() {
    // The line break after the role, and all turns but the last.
    let strips = template("<|im_start|>assistant", OPENING);
    assert_template_fails(&tokenizer(Some(&strips), None), "rewrites or strips");
    let last = "{% for m in messages[-1:] %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>\n{% endfor %}\
                {% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}";
    assert_template_fails(&tokenizer(Some(last), None), "rewrites or strips");
}

#[test]
fn a_template_whose_prompt_merges_with_the_answer_is_named() {
    let colon = "<|im_start|>assistant:";
    let merges = template(colon, colon);
    let finding = assert_template_fails(
        &tokenizer(Some(&merges), Some([":", "1"])),
        "re-tokenises the prompt",
    );
    assert!(finding.figures["common_tokens"] > 10.0);
    // Without the merge the same template is sound.
    let found = found(&tokenizer(Some(&merges), None), &shape(257));
    assert!(!found.iter().any(Finding::has_failed));
}

#[test]
fn a_template_that_can_not_show_an_answer_is_named() {
    let refuses = template("{{ raise_exception('no answers here') }}", OPENING);
    let finding = assert_template_fails(&tokenizer(Some(&refuses), None), "can't show");
    assert!(finding.measured.contains("no answers here"), "{finding}");
    let unknown = template("<|start|>", OPENING);
    let finding = assert_template_fails(&tokenizer(Some(&unknown), None), "can't show");
    assert!(finding.measured.contains("<|start|>"), "{finding}");
    assert_template_fails(&tokenizer(None, None), "can't show");
}

#[test]
fn an_answer_that_ends_with_no_stop_token_is_named() {
    let found = found(&Tokenizer::byte_level(), &shape(258));
    let finding = found.iter().find(|f| f.check == "end of answers").unwrap();
    assert!(finding.has_failed());
    assert!(
        finding.measured.contains("ends an answer with <|im_end|>"),
        "{finding}"
    );
}

#[test]
fn a_stop_token_that_can_never_be_sampled_is_named() {
    // Beyond the tokenizer; beyond the output head.
    let small = ModelConfig {
        vocab_size: 200,
        ..shape(257)
    };
    for config in [shape(300), small] {
        let found = found(&Tokenizer::byte_level(), &config);
        let finding = found.iter().find(|f| f.check == "stop tokens").unwrap();
        assert!(finding.has_failed(), "{finding}");
    }
}

#[test]
fn what_only_later_turns_would_feel_is_a_note() {
    let notes = |head: &str, body: &str| {
        let template = template(head, OPENING).replace("{{ m.content }}", body);
        let found = found(&tokenizer(Some(&template), None), &shape(257));
        assert!(!found.iter().any(Finding::has_failed), "{found:?}");
        found
            .into_iter()
            .filter(|f| f.state == super::super::State::Note)
            .collect::<Vec<_>>()
    };
    let trims = notes(OPENING, "{{ m.content | trim }}");
    assert_eq!(trims.len(), 1);
    assert!(trims[0].measured.contains("strips blanks"), "{}", trims[0]);
    let forgets = notes(OPENING, "{{ m.content if loop.last else '...' }}");
    assert_eq!(forgets.len(), 1);
    assert!(
        forgets[0].measured.contains("rewrites an answer once"),
        "{}",
        forgets[0]
    );
}

#[test]
fn prompts_whose_text_encodes_to_other_ids_are_named() {
    use environments::{Family, FamilyKey, Split};
    let prompt = |id, tokens: &[u32]| Prompt {
        id,
        task: FamilyKey {
            family: Family::Sums,
            split: Split::Train,
            level: 1,
            seed: id,
        }
        .into(),
        question: String::new(),
        tokens: tokens.to_vec(),
    };
    let tokenizer = tokenizer(None, Some([":", "1"]));
    let sound = [prompt(3, &[256, 65, 259])];
    assert!(!prompt_finding(&tokenizer, &sound).has_failed());
    // The two characters of token 259 apart.
    let apart = [prompt(3, &[65]), prompt(4, &[65, 58, 49])];
    let finding = prompt_finding(&tokenizer, &apart);
    assert!(
        finding.has_failed() && finding.measured.contains("prompt 4"),
        "{finding}"
    );
}
