//! Forms of answers that several puzzles share: what is in the box, white space and separators aside.

use crate::committed::committed;

/// What may stand between the parts of an answer, besides white space.
const SEPARATORS: [char; 3] = [',', ';', '|'];

fn separates(letter: char) -> bool {
    letter.is_whitespace() || SEPARATORS.contains(&letter)
}

/// The box's characters without white space and separators: `12 34` and `1,2 | 3,4` are `1234`.
pub(crate) fn symbols(completion: &str) -> Option<String> {
    let answer = committed(completion)?;
    Some(
        answer
            .chars()
            .filter(|&letter| !separates(letter))
            .collect(),
    )
}

/// The box's words, in small letters: `Ann, red; Ben` is `ann`, `red`, `ben`.
pub(crate) fn words(completion: &str) -> Option<Vec<String>> {
    let words = committed(completion)?.split(separates);
    let words = words.filter(|word| !word.is_empty());
    Some(words.map(str::to_ascii_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacing_and_separators_make_no_difference() {
        for text in ["\\boxed{1234}", "\\boxed{12\n34}", "\\boxed{1, 2 | 3; 4}"] {
            assert_eq!(symbols(text).as_deref(), Some("1234"), "{text}");
        }
        let ann = words("\\boxed{Ann, RED;\n ben}").expect("a box");
        assert_eq!(ann, ["ann", "red", "ben"]);
        assert_eq!(words("Ann, red"), None);
    }
}
