//! What can go wrong between text and tokens.

/// Every failure of this crate: a file that cannot be used, or text that cannot be turned into ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The tokenizer's own file is broken or incomplete.
    #[error("The tokenizer cannot be read: {0}.")]
    BadTokenizer(String),
    /// The file is fine but asks for a method that this crate does not implement.
    #[error(
        "The tokenizer uses {0}, which is not supported; use a checkpoint with a byte-level or SentencePiece BPE."
    )]
    Unsupported(String),
    /// The tokenizer works, but the lists of a GGUF file have no words for it.
    #[error("A GGUF file cannot hold {0}; convert to f32, f16, bf16 or fp8, which makes a folder.")]
    NotInGguf(String),
    /// A text could not be tokenised.
    #[error("The text could not be tokenised: {0}.")]
    Encode(String),
    /// The template does not compile, or refused the conversation.
    #[error("The chat template failed: {0}.")]
    Template(String),
}
