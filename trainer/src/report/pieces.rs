//! A completion token by token, as text.
//!
//! A token need not be a whole character: tokens that only together make one are shown as one piece. Bytes that are no
//! UTF-8 whatever follows are shown as `\xe2`.

use std::ops::Range;

use model::Tokenizer;

/// The most tokens that one character can be cut into.
const MAX_TOKENS_A_CHARACTER: usize = 4;

/// Text of one token, or of the few that share a character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The tokens, by their place in the completion.
    pub tokens: Range<usize>,
    /// Their text; an id in brackets where it has none.
    pub text: String,
    /// Whether it is a special token, such as the one that ends a completion.
    pub is_special: bool,
}

/// The pieces of `ids`, in order. Without a tokenizer the ids themselves.
pub(super) fn pieces(tokenizer: Option<&Tokenizer>, ids: &[u32]) -> Vec<Piece> {
    let bytes_of = |id: u32| tokenizer.and_then(|tokenizer| tokenizer.token_bytes(id));
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < ids.len() {
        let (text, count) = match bytes_of(ids[at]) {
            None => (format!("[{}]", ids[at]), 1),
            Some(first) => {
                let rest = ids[at + 1..].iter().map_while(|&id| bytes_of(id));
                let (bytes, count) = completed(first, rest);
                (shown(&bytes), count)
            }
        };
        let decoded = tokenizer.map(|tokenizer| tokenizer.decode(&ids[at..at + count]));
        pieces.push(Piece {
            tokens: at..at + count,
            is_special: !text.is_empty() && decoded.is_some_and(|decoded| decoded.is_empty()),
            text,
        });
        at += count;
    }
    pieces
}

/// `first` with as many of the tokens after it as its last character needs; alone where they don't complete it.
fn completed(first: Vec<u8>, rest: impl Iterator<Item = Vec<u8>>) -> (Vec<u8>, usize) {
    let is_cut = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(error) => error.error_len().is_none(),
    };
    let mut bytes = first.clone();
    for (count, next) in (1..MAX_TOKENS_A_CHARACTER).zip(rest) {
        if !is_cut(&bytes) {
            break;
        }
        bytes.extend(next);
        if std::str::from_utf8(&bytes).is_ok() {
            return (bytes, count + 1);
        }
    }
    (first, 1)
}

/// UTF-8 as it is, other bytes as `\xe2`.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_bytes(bytes: &[u8]) -> Vec<(usize, String)> {
        let ids: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
        pieces(Some(&Tokenizer::byte_level()), &ids)
            .into_iter()
            .map(|piece| (piece.tokens.len(), piece.text))
            .collect()
    }

    fn expected(pieces: &[(usize, &str)]) -> Vec<(usize, String)> {
        pieces
            .iter()
            .map(|&(n, text)| (n, text.to_string()))
            .collect()
    }

    #[test]
    fn tokens_that_make_a_character_together_are_one_piece() {
        assert_eq!(
            of_bytes("aé→🐋b".as_bytes()),
            expected(&[(1, "a"), (2, "é"), (3, "→"), (4, "🐋"), (1, "b")])
        );
    }

    #[test]
    fn bytes_that_are_no_character_are_named_one_by_one() {
        // The begin of an arrow without its end, a continuation without a begin, a begin at the end.
        assert_eq!(
            of_bytes(b"\xe2\x86a\x92\xff\xf0"),
            expected(&[
                (1, "\\xe2"),
                (1, "\\x86"),
                (1, "a"),
                (1, "\\x92"),
                (1, "\\xff"),
                (1, "\\xf0")
            ])
        );
    }

    #[test]
    fn special_tokens_and_ids_that_are_no_token_are_shown() {
        let tokenizer = Tokenizer::byte_level();
        let found = pieces(Some(&tokenizer), &[65, 257, 9999]);
        let texts: Vec<(&str, bool)> = found
            .iter()
            .map(|piece| (piece.text.as_str(), piece.is_special))
            .collect();
        assert_eq!(
            texts,
            [("A", false), ("<|im_end|>", true), ("[9999]", true)]
        );
        assert_eq!(pieces(None, &[65])[0].text, "[65]");
    }
}
