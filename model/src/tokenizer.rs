//! Text to token ids and back, over Hugging Face's `tokenizers`.
//!
//! A [`Tokenizer`] is a byte-pair encoding plus the settings of `tokenizer_config.json` (special
//! tokens, chat template). It comes from a model folder, from the tables of a GGUF file, or from
//! nothing: [`Tokenizer::byte_level`] has one token a byte, for random models.
//! Conversations are in `chat.rs`. Nothing is added to a text silently: no begin token,
//! no truncation, no padding.

mod error;
mod gguf_vocabulary;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper};

pub use self::error::TokenizerError;
pub use self::gguf_vocabulary::GgufVocabulary;

/// ChatML, the conversation format of the byte-level tokenizer.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Token ids from text and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer_config.json`, with the chat template in it.
    settings: Map<String, serde_json::Value>,
    vocab_size: usize,
    unused_ids: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and, where present, `chat_template.jinja`.
    ///
    /// # Errors
    /// A file that is missing or damaged, another model than BPE, an eos or bos token outside the
    /// vocabulary, or an added token whose id can't be kept.
    pub fn from_folder(dir: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = read(&path)?;
        let inner =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| malformed(&path, error))?;
        check_added_ids(&bytes, &inner).map_err(|problem| malformed(&path, problem))?;
        let settings_path = dir.join("tokenizer_config.json");
        let mut settings: Map<_, _> = if settings_path.exists() {
            serde_json::from_slice(&read(&settings_path)?)
                .map_err(|error| malformed(&settings_path, error))?
        } else {
            Map::new()
        };
        let template_path = dir.join("chat_template.jinja");
        if template_path.exists() {
            let template = String::from_utf8(read(&template_path)?)
                .map_err(|error| malformed(&template_path, error))?;
            settings.insert("chat_template".to_string(), template.into());
        }
        Tokenizer::new(inner, settings).map_err(|problem| malformed(&path, problem))
    }

    /// Builds the byte-level BPE of a GGUF file; `path` is named in errors.
    ///
    /// # Errors
    /// An unknown pre-tokenizer, a token twice, a merge of unknown tokens, an id out of range.
    pub fn from_gguf(vocabulary: GgufVocabulary, path: &Path) -> Result<Tokenizer, TokenizerError> {
        gguf_vocabulary::build(vocabulary).map_err(|problem| malformed(path, problem))
    }

    /// One token a byte (id = byte), then `<|im_start|>` 256, `<|im_end|>` 257 (ends a completion)
    /// and `<|endoftext|>` 258; ChatML conversations.
    pub fn byte_level() -> Tokenizer {
        let specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"].map(String::from);
        let bytes = (0..=255).map(|byte| byte_symbol(byte).to_string());
        let vocab: Vocab = bytes.chain(specials.clone()).zip(0..).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, Vec::new())
            .build()
            .expect("a vocabulary without merges is consistent");
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
        inner.with_decoder(Some(ByteLevel::default()));
        inner.add_special_tokens(&specials.map(|s| AddedToken::from(s, true)));
        let settings = settings(
            None,
            Some("<|im_end|>"),
            Some("<|endoftext|>"),
            Some(CHATML),
        );
        Tokenizer::new(inner, settings).expect("every token named is in the vocabulary")
    }

    fn new(
        mut inner: tokenizers::Tokenizer,
        settings: Map<String, serde_json::Value>,
    ) -> Result<Tokenizer, String> {
        // BPE alone: its encoding can't fail, whatever the text.
        let ModelWrapper::BPE(bpe) = inner.get_model() else {
            return Err("not a BPE tokenizer; no other kind is supported".to_string());
        };
        if let Some(unknown) = &bpe.unk_token
            && inner.token_to_id(unknown).is_none()
        {
            return Err(format!(
                "the unknown token '{unknown}' is not in the vocabulary"
            ));
        }
        // A file may carry both from training; here they would cut or stretch prompts silently.
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.with_padding(None);
        let ids: BTreeSet<u32> = inner.get_vocab(true).into_values().collect();
        let vocab_size = ids.last().map_or(0, |&id| id + 1);
        let tokenizer = Tokenizer {
            vocab_size: vocab_size as usize,
            unused_ids: (0..vocab_size).filter(|id| !ids.contains(id)).collect(),
            inner,
            settings,
        };
        for (key, token) in [
            ("bos_token", tokenizer.bos_token()),
            ("eos_token", tokenizer.eos_token()),
        ] {
            if let Some(token) = token
                && tokenizer.token_id(token).is_none()
            {
                return Err(format!(
                    "{key} '{token}' of tokenizer_config.json is not in the vocabulary"
                ));
            }
        }
        Ok(tokenizer)
    }

    /// Token ids of `text`, nothing added. The texts of special tokens become those tokens, as
    /// rendered conversations need it; so a message that contains `<|im_end|>` ends its turn, just
    /// as in transformers.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.inner
            .encode_fast(text, false)
            .expect("a BPE whose unknown token exists encodes every text")
            .get_ids()
            .to_vec()
    }

    /// Text of `ids`. Special tokens and ids outside the vocabulary are left out, incomplete UTF-8
    /// becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner
            .decode(ids, true)
            .expect("the decoders of BPE tokenizers accept every token")
    }

    /// Text of `ids` with the texts of special tokens.
    ///
    /// # Errors
    /// The first id that is no token.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if let Some(&id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(TokenizerError::UnknownId(id));
        }
        let text = self.inner.decode(ids, false);
        Ok(text.expect("the decoders of BPE tokenizers accept every token"))
    }

    /// The bytes that token `id` stands for, which may be a part of a character; `None` where it is no token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.id_to_token(id)?;
        let text = self.inner.decode(&[id], false);
        let text = text.expect("the decoders of BPE tokenizers accept every token");
        let bytes: Option<Vec<u8>> = token.chars().map(symbol_byte).collect();
        // Not byte-level, or with a letter that stands for no byte: its text is all there is.
        match bytes {
            Some(bytes) if String::from_utf8_lossy(&bytes) == text => Some(bytes),
            _ => Some(text.into_bytes()),
        }
    }

    /// Ids below [`Tokenizer::vocab_size`] that are no token, ascending.
    pub fn unused_ids(&self) -> &[u32] {
        &self.unused_ids
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// No token stands for more bytes of text than this.
    pub fn max_token_bytes(&self) -> usize {
        // A symbol of a byte-level vocabulary is a byte, and has at least one.
        let tokens = self.inner.get_vocab(true).into_keys();
        tokens.map(|token| token.len()).max().unwrap_or(0)
    }

    /// Id of the token whose text is `token`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Begin-of-sequence token.
    pub fn bos_token(&self) -> Option<&str> {
        self.special_token("bos_token")
    }

    /// End-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_token("eos_token")
    }

    /// Jinja template of conversations.
    pub fn chat_template(&self) -> Option<&str> {
        match self.settings.get("chat_template")? {
            serde_json::Value::Array(named) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str()),
            one => one.as_str(),
        }
    }

    #[cfg(test)]
    pub(crate) fn set_chat_template(&mut self, template: &str) {
        self.settings
            .insert("chat_template".to_string(), template.into());
    }

    /// Special tokens by their keys (`bos_token`, `eos_token`, `pad_token`, ...).
    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        let keys = self.settings.keys().filter(|key| key.ends_with("_token"));
        keys.filter_map(|key| Some((key.as_str(), self.special_token(key)?)))
    }

    fn special_token(&self, key: &str) -> Option<&str> {
        match self.settings.get(key)? {
            serde_json::Value::Object(token) => token.get("content")?.as_str(),
            token => token.as_str(),
        }
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (chat template included) into the folder
    /// `dir`, in the form that transformers' `AutoTokenizer` reads.
    ///
    /// # Errors
    /// The files can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), TokenizerError> {
        let tokens = serde_json::to_vec(&self.inner).expect("a tokenizer is plain data");
        let settings = serde_json::to_vec_pretty(&self.settings).expect("settings are JSON");
        for (name, bytes) in [
            ("tokenizer.json", tokens),
            ("tokenizer_config.json", settings),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|source| TokenizerError::Io { path, source })?;
        }
        Ok(())
    }
}

/// The library numbers added tokens itself, one after the other; `file`, a tokenizer.json, says which
/// ids they must have.
fn check_added_ids(file: &[u8], inner: &tokenizers::Tokenizer) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(serde::Deserialize)]
    struct Added {
        id: u32,
        content: String,
    }
    let File { added_tokens } = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    for Added { id, content } in added_tokens {
        let given = inner.token_to_id(&content);
        if given != Some(id) {
            let given = given.map_or("none".to_string(), |id| id.to_string());
            return Err(format!(
                "the added token '{content}' has id {id}, but would get {given}: added tokens must follow \
                 the vocabulary and each other without a gap"
            ));
        }
    }
    Ok(())
}

/// The `tokenizer_config.json` of a tokenizer that was not read from a folder.
fn settings(
    bos: Option<&str>,
    eos: Option<&str>,
    pad: Option<&str>,
    chat_template: Option<&str>,
) -> Map<String, serde_json::Value> {
    let mut settings = Map::new();
    settings.insert(
        "tokenizer_class".to_string(),
        json!("PreTrainedTokenizerFast"),
    );
    settings.insert("clean_up_tokenization_spaces".to_string(), json!(false));
    for (key, value) in [
        ("bos_token", bos),
        ("eos_token", eos),
        ("pad_token", pad),
        ("chat_template", chat_template),
    ] {
        if let Some(value) = value {
            settings.insert(key.to_string(), json!(value));
        }
    }
    settings
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2): printable Latin-1 for
/// itself, the other bytes in order from U+0100.
fn byte_symbol(byte: u8) -> char {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(&byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).expect("at most 68 characters after U+0100")
}

/// The byte that `symbol` stands for: the inverse of [`byte_symbol`].
fn symbol_byte(symbol: char) -> Option<u8> {
    (0..=255).find(|&byte| byte_symbol(byte) == symbol)
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Io {
        path: path.to_path_buf(),
        source,
    })
}

fn malformed(path: &Path, problem: impl ToString) -> TokenizerError {
    TokenizerError::Malformed {
        path: path.to_path_buf(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests;
