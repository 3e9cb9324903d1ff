//! Reads the one answer that a completion commits itself to: `\boxed{answer}`.
//!
//! Several boxes are one answer if they say the same (white space aside); different boxes are none, so that a
//! list of guesses earns nothing. Braces may nest. An unclosed box is no box.

/// Longest answer that is read, in bytes.
const MAX_BYTES: usize = 4 << 10;

const OPEN: &str = "\\boxed{";

/// The answer in the box, trimmed.
pub(crate) fn committed(completion: &str) -> Option<&str> {
    let mut answer: Option<&str> = None;
    let mut rest = completion;
    while let Some(start) = rest.find(OPEN) {
        rest = &rest[start + OPEN.len()..];
        let Some(end) = closing_brace(rest) else {
            continue;
        };
        let found = rest[..end].trim();
        match answer {
            Some(known) if !symbols(known).eq(symbols(found)) => return None,
            _ => answer = Some(found),
        }
        rest = &rest[end..];
    }
    answer.filter(|answer| !answer.is_empty())
}

/// What is not white space.
fn symbols(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|letter| !letter.is_whitespace())
}

/// Where the brace closes that was opened before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 1usize;
    for (at, byte) in text.bytes().enumerate().take(MAX_BYTES) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_answer_is_read_and_a_list_of_guesses_is_not() {
        for (completion, answer) in [
            ("so \\boxed{ 12 }.", Some("12")),
            ("\\boxed{{1, 2}, {3}}", Some("{1, 2}, {3}")),
            ("\\boxed{1 2} or rather \\boxed{1  2}", Some("1  2")),
            ("\\boxed{1} or \\boxed{2}", None),
            ("\\boxed{1", None),
            ("\\boxed{1 \\boxed{2}", Some("2")),
            ("\\boxed{}", None),
            ("12", None),
            ("", None),
        ] {
            assert_eq!(committed(completion), answer, "{completion}");
        }
    }

    #[test]
    fn hostile_text_is_read_in_bounded_time() {
        let text = OPEN.repeat(20_000);
        assert_eq!(committed(&text), None);
    }
}
