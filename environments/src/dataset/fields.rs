//! The fields of one row as its file holds them, and the row that they make.
//!
//! A field is text, an integer, or something else that no column takes; JSON's null and parquet's are an
//! absent field. Other keys of a JSON object are passed over.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::answer::AnswerGrader;
use crate::echo::without_question;
use crate::task::Split;

/// Names of the columns, in the order of [`Fields`].
pub(crate) const COLUMNS: [&str; 5] = ["prompt", "answer", "solution", "id", "split"];

/// One value of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// Not there, or null.
    #[default]
    Absent,
    /// Text.
    Text(Cow<'a, str>),
    /// Any integer of 64 bits.
    Integer(i128),
    /// Of a type that no column has; what it is.
    Other(&'static str),
}

/// The values of one row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Fields<'a> {
    #[serde(borrow)]
    pub(crate) prompt: Field<'a>,
    #[serde(borrow)]
    pub(crate) answer: Field<'a>,
    #[serde(borrow)]
    pub(crate) solution: Field<'a>,
    #[serde(borrow)]
    pub(crate) id: Field<'a>,
    #[serde(borrow)]
    pub(crate) split: Field<'a>,
}

/// A row that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) prompt: String,
    /// What [`AnswerGrader::grade`] compares with.
    pub(crate) gold: String,
    pub(crate) solution: String,
    pub(crate) id: Option<String>,
    pub(crate) split: Option<Split>,
}

/// What a dataset asks of its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demands {
    pub(crate) grader: AnswerGrader,
    /// A prompt of more bytes fits no context of the model.
    pub(crate) max_prompt_bytes: usize,
}

impl Fields<'_> {
    /// The value of `id`, to name the row in an error; `None` where there is none.
    pub(crate) fn id_text(&self) -> Option<String> {
        self.id.text_or_integer("id").ok().flatten()
    }

    /// The row.
    ///
    /// # Errors
    /// The first field that can't be used, and why.
    pub(crate) fn row(&self, demands: &Demands) -> Result<Row, String> {
        let id = self.id.text_or_integer("id")?;
        let prompt = self
            .prompt
            .text("prompt")?
            .ok_or_else(|| missing("prompt"))?;
        if prompt.trim().is_empty() {
            return Err("`prompt` is empty".to_string());
        }
        if prompt.len() > demands.max_prompt_bytes {
            return Err(format!(
                "`prompt` has {} bytes; no more than {} can fit into the model's context \
                 (`max_position_embeddings` less `sampling.max_new_tokens`)",
                prompt.len(),
                demands.max_prompt_bytes
            ));
        }
        let answer = self.answer.text_or_integer("answer")?;
        let answer = answer.ok_or_else(|| missing("answer"))?;
        let grader = demands.grader;
        let gold = grader
            .gold(&answer)
            .map_err(|problem| format!("`answer` {problem}"))?;
        let earns =
            |completion: &str| grader.grade(prompt, &gold, completion).reward() == Some(1.0);
        // Else it is what it is compared with.
        if without_question(&answer, prompt) != answer && !earns(&answer) {
            let problem = "`answer` earns no reward, since it only repeats the prompt";
            return Err(problem.to_string());
        }
        let solution = match self.solution.text("solution")? {
            None => answer,
            Some(solution) if earns(solution) => solution.to_string(),
            Some(_) => {
                return Err(
                    "`solution` earns no reward: graded as a completion, it must give `answer`"
                        .to_string(),
                );
            }
        };
        Ok(Row {
            prompt: prompt.to_string(),
            gold,
            solution,
            id,
            split: self.split()?,
        })
    }

    fn split(&self) -> Result<Option<Split>, String> {
        match self.split.text("split")? {
            None => Ok(None),
            Some("train") => Ok(Some(Split::Train)),
            Some("held_out") => Ok(Some(Split::HeldOut)),
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                Err(format!(
                    "`split` is {other:?}, neither \"train\" nor \"held_out\""
                ))
            }
        }
    }
}

fn missing(name: &str) -> String {
    format!("`{name}` is missing")
}

impl Field<'_> {
    fn text(&self, name: &str) -> Result<Option<&str>, String> {
        match self {
            Field::Absent => Ok(None),
            Field::Text(text) => Ok(Some(text)),
            Field::Integer(_) => Err(format!("`{name}` must be text, found a number")),
            Field::Other(kind) => Err(format!("`{name}` must be text, found {kind}")),
        }
    }

    fn text_or_integer(&self, name: &str) -> Result<Option<String>, String> {
        match self {
            Field::Absent => Ok(None),
            Field::Text(text) => Ok(Some(text.to_string())),
            Field::Integer(number) => Ok(Some(number.to_string())),
            Field::Other(kind) => Err(format!("`{name}` must be text or an integer, found {kind}")),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Owned(text.to_string())))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Owned(text)))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Field::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Field::Integer(number.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        // Integers beyond 64 bits come here too.
        Ok(Field::Other("a number that is no integer of 64 bits"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Field::Other("true or false"))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Result<Row, String> {
        let fields: Fields = serde_json::from_str(json).map_err(|error| error.to_string())?;
        fields.row(&Demands {
            grader: AnswerGrader::Integer,
            max_prompt_bytes: 20,
        })
    }

    #[test]
    fn a_row_needs_a_prompt_and_an_answer_and_takes_the_rest() {
        let least = row(r#"{"prompt": "6 x 7?", "answer": 42, "source": ["other", {}]}"#);
        let expected = Row {
            prompt: "6 x 7?".to_string(),
            gold: "42".to_string(),
            solution: "42".to_string(),
            id: None,
            split: None,
        };
        assert_eq!(least, Ok(expected));
        let full = row(
            r#"{"id": 7, "prompt": "6 x 7?", "answer": "42", "solution": "6 x 7 = 42", "split": "held_out"}"#,
        )
        .expect("sound");
        assert_eq!(
            (full.id.as_deref(), full.solution.as_str()),
            (Some("7"), "6 x 7 = 42")
        );
        assert_eq!(full.split, Some(Split::HeldOut));
        let nulls = row(r#"{"prompt": "a\u00e9\n", "answer": 1, "id": null, "split": null}"#);
        assert_eq!(nulls.map(|row| row.prompt), Ok("a\u{e9}\n".to_string()));
    }

    #[test]
    fn every_field_that_cannot_be_used_is_named() {
        for (json, problem) in [
            (r#"{"answer": 1}"#, "`prompt` is missing"),
            (r#"{"prompt": null, "answer": 1}"#, "`prompt` is missing"),
            (r#"{"prompt": " \n", "answer": 1}"#, "`prompt` is empty"),
            (
                r#"{"prompt": 5, "answer": 1}"#,
                "`prompt` must be text, found a number",
            ),
            (
                r#"{"prompt": ["a"], "answer": 1}"#,
                "`prompt` must be text, found a list",
            ),
            (r#"{"prompt": "a"}"#, "`answer` is missing"),
            (
                r#"{"prompt": "a", "answer": 1.5}"#,
                "found a number that is no integer",
            ),
            (
                r#"{"prompt": "a", "answer": 123456789012345678901}"#,
                "no integer of 64 bits",
            ),
            (
                r#"{"prompt": "a", "answer": {"x": 1}}"#,
                "or an integer, found an object",
            ),
            (r#"{"prompt": "a", "answer": true}"#, "found true or false"),
            (
                r#"{"prompt": "a", "answer": "six"}"#,
                "`answer` is no integer",
            ),
            (
                r#"{"prompt": "a", "answer": 1, "id": []}"#,
                "`id` must be text or an integer",
            ),
            (
                r#"{"prompt": "a", "answer": 1, "split": "dev"}"#,
                "`split` is \"dev\", neither",
            ),
            (
                r#"{"prompt": "a", "answer": 1, "solution": 1}"#,
                "`solution` must be text",
            ),
            (
                r#"{"prompt": "a", "answer": 1, "solution": "2"}"#,
                "`solution` earns no reward",
            ),
            (
                r#"{"prompt": "7", "answer": 7}"#,
                "`answer` earns no reward",
            ),
            (
                r#"{"prompt": "aaaaaaaaaaaaaaaaaaaaa", "answer": 7}"#,
                "`prompt` has 21 bytes",
            ),
            (
                r#"{"prompt": "a", "prompt": "b", "answer": 1}"#,
                "duplicate field `prompt`",
            ),
        ] {
            let found = row(json).expect_err(json);
            assert!(found.contains(problem), "{json}: {found}");
        }
    }
}
