//! Placeholder.
/// Token ids from text and back.
#[derive(Debug)]
pub struct Tokenizer;
