//! Whether a text keeps to the script of its question.
//!
//! Scripts stand for languages as far as they can: English and Chinese differ, English and French do not. Letters are
//! counted in prose alone: not in code (between backticks), formulas (between dollar signs), commands (`\frac`), or as a
//! single letter that stands for itself, such as a variable, where the script writes words of letters.

/// Scripts that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Script {
    Latin,
    Greek,
    Cyrillic,
    Armenian,
    Hebrew,
    Arabic,
    /// Devanagari to Sinhala.
    Indic,
    Thai,
    Georgian,
    Hangul,
    /// Hiragana and Katakana.
    Kana,
    Han,
    Other,
}

const NUM_SCRIPTS: usize = 13;

impl Script {
    fn of(letter: char) -> Option<Script> {
        // Letterlike symbols and those of formulas belong to no script.
        let is_symbol = matches!(u32::from(letter), 0x2100..=0x214f | 0x1d400..=0x1d7ff);
        if !letter.is_alphabetic() || is_symbol {
            return None;
        }
        Some(match u32::from(letter) {
            0..=0x24f | 0x1e00..=0x1eff | 0xff21..=0xff5a => Script::Latin,
            0x370..=0x3ff | 0x1f00..=0x1fff => Script::Greek,
            0x400..=0x52f => Script::Cyrillic,
            0x531..=0x58f => Script::Armenian,
            0x590..=0x5ff => Script::Hebrew,
            0x600..=0x77f | 0x8a0..=0x8ff => Script::Arabic,
            0x900..=0xdff => Script::Indic,
            0xe00..=0xe7f => Script::Thai,
            0x10a0..=0x10ff => Script::Georgian,
            0x1100..=0x11ff | 0x3130..=0x318f | 0xac00..=0xd7af => Script::Hangul,
            0x3040..=0x30ff | 0x31f0..=0x31ff | 0xff66..=0xff9f => Script::Kana,
            0x3005..=0x3007 | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff => Script::Han,
            0x20000..=0x3ffff => Script::Han,
            _ => Script::Other,
        })
    }

    /// Words of more than one letter.
    fn writes_words(self) -> bool {
        !matches!(
            self,
            Script::Han | Script::Kana | Script::Hangul | Script::Thai
        )
    }
}

/// Letters of the prose of `text`, by script.
fn letters(text: &str) -> [usize; NUM_SCRIPTS] {
    let mut counts = [0; NUM_SCRIPTS];
    let text = without_spans(&without_spans(text, '`'), '$');
    let mut count = |word: &[Script]| match word {
        [script] if script.writes_words() => {}
        _ => word.iter().for_each(|&script| counts[script as usize] += 1),
    };
    let mut word = Vec::new();
    let mut is_command = false;
    for letter in text.chars() {
        match Script::of(letter) {
            Some(_) if is_command && letter.is_ascii() => {}
            Some(script) => {
                is_command = false;
                // Two scripts side by side are two words.
                if word.last().is_some_and(|&last| last != script) {
                    count(&word);
                    word.clear();
                }
                word.push(script);
            }
            None => {
                count(&word);
                word.clear();
                is_command = letter == '\\';
            }
        }
    }
    count(&word);
    counts
}

/// `text` without what stands between `mark`s, or runs of as many: a run closes with the next of its length, and one
/// that nothing closes is itself left out alone.
fn without_spans(text: &str, mark: char) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    // Runs of a length that closes no more are not looked for again, so that hostile text takes linear time.
    let mut unclosed = std::collections::BTreeSet::new();
    while let Some(start) = rest.find(mark) {
        kept += &rest[..start];
        let run = &rest[start..];
        let len = run.len() - run.trim_start_matches(mark).len();
        rest = &run[len..];
        kept.push(' ');
        if unclosed.contains(&len) {
            continue;
        }
        match end_of_span(rest, mark, len) {
            Some(end) => rest = &rest[end..],
            None => {
                unclosed.insert(len);
            }
        }
    }
    kept + rest
}

/// Where the text behind the next run of exactly `len` marks begins.
fn end_of_span(text: &str, mark: char, len: usize) -> Option<usize> {
    let mut at = 0;
    while let Some(start) = text[at..].find(mark) {
        let run = &text[at + start..];
        let found = run.len() - run.trim_start_matches(mark).len();
        at += start + found;
        if found == len {
            return Some(at);
        }
    }
    None
}

/// Which share of the letters of `texts` is of another script than most of the question's. 0 where the question or the texts
/// have no letters to judge by. To a question in Kana, Han belongs as well.
pub fn off_language_share(question: &str, texts: &[&str]) -> f64 {
    let asked = letters(question);
    let most = (0..NUM_SCRIPTS).rev().max_by_key(|&script| asked[script]);
    let Some(most) = most.filter(|&script| asked[script] > 0) else {
        return 0.0;
    };
    let (kana, han) = (Script::Kana as usize, Script::Han as usize);
    let is_japanese = asked[kana] > 0 && (most == kana || most == han);
    let is_on =
        |script: usize| script == most || (is_japanese && (script == kana || script == han));
    let (mut on, mut off) = (0, 0);
    for text in texts {
        for (script, count) in letters(text).into_iter().enumerate() {
            match is_on(script) {
                true => on += count,
                false => off += count,
            }
        }
    }
    match on + off {
        0 => 0.0,
        all => off as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_another_script_are_counted_by_hand() {
        for (question, text, share) in [
            ("How many apples?", "There are twelve apples.", 0.0),
            // 8 of 20 letters: "twelve apples" has 12, the Cyrillic word 8.
            (
                "How many apples?",
                "twelve apples \u{434}\u{432}\u{435}\u{43d}\u{430}\u{434}\u{446}\u{430}",
                0.4,
            ),
            // Three ideographs after nine letters.
            (
                "How many?",
                "the total \u{4e00}\u{5171}\u{662f}",
                3.0 / 11.0,
            ),
            // English to a Chinese question: 5 letters of 7.
            (
                "\u{6709}\u{591a}\u{5c11}",
                "\u{4e00}\u{5171} total",
                5.0 / 7.0,
            ),
            // Japanese has Han in it; Chinese has no Kana.
            ("\u{3044}\u{304f}\u{3064}\u{5168}", "\u{5168}\u{3044}", 0.0),
            ("\u{6709}\u{591a}\u{5c11}", "\u{5168}\u{3044}", 0.5),
            ("2 + 2?", "\u{4e00}", 0.0),
            ("How many?", "12", 0.0),
            ("How many?", "", 0.0),
        ] {
            let found = off_language_share(question, &[text]);
            assert!((found - share).abs() < 1e-12, "{text}: {found}");
        }
        let both = off_language_share("How many?", &["abc", "\u{4e00}"]);
        assert_eq!(both, 0.25, "reasoning and answer count together");
    }

    #[test]
    fn variables_code_formulas_and_commands_are_no_prose() {
        let question = "\u{6709}\u{591a}\u{5c11}";
        for neutral in [
            "\u{4e00} x = y + z",
            "\u{4e00} `count` \u{4e00}",
            "\u{4e00}\n```python\nprint(total)\n```\n\u{4e00}",
            "\u{4e00} $area = width$ \u{4e00}",
            "\u{4e00} $$sum$$ \u{4e00} \\boxed{3} \\frac{1}{2}",
            "\u{4e00}x\u{4e00}",
        ] {
            assert_eq!(off_language_share(question, &[neutral]), 0.0, "{neutral}");
        }
        // What nothing closes hides nothing: five letters of six.
        for open in [
            "\u{4e00} ```total",
            "\u{4e00} $total",
            "\u{4e00} `` total `",
        ] {
            let share = off_language_share(question, &[open]);
            assert!((share - 5.0 / 6.0).abs() < 1e-12, "{open}: {share}");
        }
    }

    #[test]
    fn hostile_text_is_read_in_bounded_time() {
        let text: String = (0..2000).map(|n| "`".repeat(n % 60 + 1) + "a").collect();
        let long = "` $ `` ".repeat(100_000);
        for text in [text, long, "`$".repeat(200_000)] {
            assert_eq!(off_language_share("How many?", &[&text]), 0.0);
        }
    }
}
