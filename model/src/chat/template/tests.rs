//! Rendered texts against those of transformers, and what templates refuse.

use std::path::Path;

use super::*;
use crate::tokenizer::GgufVocabulary;

/// The template of SmolLM2-135M-Instruct.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Bytes are tokens, in the byte-level alphabet where it differs; enough for ASCII.
fn tokenizer(template: Option<&str>, specials: &[&str]) -> Tokenizer {
    let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
    tokens.extend(["\u{120}".to_string(), "\u{10a}".to_string()]); // space, newline
    let mut token_types = vec![1; tokens.len()];
    tokens.extend(specials.iter().map(|s| s.to_string()));
    token_types.resize(tokens.len(), 3);
    let eos = tokens.iter().position(|t| t == "<|im_end|>");
    let vocabulary = GgufVocabulary {
        tokens,
        token_types,
        pre_tokenizer: "smollm".to_string(),
        eos_token_id: eos.map(|id| id as u32),
        chat_template: template.map(String::from),
        ..GgufVocabulary::default()
    };
    Tokenizer::from_gguf(vocabulary, Path::new("test.gguf")).unwrap()
}

const CHATML_TOKENS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

fn rendered(template: &str, messages: &[Message]) -> String {
    tokenizer(Some(template), &CHATML_TOKENS)
        .render_chat(messages, &ChatOptions::default())
        .unwrap()
}

#[test]
fn rendering_equals_transformers_on_the_template_of_smollm2() {
    let tokenizer = tokenizer(Some(SMOLLM2), &CHATML_TOKENS);
    let options = ChatOptions::default();
    let question = [Message::user("What is 2 + 3?")];
    assert_eq!(
        tokenizer.render_chat(&question, &options).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    );
    let conversation = [
        Message::system("Be brief."),
        Message::user("Hi"),
        Message::assistant("Hello!"),
    ];
    assert_eq!(
        tokenizer.render_chat(&conversation, &options).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\nHello!<|im_end|>\n"
    );
}

/// Expected texts made by transformers 5.17, `apply_chat_template(..., tokenize=False)`.
#[test]
fn rendering_equals_transformers_on_harder_templates() {
    let messages = [
        Message::system(" be <kind> & 'brief' "),
        Message::user("a plain 'task'\n"),
        Message::assistant("<think>x</think>\n\nstop banana"),
        Message::user(""),
        Message::user("last"),
    ];
    for (template, expected) in [
        // blocks on own lines
        (
            "{{ eos_token }}\n{% for message in messages %}\n    {% if message.role == 'user' %}\nQ: {{ message.content | trim }}\n    {%- elif message['role'] == 'system' %}\nS: {{ message['content'].strip().upper() }}\n    {% else %}\nA: {{ message.content.split('</think>')[-1].lstrip('\\n') }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\nA:\n{% endif %}\n",
            "<|im_end|>\nS: BE <KIND> & 'BRIEF'\nQ: a plain 'task'A: stop banana\nQ: Q: lastA:\n",
        ),
        // namespace and loop controls
        (
            "{% set ns = namespace(n=0, last='') %}\n{%- for m in messages -%}\n  {%- if m.content == '' %}{% continue %}{% endif %}\n  {%- set ns.n = ns.n + 1 %}{% set ns.last = m['role'] %}\n  {{- loop.index0 ~ ':' ~ m['role'][:1] ~ '=' ~ m.content.replace('a', 'b') ~ ';' }}\n  {%- if 'stop' in m.content %}{% break %}{% endif %}\n{%- endfor -%}\n{{ ns.n }}{{ ns.last.title() }}{% if tools is none %} no tools{% endif %}{% if not unheard_of is defined %} undefined{% endif %}{{ messages | length }}{{ messages[-1].get('x', 'none') }}",
            "0:s= be <kind> & 'brief' ;1:u=b plbin 'tbsk'\n;2:a=<think>x</think>\n\nstop bbnbnb;3Assistant no tools undefined5none",
        ),
        // markup is not escaped
        (
            "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ '<b>&' }}{% endif %}{% endfor %}",
            " be <kind> & 'brief' <b>&a plain 'task'\n<b>&<think>x</think>\n\nstop banana<b>&<b>&last",
        ),
    ] {
        assert_eq!(rendered(template, &messages), expected);
    }
}

#[test]
fn a_refused_conversation_is_an_error_with_the_templates_reason() {
    let template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}";
    let error = tokenizer(Some(template), &[])
        .chat(&[Message::system("x")], &ChatOptions::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("System role not supported"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_without_template_says_so() {
    let error = tokenizer(None, &[]).chat(&[Message::user("x")], &ChatOptions::default());
    assert!(matches!(error, Err(TokenizerError::NoChatTemplate)));
}

#[test]
fn a_template_of_another_model_is_refused() {
    let error = tokenizer(Some(SMOLLM2), &["<|im_end|>"])
        .chat(&[Message::user("x")], &ChatOptions::default())
        .unwrap_err();
    assert!(
        matches!(&error, TokenizerError::UnknownSpecialToken(t) if t == "<|im_start|>"),
        "{error}"
    );
    // What a user types is no fault of the template.
    let tokenizer = tokenizer(Some(SMOLLM2), &CHATML_TOKENS);
    assert!(
        tokenizer
            .chat(&[Message::user("<|nope|>")], &ChatOptions::default())
            .is_ok()
    );
}

#[test]
fn special_tokens_become_single_ids() {
    let tokenizer = tokenizer(Some(SMOLLM2), &CHATML_TOKENS);
    let messages = [Message::system("a"), Message::user("b")];
    let ids = tokenizer.chat(&messages, &ChatOptions::default()).unwrap();
    let (start, end) = (96, 97);
    assert_eq!(ids.iter().filter(|id| **id == start).count(), 3);
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 2);
    assert_eq!(tokenizer.decode(&ids), "system\na\nuser\nb\nassistant\n");
}

/// Tools, tool calls and reasoning, as templates of several families write them.
const TOOLS: &str = "{%- if tools %}\n{{- '<tools>' }}\n{%- for tool in tools %}\n{{- '\\n' ~ (tool | tojson) }}\n{%- endfor %}\n{{- '\\n</tools>\\n' ~ (tools[0].function.parameters | tojson(indent=2)) ~ '\\n' }}\n{%- for k, v in tools[0].function.parameters.properties.items() %}{{ k ~ '=' ~ v.type ~ ' ' }}{% endfor %}\n{%- endif %}\n{%- for m in messages %}\n{{- '\\n[' ~ m.role ~ ']' }}\n{%- if m.role == 'assistant' and m.reasoning_content is defined %}{{ '(' ~ m.reasoning_content ~ ')' }}{% endif %}\n{{- m.content }}\n{%- for call in m.tool_calls or [] %}\n{%- if call.function %}{% set call = call.function %}{% endif %}\n{{- '<call>' ~ call.name ~ ' ' }}\n{%- if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson(ensure_ascii=False) }}{% endif %}\n{%- for k, v in call.arguments | items %}{{ ' ' ~ k }}{% endfor %}\n{%- endfor %}\n{%- if m.tool_call_id is defined %}{{ '#' ~ m.tool_call_id }}{% endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}{{ '\\n[assistant]' }}\n{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}\n{%- endif %}";

/// Expected text made by transformers 5.17, `render_jinja_template(..., enable_thinking=True)`; with
/// False it goes on with `<think></think>`. The arguments were given to it as an object.
#[test]
fn tools_and_calls_equal_those_of_transformers() {
    let conversation = r#"[{"role": "system", "content": "S", "tools": [{"type": "function", "function": {"name": "f",
        "description": "<b> & 'q' é", "parameters": {"type": "object", "properties": {"z": {"type": "integer",
        "default": 1.0}, "a": {"type": "string"}}, "required": ["z"], "x": []}}}]},
        {"role": "user", "content": "u"},
        {"role": "assistant", "reasoning_content": "r", "tool_calls": [{"id": "c1", "type": "function", "function":
        {"name": "f", "arguments": "{\"z\": 3, \"a\": \"多\\n\\\"x\\\"\", \"l\": [true, null, 1e-7, 12345678901234567890]}"}}]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"}]"#;
    let messages = super::super::Conversation::parse(conversation)
        .unwrap()
        .messages;
    let tokenizer = tokenizer(Some(TOOLS), &CHATML_TOKENS);
    let expected = "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"<b> & 'q' é\", \"parameters\": {\"type\": \"object\", \"properties\": {\"z\": {\"type\": \"integer\", \"default\": 1.0}, \"a\": {\"type\": \"string\"}}, \"required\": [\"z\"], \"x\": []}}}\n</tools>\n{\n  \"type\": \"object\",\n  \"properties\": {\n    \"z\": {\n      \"type\": \"integer\",\n      \"default\": 1.0\n    },\n    \"a\": {\n      \"type\": \"string\"\n    }\n  },\n  \"required\": [\n    \"z\"\n  ],\n  \"x\": []\n}\nz=integer a=string \n[system]S\n[user]u\n[assistant](r)<call>f {\"z\": 3, \"a\": \"多\\n\\\"x\\\"\", \"l\": [true, null, 1e-07, 12345678901234567890]} z a l\n[tool]5#c1\n[assistant]";
    for (thinking, rest) in [(Thinking::On, ""), (Thinking::Off, "<think></think>")] {
        let options = ChatOptions {
            thinking,
            ..ChatOptions::default()
        };
        let text = tokenizer.render_chat(&messages, &options).unwrap();
        assert_eq!(text, format!("{expected}{rest}"));
    }
}

#[test]
fn what_a_template_can_not_show_is_an_error() {
    let problem = |template: &str, conversation: &str| {
        let messages = super::super::Conversation::parse(conversation)
            .unwrap()
            .messages;
        let tokenizer = tokenizer(Some(template), &CHATML_TOKENS);
        let error = tokenizer.render_chat(&messages, &ChatOptions::default());
        error.unwrap_err().to_string()
    };
    let schema = r#"[{"role": "user", "content": "q"}, {"role": "system", "response_format": {"type": "object"}}]"#;
    let found = problem(SMOLLM2, schema);
    assert!(
        found.starts_with("messages[1] has a response_format, which chat templates can't show"),
        "{found}"
    );
    let user = r#"[{"role": "user", "content": "q"}]"#;
    let found = problem("{{ nothing | tojson }}", user);
    assert!(
        found.contains("tojson can't write a value that is undefined"),
        "{found}"
    );
    let found = problem("{{ messages | tojson(ensure_ascii=True) }}", user);
    assert!(
        found.contains("ensure_ascii=True is not supported"),
        "{found}"
    );
}
