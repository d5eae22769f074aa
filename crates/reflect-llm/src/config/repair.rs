//! The known-broken uploads of Reflection-Llama-3.1-70B, and their repairs.

use super::{LLAMA31_ROPE_SCALING, LLAMA31_VOCAB, LlamaConfig, REFLECTION_VOCAB, RopeScaling};

/// A known fault of a published checkpoint and the change that cures it.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// What is wrong and what the repair does, as one sentence for the user.
    pub explanation: String,
    pub repair: Repair,
}

/// A change that makes a broken upload usable. Applied only when the user asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Add this many rows to the embedding and the head, each the mean of the others: wrap the
    /// weights in [`ExtendedVocabulary`](crate::weights::ExtendedVocabulary).
    ExtendVocabulary { rows: usize },
    /// Use the rope scaling and the context length of Llama 3.1.
    Llama31Rope,
}

impl Repair {
    /// Changes the configuration; the weights of [`Repair::ExtendVocabulary`] are the caller's.
    pub fn apply(self, config: &mut LlamaConfig) {
        match self {
            Repair::ExtendVocabulary { .. } => config.vocab_size = REFLECTION_VOCAB,
            Repair::Llama31Rope => {
                config.rope_scaling = LLAMA31_ROPE_SCALING;
                config.max_position_embeddings = 131_072;
            }
        }
    }
}

/// Recognises the known-broken uploads of Reflection-Llama-3.1-70B.
///
/// `embedding_rows` is what the weights hold, `tokenizer_len` what the tokenizer can emit. Llama
/// 3.0 models have the same rope settings rightly, so the rope fault is only claimed of a model
/// that shows the six reflection tokens.
pub fn diagnose(config: &LlamaConfig, embedding_rows: usize, tokenizer_len: usize) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    if embedding_rows == LLAMA31_VOCAB && tokenizer_len == REFLECTION_VOCAB {
        let rows = REFLECTION_VOCAB - LLAMA31_VOCAB;
        found.push(Diagnosis {
            explanation: format!(
                "this upload lost the embeddings of its {rows} reflection tags ({LLAMA31_VOCAB} rows under a tokenizer of {REFLECTION_VOCAB}); the repair adds the missing rows as the mean of the others"
            ),
            repair: Repair::ExtendVocabulary { rows },
        });
    }
    let reflection = [config.vocab_size, embedding_rows, tokenizer_len].contains(&REFLECTION_VOCAB);
    let llama30_rope = config.rope_scaling == RopeScaling::None
        && config.rope_freq_factors.is_none()
        && config.rope_theta == 500_000.0
        && config.max_position_embeddings == 8192;
    if reflection && llama30_rope {
        found.push(Diagnosis {
            explanation: "this upload has the rope settings of Llama 3.0 (no scaling, 8192 positions) on weights trained as Llama 3.1; the repair sets the Llama 3.1 scaling and 131072 positions".into(),
            repair: Repair::Llama31Rope,
        });
    }
    found
}
