//! Whether text survives the tokenizer and turns survive the chat template.
//!
//! Training never encodes text again: ids go in, ids come out. But a prompt is rendered once, and what
//! continues it must continue the very tokens that the policy saw. So the ids of a conversation must begin
//! with those of its prompt, and an answer must end with a token that ends a sample.

use model::chat::{ChatOptions, Message};
use model::{ModelConfig, Tokenizer};
use rollout::Prompt;

use super::finding::Finding;

/// Characters shown around the place where two texts part.
const SHOWN: usize = 40;

/// A question with a worked answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What is asked.
    pub question: String,
    /// What solves it.
    pub answer: String,
}

/// Checks of `tokenizer` and its chat template on exchanges, as a run with `system` would render them.
pub fn conversation_findings(
    tokenizer: &Tokenizer,
    config: &ModelConfig,
    system: Option<&str>,
    exchanges: &[Exchange],
) -> Vec<Finding> {
    let mut found = vec![round_trip(tokenizer, exchanges)];
    found.extend(stop_tokens(tokenizer, config));
    let turns = Turns { tokenizer, system };
    found.extend(match turns.check(config, exchanges) {
        Ok(findings) => findings,
        Err(error) => vec![
            Finding::failed("chat template", error.clone()).because(
                "the chat template can't show a question with its answer",
                "mend chat_template in tokenizer_config.json (or chat_template.jinja), or take the one of the \
                 model's newest release",
            ),
        ],
    });
    found
}

/// Whether the prompts of a run are what their own text encodes to.
pub fn prompt_finding(tokenizer: &Tokenizer, prompts: &[Prompt]) -> Finding {
    let parts = |prompt: &&Prompt| match tokenizer.decode_with_special(&prompt.tokens) {
        Ok(text) => tokenizer.encode(&text) != prompt.tokens,
        Err(_) => true,
    };
    match prompts.iter().find(parts) {
        None => Finding::ok(
            "prompts",
            format!("{} prompts encode to the same ids again", prompts.len()),
        ),
        Some(prompt) => Finding::failed(
            "prompts",
            format!("the text of prompt {} encodes to other ids", prompt.id),
        )
        .because(
            "the tokenizer does not read back what it writes: its decoder, or a special token that is not one",
            "use the tokenizer.json that belongs to the model",
        ),
    }
}

fn round_trip(tokenizer: &Tokenizer, exchanges: &[Exchange]) -> Finding {
    let texts = exchanges.iter().flat_map(|e| [&e.question, &e.answer]);
    let changed = texts.clone().find_map(|text| {
        let again = tokenizer.decode(&tokenizer.encode(text));
        (again != *text).then_some((text, again))
    });
    match changed {
        None => Finding::ok(
            "tokenizer",
            format!("{} texts survive encoding and decoding", texts.count()),
        ),
        Some((text, again)) => Finding::failed("tokenizer", format!("{text:?} becomes {again:?}"))
            .because(
                "the tokenizer's normaliser or decoder changes text, so answers are not graded as they were sampled",
                "use the tokenizer.json that belongs to the model",
            ),
    }
}

/// `None` where there are none, which no run starts with.
fn stop_tokens(tokenizer: &Tokenizer, config: &ModelConfig) -> Option<Finding> {
    let ids = &config.eos_token_ids;
    let named: Result<Vec<String>, u32> = ids
        .iter()
        .map(|&id| match tokenizer.decode_with_special(&[id]) {
            Ok(text) if (id as usize) < config.vocab_size => Ok(format!("{text} ({id})")),
            _ => Err(id),
        })
        .collect();
    let finding = match named {
        Ok(names) => Finding::ok("stop tokens", names.join(", ")),
        Err(id) => Finding::failed("stop tokens", format!("{id} is no token")).because(
            format!(
                "eos_token_id names id {id}, which the tokenizer lacks or the model has no row for: it is never \
                 sampled"
            ),
            "name the token that ends an answer",
        ),
    };
    (!ids.is_empty()).then_some(finding)
}

struct Turns<'a> {
    tokenizer: &'a Tokenizer,
    system: Option<&'a str>,
}

impl Turns<'_> {
    fn check(&self, config: &ModelConfig, exchanges: &[Exchange]) -> Result<Vec<Finding>, String> {
        let mut found = Vec::new();
        for exchange in exchanges {
            if let Some(failure) = self.continues(exchange)? {
                return Ok(vec![failure]);
            }
        }
        found.push(Finding::ok(
            "chat template",
            format!(
                "{} conversations begin with the ids of their prompts",
                exchanges.len()
            ),
        ));
        if let Some(exchange) = exchanges.first() {
            found.extend(self.ending(config, exchange)?);
            found.extend(self.changes(exchange)?);
        }
        Ok(found)
    }

    fn messages(&self, turns: &[Message]) -> Vec<Message> {
        let system = self.system.map(Message::system);
        system.into_iter().chain(turns.iter().cloned()).collect()
    }

    fn ids(&self, turns: &[Message]) -> Result<Vec<u32>, String> {
        let messages = self.messages(turns);
        let ids = self.tokenizer.chat(&messages, &ChatOptions::default());
        ids.map_err(|error| error.to_string())
    }

    /// A failure where the ids of prompt and answer don't begin with those of the prompt.
    fn continues(&self, exchange: &Exchange) -> Result<Option<Finding>, String> {
        let user = Message::user(&exchange.question);
        let prompt = self.ids(std::slice::from_ref(&user))?;
        let whole = self.ids(&[user, Message::assistant(&exchange.answer)])?;
        if whole.starts_with(&prompt) {
            return Ok(None);
        }
        let same = prompt
            .iter()
            .zip(&whole)
            .take_while(|(a, b)| a == b)
            .count();
        let text = |ids: &[u32]| self.tokenizer.decode_with_special(ids).unwrap_or_default();
        let (prompt_text, whole_text) = (text(&prompt), text(&whole));
        let cause = match whole_text.starts_with(&prompt_text) {
            true => {
                "the chat template re-tokenises the prompt: the text is the same, but the prompt's end and the \
                 answer's beginning become other tokens together than apart"
            }
            false => {
                "the chat template rewrites or strips what the prompt ended with once the answer follows"
            }
        };
        let shown = |ids: &[u32]| {
            let from = same.saturating_sub(4).min(ids.len());
            let text: String = text(&ids[from..]).chars().take(SHOWN).collect();
            format!("{text:?}")
        };
        Ok(Some(
            Finding::failed(
                "chat template",
                format!(
                    "prompt and prompt with answer part at token {same} of {}: {} against {}",
                    prompt.len(),
                    shown(&prompt),
                    shown(&whole)
                ),
            )
            .figure("common_tokens", same as f64)
            .because(
                cause,
                "mend chat_template in tokenizer_config.json (or chat_template.jinja): what add_generation_prompt \
                 writes must be how an assistant's turn begins, and end with a special token or a line break",
            ),
        ))
    }

    /// Whether the token that ends an answer in the template ends a sample too.
    fn ending(&self, config: &ModelConfig, exchange: &Exchange) -> Result<Option<Finding>, String> {
        let user = Message::user(&exchange.question);
        let prompt = self.ids(std::slice::from_ref(&user))?;
        let whole = self.ids(&[user, Message::assistant(&exchange.answer)])?;
        let turn = &whole[prompt.len()..];
        // What follows the answer: special tokens are left out of plain decoding.
        let specials: Vec<u32> = turn
            .iter()
            .copied()
            .filter(|&id| self.tokenizer.decode(&[id]).is_empty())
            .collect();
        let ends = |id: &u32| config.eos_token_ids.contains(id);
        if specials.is_empty() || specials.iter().any(ends) {
            return Ok(None);
        }
        let named = self.tokenizer.decode_with_special(&specials);
        let named = named.unwrap_or_default();
        Ok(Some(
            Finding::failed(
                "end of answers",
                format!("the chat template ends an answer with {named}, which ends no sample"),
            )
            .because(
                "the policy learnt to end answers with a token that eos_token_id does not name: samples run on to the \
                 limit of new tokens",
                "add its id to eos_token_id in generation_config.json",
            ),
        ))
    }

    /// Notes on what the template changes in turns that lie behind: of no effect on single answers.
    fn changes(&self, exchange: &Exchange) -> Result<Vec<Finding>, String> {
        let (user, answer) = (
            Message::user(&exchange.question),
            Message::assistant(&exchange.answer),
        );
        let mut found = Vec::new();
        let before = self.ids(&[user.clone(), answer.clone()])?;
        let after = self.ids(&[user.clone(), answer, user.clone()])?;
        if !after.starts_with(&before) {
            found.push(Finding::note(
                "chat template",
                "it rewrites an answer once another turn follows: of no effect here, where a prompt has one answer; \
                 training over several turns would need another template",
            ));
        }
        let padded = format!(" {}\n", exchange.answer);
        let with_blanks = self.ids(&[user, Message::assistant(&padded)])?;
        let text = self.tokenizer.decode_with_special(&with_blanks);
        if !text.unwrap_or_default().contains(&padded) {
            found.push(Finding::note(
                "chat template",
                "it strips blanks around an answer: of no effect here, where answers are kept as ids",
            ));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
