//! Numbers and foreign text as a terminal can show them.

/// A figure in at most eight columns or so: `0.0123`, `48.2`, `1530`, `2.1e-6`.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (value.fract() == 0.0 && size < 1e7) => format!("{value:.0}"),
        size if !(1e-3..1e7).contains(&size) => format!("{value:.1e}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// `text` without anything that a terminal would obey: a policy may answer with any bytes.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push('\n'),
            '\t' => shown.push_str("    "),
            // Unicode has a picture of each, such as ␛ for escape.
            '\0'..='\x1f' => shown.extend(char::from_u32(0x2400 + character as u32)),
            character if character.is_control() => shown.push('\u{fffd}'),
            character => shown.push(character),
        }
    }
    shown
}

/// `share` of `width` columns filled.
pub fn bar(share: f64, width: usize) -> String {
    let filled = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    "█".repeat(filled) + &"░".repeat(width - filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_matter() {
        let texts = [
            0.0, 12.0, 0.25, 0.01234, 2.0625, 48.26, 153.7, 2.14e-6, 3e9, -0.5,
        ]
        .map(number);
        assert_eq!(
            texts,
            [
                "0", "12", "0.2500", "0.0123", "2.06", "48.3", "154", "2.1e-6", "3.0e9", "-0.5000"
            ]
        );
    }

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        let text = "a\x1b[2J\r\n\tb\u{9b}c\u{7f}";
        assert_eq!(printable(text), "a␛[2J␍\n    b\u{fffd}c\u{fffd}");
    }

    #[test]
    fn a_bar_is_full_at_one_and_never_longer() {
        assert_eq!(bar(0.5, 4), "██░░");
        assert_eq!(bar(7.0, 3), "███");
        assert_eq!(bar(f64::NAN, 2), "░░");
    }
}
