//! Grades answers that are one integer: the last number of the completion must be the gold integer.
//!
//! A number is a maximal run of ASCII digits, joined by single `.` `,` or `/` between digits.
//! Joined by `.` or `/` it is no integer (`12.5`, `7/8`, `22.0`; also `.5`) and earns nothing. Commas
//! join only proper groups of three (`1,024` is 1024); else they separate (`3,5` is 3 and 5).
//! `-` or U+2212 right before the digits is a sign, unless a letter, digit or `)` stands before it
//! (`17-5` is 17 and 5). Leading zeros and `-0` are normalised. Digits are compared as text, so no
//! length overflows. Words, units and digits of other scripts are ignored.

use crate::verdict::Verdict;

/// A number found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Number {
    /// Sign and digits, without leading zeros.
    Integer(String),
    /// A decimal, a fraction or a date, as written.
    Other(String),
}

/// Reward 1 iff the last number of `completion` is the integer `gold`.
pub(crate) fn grade(gold: &str, completion: &str) -> Verdict {
    let (reward, extracted) = match numbers(completion).pop() {
        Some(Number::Integer(answer)) => (f64::from(answer == gold), Some(answer)),
        Some(Number::Other(answer)) => (0.0, Some(answer)),
        None => (0.0, None),
    };
    Verdict::graded(reward, extracted)
}

/// The integer that is all of `text`, as [`grade`] writes it; white space, a sign and commas between groups
/// of three may be there.
pub(crate) fn integer_alone(text: &str) -> Option<String> {
    let text = text.trim();
    let is_part = |c: char| c.is_ascii_digit() || c == ',';
    let digits = text.strip_prefix(['-', '\u{2212}', '+']).unwrap_or(text);
    match numbers(text).as_slice() {
        [Number::Integer(integer)] if digits.chars().all(is_part) => Some(integer.clone()),
        _ => None,
    }
}

/// The integers of `text` in order, leaving out any that do not fit.
pub(crate) fn integers(text: &str) -> Vec<i64> {
    let integer = |number| match number {
        Number::Integer(digits) => digits.parse().ok(),
        Number::Other(_) => None,
    };
    numbers(text).into_iter().filter_map(integer).collect()
}

/// The numbers of `text` in order.
fn numbers(text: &str) -> Vec<Number> {
    let text: Vec<char> = text.chars().collect();
    let is_digit = |at: usize| text.get(at).is_some_and(char::is_ascii_digit);
    let mut found = Vec::new();
    let mut position = 0;
    while position < text.len() {
        if !is_digit(position) {
            position += 1;
            continue;
        }
        let start = position;
        while is_digit(position)
            || (matches!(text.get(position), Some('.' | ',' | '/')) && is_digit(position + 1))
        {
            position += 1;
        }
        let body: String = text[start..position].iter().collect();
        if body.contains(['.', '/']) || has_leading_point(&text[..start]) {
            found.push(Number::Other(body));
            continue;
        }
        let is_negative = has_sign(&text[..start]);
        let pieces: Vec<&str> = body.split(',').collect();
        let is_grouped = pieces[0].len() <= 3 && pieces[1..].iter().all(|piece| piece.len() == 3);
        if is_grouped {
            found.push(integer(is_negative, &pieces.concat()));
        } else {
            // The sign belongs to the first of several numbers.
            let signed = pieces.iter().enumerate();
            found.extend(signed.map(|(index, piece)| integer(is_negative && index == 0, piece)));
        }
    }
    found
}

/// Whether the digits after `before` belong to a decimal like `.5`; an ellipsis or the full stop of a
/// sentence is no decimal point.
fn has_leading_point(before: &[char]) -> bool {
    match before {
        [.., previous, '.'] => *previous != '.' && !previous.is_alphabetic(),
        ['.'] => true,
        _ => false,
    }
}

/// Whether `before` ends in the sign of a negative number.
fn has_sign(before: &[char]) -> bool {
    match before {
        [.., previous, '-' | '\u{2212}'] => !previous.is_alphanumeric() && *previous != ')',
        ['-' | '\u{2212}'] => true,
        _ => false,
    }
}

fn integer(is_negative: bool, digits: &str) -> Number {
    Number::Integer(match (is_negative, digits.trim_start_matches('0')) {
        (_, "") => "0".to_string(),
        (true, digits) => format!("-{digits}"),
        (false, digits) => digits.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(gold: &str, completion: &str) -> f64 {
        grade(gold, completion)
            .reward()
            .expect("integer answers are always graded")
    }

    fn extracted(completion: &str) -> Option<String> {
        match grade("", completion) {
            Verdict::Graded { extracted, .. } => extracted,
            Verdict::Invalid { reason, .. } => panic!("{reason}"),
        }
    }

    #[test]
    fn the_last_integer_decides() {
        assert_eq!(reward("22", "17 + 5 = 22"), 1.0);
        assert_eq!(reward("22", "The answer is 22."), 1.0);
        assert_eq!(reward("22", "22, because 17 + 5"), 0.0);
        assert_eq!(reward("22", "**22**\n"), 1.0);
        assert_eq!(reward("22", "20,21,22"), 1.0);
        assert_eq!(reward("22", "220"), 0.0);
        assert_eq!(reward("22", "122"), 0.0);
    }

    #[test]
    fn no_number_earns_nothing() {
        for completion in ["", "   ", "twenty-two", "٢٢", "-", ".,/", "\u{0}"] {
            assert_eq!(reward("22", completion), 0.0, "{completion:?}");
            assert_eq!(extracted(completion), None, "{completion:?}");
        }
    }

    #[test]
    fn a_decimal_or_fraction_is_no_integer() {
        for completion in [
            "12.5", ".5", "it is .5", "1/5", "5.0", "1,000.5", "1.2.5", "-.5",
        ] {
            assert_eq!(reward("5", completion), 0.0, "{completion:?}");
        }
        assert_eq!(extracted("so 5, or 12.5").as_deref(), Some("12.5"));
    }

    #[test]
    fn a_full_stop_is_no_decimal_point() {
        for completion in ["5.", "5. ", "It is...5", "Done.5", "5.\nEnd."] {
            assert_eq!(reward("5", completion), 1.0, "{completion:?}");
        }
    }

    #[test]
    fn a_sign_counts_only_where_it_is_no_subtraction() {
        for completion in ["-5", "= -5", "=-5", "(-5)", "\u{2212}5", "17 -5"] {
            assert_eq!(
                extracted(completion).as_deref(),
                Some("-5"),
                "{completion:?}"
            );
        }
        for completion in ["17-5", "17 - 5", "x-5", "(3)-5", "+5", "- 5"] {
            assert_eq!(
                extracted(completion).as_deref(),
                Some("5"),
                "{completion:?}"
            );
        }
        assert_eq!(reward("5", "-5"), 0.0);
        assert_eq!(reward("-5", "5"), 0.0);
        assert_eq!(extracted("-0").as_deref(), Some("0"));
    }

    #[test]
    fn commas_join_groups_of_three_and_nothing_else() {
        for completion in ["1,024", "01,024", "1024", "x = 1,024."] {
            assert_eq!(
                extracted(completion).as_deref(),
                Some("1024"),
                "{completion:?}"
            );
        }
        assert_eq!(extracted("-1,234,567").as_deref(), Some("-1234567"));
        for (completion, last) in [
            ("1,02", "2"),
            ("1,0245", "245"),
            ("1234,567", "567"),
            ("1, 024", "24"),
        ] {
            assert_eq!(
                extracted(completion).as_deref(),
                Some(last),
                "{completion:?}"
            );
        }
        assert_eq!(extracted("-3,5").as_deref(), Some("5"));
    }

    #[test]
    fn leading_zeros_and_any_length_are_read() {
        assert_eq!(reward("7", "007"), 1.0);
        assert_eq!(reward("0", "000"), 1.0);
        let huge = format!("{}7", "9".repeat(100_000));
        assert_eq!(reward("7", &huge), 0.0);
        assert_eq!(reward(&huge, &huge), 1.0);
        assert_eq!(reward("7", &format!("{}7", "0".repeat(100_000))), 1.0);
        // 2^64 + 7 must not wrap round to 7.
        assert_eq!(reward("7", "18446744073709551623"), 0.0);
    }
}
