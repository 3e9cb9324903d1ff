//! What stands between two turns of the assistant: the results of its calls and the opening of its next turn.
//!
//! A sampled turn is never encoded again. The text of the conversation with the new messages begins with that of the
//! conversation without them; what is left, and what the format writes behind a turn's stop token, follows the sampled
//! tokens.

use super::message::Message;
use super::{ChatOptions, tagged_calls};
use crate::chat::ChatFormat;
use crate::tokenizer::{Tokenizer, TokenizerError};

impl Tokenizer {
    /// Token ids that follow the stop token of the assistant's turn that ends `messages`, up to where it speaks
    /// again behind `new`: tools' results.
    ///
    /// # Errors
    /// No chat format, a conversation that it can't show, or one whose text changes before the new messages.
    pub fn follow_up(
        &self,
        messages: &[Message],
        new: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        let all: Vec<Message> = messages.iter().chain(new).cloned().collect();
        let (before, whole) = (
            self.render_chat(messages, options)?,
            self.render_chat(&all, options)?,
        );
        let end = self.end_of_turn()?;
        let turn_end = before.rfind(end).map(|at| at + end.len());
        match (turn_end, whole.strip_prefix(before.as_str())) {
            (Some(turn_end), Some(rest)) => {
                Ok(self.encode(&format!("{}{rest}", &before[turn_end..])))
            }
            _ => Err(TokenizerError::ChatTemplate(
                "the conversation's text changes before the tools' results, so that they can't follow a turn that was \
                 sampled"
                    .to_string(),
            )),
        }
    }

    /// What the policy writes to say `message`, an assistant's of content and calls, without the stop token.
    ///
    /// # Errors
    /// No chat format, or a call whose arguments are no JSON object.
    pub fn turn_text(&self, message: &Message) -> Result<String, TokenizerError> {
        let Message::Assistant(message) = message else {
            return Ok(message.content().to_string());
        };
        let calls = match self.chat_format()? {
            ChatFormat::DeepSeekV32 => super::deepseek_v32::calls_text(&message.tool_calls)?,
            ChatFormat::Template(_) => tagged_calls::calls_text(&message.tool_calls),
        };
        Ok(format!("{}{calls}", message.content))
    }

    /// The text of the token that ends a turn.
    fn end_of_turn(&self) -> Result<&str, TokenizerError> {
        match self.chat_format()? {
            ChatFormat::DeepSeekV32 => Ok(super::deepseek_v32::END),
            ChatFormat::Template(_) => self.eos_token().ok_or_else(|| {
                TokenizerError::ChatTemplate(
                    "tokenizer_config.json names no eos_token, which ends a turn".to_string(),
                )
            }),
        }
    }

    /// `messages` as a template can show them that knows neither tools nor calls: tools told in the system
    /// message, calls written behind the content. As they are for any other format.
    ///
    /// # Errors
    /// No chat format.
    pub fn with_tools_as_text(
        &self,
        mut messages: Vec<Message>,
    ) -> Result<Vec<Message>, TokenizerError> {
        let ChatFormat::Template(template) = self.chat_format()? else {
            return Ok(messages);
        };
        let (shows_tools, shows_calls) =
            (template.contains("tools"), template.contains("tool_calls"));
        for message in &mut messages {
            match message {
                Message::System(instructions) | Message::Developer(instructions)
                    if !shows_tools && !instructions.tools.is_empty() =>
                {
                    let tools = std::mem::take(&mut instructions.tools);
                    let text = tagged_calls::tools_text(&tools);
                    if !instructions.content.is_empty() {
                        instructions.content += "\n\n";
                    }
                    instructions.content += &text;
                }
                Message::Assistant(message) if !shows_calls && !message.tool_calls.is_empty() => {
                    let calls = std::mem::take(&mut message.tool_calls);
                    message.content += &tagged_calls::calls_text(&calls);
                }
                _ => {}
            }
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{AssistantMessage, Instructions, ToolCall, ToolDefinition, json::Json};

    fn opening() -> Vec<Message> {
        let function = Json::parse(r#"{"name": "look", "description": "Looks."}"#).expect("JSON");
        vec![
            Message::System(Instructions {
                content: "Be brief.".to_string(),
                tools: vec![ToolDefinition { function }],
                response_format: None,
            }),
            Message::user("What is there?"),
        ]
    }

    fn call() -> Message {
        Message::Assistant(AssistantMessage {
            content: "Let me see.".to_string(),
            reasoning_content: String::new(),
            tool_calls: vec![ToolCall {
                id: None,
                name: "look".to_string(),
                arguments: "{}".to_string(),
            }],
        })
    }

    #[test]
    fn results_follow_the_stop_token_of_a_sampled_turn() {
        let tokenizer = Tokenizer::byte_level();
        let options = ChatOptions::default();
        let messages = tokenizer.with_tools_as_text(opening()).expect("ChatML");
        let prompt = tokenizer.chat(&messages, &options).expect("it is shown");
        let text = tokenizer.decode_with_special(&prompt).expect("ids");
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief.\n\nTools:\n{\"name\": \"look\", \"description\": \"Looks.\"}\n\
             To call a tool, write <tool_call>{\"name\": NAME, \"arguments\": {...}}</tool_call><|im_end|>\n\
             <|im_start|>user\nWhat is there?<|im_end|>\n<|im_start|>assistant\n"
        );
        let mut messages = messages;
        messages.push(call());
        let messages = tokenizer.with_tools_as_text(messages).expect("ChatML");
        let given = tokenizer.follow_up(&messages, &[Message::tool("a cat")], &options);
        let given = tokenizer
            .decode_with_special(&given.expect("it follows"))
            .expect("ids");
        assert_eq!(
            given,
            "\n<|im_start|>tool\na cat<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn a_template_that_rewrites_the_past_is_refused() {
        let mut tokenizer = Tokenizer::byte_level();
        tokenizer.set_chat_template(
            "{{ messages|length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
        );
        let messages = [Message::user("a"), Message::assistant("b")];
        let options = ChatOptions::default();
        let refused = tokenizer.follow_up(&messages, &[Message::tool("c")], &options);
        let error = refused.expect_err("its text changes").to_string();
        assert!(
            error.contains("changes before the tools' results"),
            "{error}"
        );
    }
}
