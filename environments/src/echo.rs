//! Repeating the question is not an answer.
//!
//! Before a completion is graded, every occurrence of the question's own text is cut out of it
//! (letter case, the amount of white space and the final punctuation mark don't matter). A policy may
//! restate the question and then answer; one that only restates it has answered nothing. Without
//! this, an echo of "Which number is larger, 12 or 27?" would be right half the time.

/// Left where the question stood, so that the text before and after it can't join into a number.
const CUT: char = ';';

/// `completion` with every occurrence of `question` replaced by `;`.
pub(crate) fn without_question(completion: &str, question: &str) -> String {
    // Most answers don't even hold the question's first letter.
    let first = question.chars().find(|letter| !letter.is_whitespace());
    let may_begin = |letter: char| first.is_some_and(|first| letter.eq_ignore_ascii_case(&first));
    if !completion.chars().any(may_begin) {
        return completion.to_string();
    }
    let question: Vec<char> = question
        .trim_end_matches(['?', '.', '!'])
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .collect();
    let text: Vec<char> = completion.chars().collect();
    let mut kept = String::with_capacity(completion.len());
    let mut position = 0;
    while position < text.len() {
        if let Some(end) = end_of_match(&text, position, &question) {
            kept.push(CUT);
            position = end;
        } else {
            kept.push(text[position]);
            position += 1;
        }
    }
    kept
}

/// Where `question` ends in `text` if it begins at `start`.
fn end_of_match(text: &[char], start: usize, question: &[char]) -> Option<usize> {
    let mut position = start;
    for &expected in question {
        let found = *text.get(position)?;
        if expected == ' ' {
            if !found.is_whitespace() {
                return None;
            }
            while text.get(position).is_some_and(|c| c.is_whitespace()) {
                position += 1;
            }
        } else {
            if !found.eq_ignore_ascii_case(&expected) {
                return None;
            }
            position += 1;
        }
    }
    // "What is 2 + 35" does not repeat "What is 2 + 3".
    let cuts_a_number = text.get(position).is_some_and(char::is_ascii_digit);
    (!question.is_empty() && !cuts_a_number).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &str = "Which is larger: 12 or 27?";

    #[test]
    fn the_question_is_cut_out_whatever_its_case_and_spacing() {
        assert_eq!(without_question(QUESTION, QUESTION), ";?");
        assert_eq!(
            without_question("which IS larger:\n12  or 27", QUESTION),
            ";"
        );
        assert_eq!(
            without_question("Which is larger: 12 or 27? It is 27.", QUESTION),
            ";? It is 27."
        );
    }

    #[test]
    fn all_other_text_stays_as_it_is() {
        for text in [
            "",
            "27",
            "Which is larger: 12 or 279?",
            "larger: 12 or 27",
            "é 12\n or 27",
        ] {
            assert_eq!(without_question(text, QUESTION), text);
        }
    }
}
