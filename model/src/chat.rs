//! Conversations to token ids, through the model's own Jinja chat template.
//!
//! Rendering follows transformers' `apply_chat_template`: trim_blocks and lstrip_blocks are on,
//! loop controls and Python's string methods work, `raise_exception` fails the rendering, and the
//! special tokens are variables. Left out: tools, documents, `{% generation %}` and `strftime_now`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

impl Message {
    /// A turn of `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }
}

impl Tokenizer {
    /// Token ids of a conversation; with `add_generation_prompt` the opening of the assistant's
    /// next turn follows.
    ///
    /// # Errors
    /// No chat template, a template that fails or refuses the conversation, or one that writes a
    /// `<|...|>` token which the vocabulary lacks.
    pub fn chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let text = self.render_chat(messages, add_generation_prompt)?;
        let written_by_template = |marker: &str| {
            !messages
                .iter()
                .any(|message| message.content.contains(marker) || message.role.contains(marker))
        };
        for marker in markers(&text) {
            if self.token_id(marker).is_none() && written_by_template(marker) {
                return Err(TokenizerError::UnknownSpecialToken(marker.to_string()));
            }
        }
        Ok(self.encode(&text))
    }

    /// The text that [`Tokenizer::chat`] encodes.
    ///
    /// # Errors
    /// No chat template, or one that fails or refuses the conversation.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        let template = self.chat_template().ok_or(TokenizerError::NoChatTemplate)?;
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        let syntax = syntax
            .build()
            .expect("Jinja's own delimiters do not collide");
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        for (key, token) in self.special_tokens() {
            environment.add_global(key.to_string(), token);
        }
        let turns: Vec<Value> = messages
            .iter()
            .map(|Message { role, content }| context! { role, content })
            .collect();
        let context = context! {
            messages => turns,
            add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        environment
            .render_str(template, context)
            .map_err(|error| TokenizerError::ChatTemplate(format!("{error:#}")))
    }
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
mod tests {
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
            .render_chat(messages, true)
            .unwrap()
    }

    #[test]
    fn rendering_equals_transformers_on_the_template_of_smollm2() {
        let tokenizer = tokenizer(Some(SMOLLM2), &CHATML_TOKENS);
        let question = [Message::new("user", "What is 2 + 3?")];
        assert_eq!(
            tokenizer.render_chat(&question, true).unwrap(),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
             Face<|im_end|>\n<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
        );
        let conversation = [
            Message::new("system", "Be brief."),
            Message::new("user", "Hi"),
            Message::new("assistant", "Hello!"),
        ];
        assert_eq!(
            tokenizer.render_chat(&conversation, false).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\nHello!<|im_end|>\n"
        );
    }

    /// Expected texts made by transformers 5.17, `apply_chat_template(..., tokenize=False)`.
    #[test]
    fn rendering_equals_transformers_on_harder_templates() {
        let messages = [
            Message::new("system", " be <kind> & 'brief' "),
            Message::new("user", "a plain 'task'\n"),
            Message::new("assistant", "<think>x</think>\n\nstop banana"),
            Message::new("user", ""),
            Message::new("user", "last"),
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
            .chat(&[Message::new("system", "x")], true)
            .unwrap_err();
        assert!(
            error.to_string().contains("System role not supported"),
            "{error}"
        );
    }

    #[test]
    fn a_tokenizer_without_template_says_so() {
        let error = tokenizer(None, &[]).chat(&[Message::new("user", "x")], true);
        assert!(matches!(error, Err(TokenizerError::NoChatTemplate)));
    }

    #[test]
    fn a_template_of_another_model_is_refused() {
        let error = tokenizer(Some(SMOLLM2), &["<|im_end|>"])
            .chat(&[Message::new("user", "x")], true)
            .unwrap_err();
        assert!(
            matches!(&error, TokenizerError::UnknownSpecialToken(t) if t == "<|im_start|>"),
            "{error}"
        );
        // What a user types is no fault of the template.
        let tokenizer = tokenizer(Some(SMOLLM2), &CHATML_TOKENS);
        assert!(
            tokenizer
                .chat(&[Message::new("user", "<|nope|>")], true)
                .is_ok()
        );
    }

    #[test]
    fn special_tokens_become_single_ids() {
        let tokenizer = tokenizer(Some(SMOLLM2), &CHATML_TOKENS);
        let messages = [Message::new("system", "a"), Message::new("user", "b")];
        let ids = tokenizer.chat(&messages, false).unwrap();
        let (start, end) = (96, 97);
        assert_eq!(ids.iter().filter(|id| **id == start).count(), 2);
        assert_eq!(ids.iter().filter(|id| **id == end).count(), 2);
        assert_eq!(tokenizer.decode(&ids), "system\na\nuser\nb\n");
    }
}
