//! Text and numbers as HTML.

use std::fmt::Write;

/// `text` as the content of an element or of a quoted attribute. Control characters, which HTML forbids or hides,
/// become `\x1b` and the like; line breaks and tabs stay.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// `text` with what stands between backticks as code.
pub(super) fn prose(text: &str) -> String {
    let mut html = String::new();
    for (i, part) in text.split('`').enumerate() {
        match i % 2 {
            0 => html.push_str(&escaped(part)),
            _ => {
                let _ = write!(html, "<code>{}</code>", escaped(part));
            }
        }
    }
    html
}

/// A number with four digits that count, as short as that goes: `0.25`, `1234`, `2.5e-6`.
pub(super) fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 {
            "0".to_string()
        } else {
            value.to_string()
        };
    }
    let magnitude = value.abs().log10().floor();
    if !(-4.0..7.0).contains(&magnitude) {
        let text = format!("{value:.3e}");
        let (digits, exponent) = text.split_once('e').expect("{:e} writes an exponent");
        return format!("{}e{exponent}", without_end_zeros(digits));
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    without_end_zeros(&format!("{value:.decimals$}")).to_string()
}

fn without_end_zeros(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

/// `12,345`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_markup() {
        assert_eq!(
            escaped("<script>alert(\"it's\" & 'so')</script>\n\u{1b}[31m\0"),
            "&lt;script&gt;alert(&quot;it&#39;s&quot; &amp; &#39;so&#39;)&lt;/script&gt;\n\\x1b[31m\\x00"
        );
    }

    #[test]
    fn backticks_make_code() {
        assert_eq!(
            prose("at most 0.1 below `a<b`, or `c`"),
            "at most 0.1 below <code>a&lt;b</code>, or <code>c</code>"
        );
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.0, "1"),
            (-12.34567, "-12.35"),
            (1234.56, "1235"),
            (0.000123456, "0.0001235"),
            (2.5e-6, "2.5e-6"),
            (1.0e-6, "1e-6"),
            (123456.0, "123456"),
            (3.2e9, "3.2e9"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1234567), "1,234,567");
    }
}
