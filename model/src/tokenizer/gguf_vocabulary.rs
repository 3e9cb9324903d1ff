//! The tokenizer of a GGUF file: byte-level BPE from tables of tokens and merges, with the words cut as
//! the file's pre-tokenizer says.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{Tokenizer, settings};

/// How Qwen2 cuts a text into words before merging.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer tables of a GGUF file (`tokenizer.ggml.*`).
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// Token texts in the byte-level alphabet; the index is the id.
    pub tokens: Vec<String>,
    /// Merges, "left right", the earliest first.
    pub merges: Vec<String>,
    /// Per token: 3 is a special token, 4 an added one; may be empty.
    pub token_types: Vec<i32>,
    /// How a text is cut into words: `smollm` or `qwen2`.
    pub pre_tokenizer: String,
    /// Begin-of-sequence id.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence id.
    pub eos_token_id: Option<u32>,
    /// Padding id.
    pub padding_token_id: Option<u32>,
    /// Jinja template of conversations.
    pub chat_template: Option<String>,
}

/// The tokenizer of these tables.
pub(super) fn build(vocabulary: GgufVocabulary) -> Result<Tokenizer, String> {
    let GgufVocabulary { tokens, .. } = &vocabulary;
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    if vocab.len() != tokens.len() {
        let twice = tokens
            .iter()
            .zip(0u32..)
            .find(|(token, id)| vocab[*token] != *id);
        return Err(format!("the vocabulary lists a token twice: {twice:?}"));
    }
    let merges = vocabulary.merges.iter().map(|merge| {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| format!("the merge '{merge}' is not two tokens with a space between"))?;
        Ok((left.to_string(), right.to_string()))
    });
    let merges = merges.collect::<Result<Vec<_>, String>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|error| format!("the merges do not fit the vocabulary: {error}"))?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let (normalizer, words): (Option<NormalizerWrapper>, Vec<PreTokenizerWrapper>) =
        match vocabulary.pre_tokenizer.as_str() {
            "smollm" => (
                None,
                vec![
                    Digits::new(true).into(),
                    ByteLevel::new(false, true, true).into(),
                ],
            ),
            "qwen2" => {
                let pattern = SplitPattern::Regex(QWEN2_WORDS.to_string());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                    .expect("the pattern is a regular expression");
                (
                    Some(tokenizers::normalizers::NFC.into()),
                    vec![split.into(), ByteLevel::new(false, true, false).into()],
                )
            }
            other => {
                return Err(format!(
                    "pre-tokenizer '{other}' is not known; smollm and qwen2 are"
                ));
            }
        };
    inner.with_normalizer(normalizer);
    inner.with_pre_tokenizer(Some(Sequence::new(words)));
    inner.with_decoder(Some(ByteLevel::default()));
    let added = |kind: i32, special: bool| -> Vec<AddedToken> {
        let of_kind = tokens.iter().zip(&vocabulary.token_types);
        let of_kind = of_kind.filter(|(_, k)| **k == kind);
        of_kind
            .map(|(token, _)| AddedToken::from(token.clone(), special).normalized(false))
            .collect()
    };
    inner.add_special_tokens(&added(3, true));
    inner.add_tokens(&added(4, false));
    let token = |id: Option<u32>| match id {
        None => Ok(None),
        Some(id) => match tokens.get(id as usize) {
            Some(token) => Ok(Some(token.as_str())),
            None => Err(format!(
                "token id {id} is outside the vocabulary of {}",
                tokens.len()
            )),
        },
    };
    let settings = settings(
        token(vocabulary.bos_token_id)?,
        token(vocabulary.eos_token_id)?,
        token(vocabulary.padding_token_id)?,
        vocabulary.chat_template.as_deref(),
    );
    Tokenizer::new(inner, settings)
}
