//! How answers to a dataset's prompts are graded, and which gold answers make sense for it.

use serde::{Deserialize, Serialize};

use crate::committed::committed;
use crate::echo::without_question;
use crate::integer_answer;
use crate::verdict::Verdict;

/// The letters of a multiple choice.
const CHOICES: std::ops::RangeInclusive<char> = 'A'..='H';

/// How a completion is compared with the gold answer. The reward is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerGrader {
    /// The last number of the completion must be the answer, an integer.
    Integer,
    /// The whole completion must be the answer; letter case and the amount of white space don't matter.
    Exact,
    /// The last capital letter from A to H that stands alone must be the answer.
    Choice,
    /// The text in `\boxed{...}` must be the answer, white space aside; different boxes are no answer.
    Boxed,
}

impl AnswerGrader {
    /// The form of `answer` that [`AnswerGrader::grade`] compares with.
    ///
    /// # Errors
    /// An answer that no completion could give, in words that complete "`answer` ...".
    pub(crate) fn gold(self, answer: &str) -> Result<String, String> {
        let answer = answer.trim();
        if answer.is_empty() {
            return Err("is empty".to_string());
        }
        match self {
            AnswerGrader::Integer => integer_answer::integer_alone(answer).ok_or_else(|| {
                "is no integer; grader: integer needs one, and no other text".into()
            }),
            AnswerGrader::Exact => Ok(normalised(answer)),
            AnswerGrader::Boxed if answer.contains(['{', '}']) => {
                Err("has braces; grader: boxed needs an answer without".to_string())
            }
            AnswerGrader::Boxed => Ok(without_white_space(answer)),
            AnswerGrader::Choice => match answer.chars().collect::<Vec<_>>()[..] {
                [letter] if CHOICES.contains(&letter) => Ok(letter.to_string()),
                _ => Err("is no capital letter from A to H; grader: choice needs one".to_string()),
            },
        }
    }

    /// Grades `completion`. Repetitions of the question don't count as an answer, but for `exact`.
    pub(crate) fn grade(self, question: &str, gold: &str, completion: &str) -> Verdict {
        let extracted = match self {
            AnswerGrader::Integer => {
                return integer_answer::grade(gold, &without_question(completion, question));
            }
            AnswerGrader::Exact => Some(normalised(completion)),
            AnswerGrader::Boxed => committed(completion).map(without_white_space),
            AnswerGrader::Choice => last_choice(&without_question(completion, question)),
        };
        Verdict::exact(extracted.as_deref() == Some(gold), extracted)
    }
}

/// Lower case, with single spaces between words and none around them.
fn normalised(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

fn without_white_space(text: &str) -> String {
    text.split_whitespace().collect()
}

/// The last letter of a choice with no letter or digit on either side.
fn last_choice(text: &str) -> Option<String> {
    let mut found = None;
    let mut before = ' ';
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let after = letters.peek().copied().unwrap_or(' ');
        if CHOICES.contains(&letter) && !before.is_alphanumeric() && !after.is_alphanumeric() {
            found = Some(letter.to_string());
        }
        before = letter;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(grader: AnswerGrader, gold: &str, completion: &str) -> f64 {
        let gold = grader.gold(gold).expect("an answer of that kind");
        let verdict = grader.grade("Which?", &gold, completion);
        verdict.reward().expect("always graded")
    }

    #[test]
    fn an_integer_is_the_last_number_however_it_is_written() {
        for (gold, completion) in [
            ("18", "9 + 9 = 18."),
            (" 1,024 ", "It is 1024"),
            ("-5", "(-5)"),
            ("007", "7"),
            ("\u{2212}3", "-3"),
        ] {
            assert_eq!(
                reward(AnswerGrader::Integer, gold, completion),
                1.0,
                "{gold}"
            );
        }
        assert_eq!(reward(AnswerGrader::Integer, "18", "18 of 20"), 0.0);
        for wrong in [
            "",
            "18 apples",
            "1.5",
            "7/8",
            "1 2",
            "x",
            "+",
            "--3",
            "1,02",
        ] {
            assert!(AnswerGrader::Integer.gold(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn exact_forgives_case_and_spaces_and_nothing_else() {
        for completion in ["Paris", " PARIS\n", "paris"] {
            assert_eq!(reward(AnswerGrader::Exact, "Paris", completion), 1.0);
        }
        assert_eq!(reward(AnswerGrader::Exact, "a  B\nc", "A b c"), 1.0);
        for completion in ["", "Paris.", "It is Paris", "Par is"] {
            assert_eq!(reward(AnswerGrader::Exact, "Paris", completion), 0.0);
        }
        // An answer may repeat the question.
        assert_eq!(reward(AnswerGrader::Exact, "which?", "Which?"), 1.0);
        assert!(AnswerGrader::Exact.gold(" \n").is_err());
    }

    #[test]
    fn a_boxed_answer_is_compared_without_white_space() {
        for completion in [
            "\\boxed{ x + 1}",
            "so $\\boxed{x+1}$, that is \\boxed{x +1}",
        ] {
            assert_eq!(
                reward(AnswerGrader::Boxed, "x+ 1", completion),
                1.0,
                "{completion}"
            );
        }
        for completion in ["x+1", "\\boxed{X+1}", "\\boxed{x+1} or \\boxed{x-1}", ""] {
            assert_eq!(
                reward(AnswerGrader::Boxed, "x+ 1", completion),
                0.0,
                "{completion}"
            );
        }
        assert!(AnswerGrader::Boxed.gold("{1}").is_err());
    }

    #[test]
    fn a_choice_is_the_last_letter_that_stands_alone() {
        for completion in [
            "C",
            "(C)",
            "**C**.",
            "Not A. C, I think",
            "A or B? C",
            "CDC: C",
        ] {
            assert_eq!(
                reward(AnswerGrader::Choice, "C", completion),
                1.0,
                "{completion}"
            );
        }
        for completion in ["", "c", "CD", "C3", "C or D", "The answer is Cat"] {
            assert_eq!(
                reward(AnswerGrader::Choice, "C", completion),
                0.0,
                "{completion}"
            );
        }
        for wrong in ["c", "AB", "I", "1"] {
            assert!(AnswerGrader::Choice.gold(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn repeating_the_question_answers_nothing() {
        let question = "Is it 7 or 8? A: 7, B: 8";
        let number = AnswerGrader::Integer.grade(question, "8", question);
        let letter = AnswerGrader::Choice.grade(question, "B", question);
        assert_eq!((number.reward(), letter.reward()), (Some(0.0), Some(0.0)));
    }
}
