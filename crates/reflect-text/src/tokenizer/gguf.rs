//! The tokenizer of a GGUF file, from its `tokenizer.ggml.*` entries.
//!
//! A GGUF file names its splitting rule (`tokenizer.ggml.pre`) and leaves the rule itself to the
//! program. The rules here give the ids that llama.cpp gives, which is the reference for GGUF.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::train::PIECES;
use super::{Alphabet, Settings};
use crate::error::TextError;

/// The `tokenizer.ggml.*` entries of a GGUF file; each field says which.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the name of the splitting rule.
    pub pre: Option<String>,
    /// `tokens`, in the order of their ids.
    pub tokens: Vec<String>,
    /// `token_type`, empty or one for each token: 1 normal, 2 unknown, 3 control, 4 user-defined,
    /// 5 unused, 6 byte.
    pub token_types: Vec<u32>,
    /// `merges`, best first, the two halves separated by a space.
    pub merges: Vec<String>,
    /// `scores`, one for each token of a `llama` vocabulary.
    pub scores: Vec<f32>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_id: Option<u32>,
    /// `unknown_token_id`.
    pub unknown_id: Option<u32>,
    /// `padding_token_id`.
    pub pad_id: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const UNUSED: u32 = 5;
const BYTE: u32 = 6;

/// Splitting rule of GPT-2, without the last alternative: what no alternative matches is a piece of
/// its own anyway.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// Splitting rule of Llama 3: contractions in any case, up to three digits together.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Splitting rule of Qwen 2: that of Llama 3, but each digit alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn build(vocab: GgufVocab) -> Result<(tokenizers::Tokenizer, Settings), TextError> {
    check(&vocab)?;
    let (mut inner, alphabet, adds_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level_bpe(&vocab)?,
        "llama" => sentencepiece_bpe(&vocab)?,
        other => {
            return Err(TextError::Unsupported(format!("the GGUF vocabulary type \"{other}\"")));
        }
    };
    let added: Vec<AddedToken> = vocab
        .tokens
        .iter()
        .zip(&vocab.token_types)
        .filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(text, kind)| AddedToken::from(text.as_str(), *kind != USER_DEFINED).normalized(false))
        .collect();
    inner.add_tokens(&added);
    let around = |add: bool, id: Option<u32>| -> Vec<u32> { id.filter(|_| add).into_iter().collect() };
    let settings = Settings {
        alphabet,
        bos_id: vocab.bos_id,
        eos_id: vocab.eos_id,
        prefix: around(vocab.add_bos.unwrap_or(adds_bos), vocab.bos_id),
        suffix: around(vocab.add_eos.unwrap_or(false), vocab.eos_id),
        chat_template: vocab.chat_template,
    };
    Ok((inner, settings))
}

/// The byte of a SentencePiece byte token such as `<0x0A>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Checks that the lists fit together.
fn check(vocab: &GgufVocab) -> Result<(), TextError> {
    let bad = |problem: String| Err(TextError::BadTokenizer(problem));
    let count = vocab.tokens.len();
    if count == 0 || u32::try_from(count).is_err() {
        return bad(format!("the vocabulary has {count} tokens"));
    }
    if !vocab.token_types.is_empty() && vocab.token_types.len() != count {
        return bad(format!("there are {count} tokens but {} token types", vocab.token_types.len()));
    }
    let ids = [vocab.bos_id, vocab.eos_id, vocab.unknown_id, vocab.pad_id];
    if let Some(id) = ids.into_iter().flatten().find(|id| *id as usize >= count) {
        return bad(format!("the special token {id} is outside the vocabulary of {count} tokens"));
    }
    Ok(())
}

/// The vocabulary as a map. Two ids may not share a spelling: one of them could never be made.
fn spellings(tokens: &[String]) -> Result<Vocab, TextError> {
    let map: Vocab = (0u32..).zip(tokens).map(|(id, text)| (text.clone(), id)).collect();
    if map.len() != tokens.len() {
        return Err(TextError::BadTokenizer(format!(
            "{} of its {} tokens are duplicates",
            tokens.len() - map.len(),
            tokens.len()
        )));
    }
    Ok(map)
}

/// A byte-level BPE, and whether it puts the beginning-of-text token first unless told otherwise.
fn byte_level_bpe(vocab: &GgufVocab) -> Result<(tokenizers::Tokenizer, Alphabet, bool), TextError> {
    let pre = vocab.pre.as_deref().unwrap_or("default");
    let is_llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let merges = vocab
        .merges
        .iter()
        .map(|line| line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect::<Option<Merges>>()
        .ok_or_else(|| TextError::BadTokenizer("a merge is not two tokens and a space".into()))?;
    let splitter = splitter(pre)?;
    let bpe = BPE::builder().ignore_merges(is_llama3);
    let mut inner = tokenizers::Tokenizer::new(finish(bpe, spellings(&vocab.tokens)?, merges)?);
    inner.with_pre_tokenizer(Some(splitter));
    inner.with_decoder(Some(byte_level(false)));
    Ok((inner, Alphabet::ByteLevel, is_llama3))
}

/// The splitting rule of a name.
fn splitter(pre: &str) -> Result<Sequence, TextError> {
    match pre {
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), byte_level(true).into()])),
        "gpt-2" => Ok(Sequence::new(vec![byte_level(true).into()])),
        "llama-bpe" | "llama3" | "llama-v3" => split_by(&[LLAMA3]),
        "qwen2" => split_by(&[QWEN2]),
        "reflect" => split_by(&[PIECES]),
        "default" => split_by(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
        other => Err(TextError::Unsupported(format!("the GGUF pre-tokenizer \"{other}\""))),
    }
}

/// The `tokenizer.ggml.*` entries of a byte-level BPE.
pub(super) fn vocab(inner: &tokenizers::Tokenizer, settings: &Settings) -> Result<GgufVocab, TextError> {
    let unnamed = |what: &str| TextError::Unsupported(format!("GGUF has no name for {what}"));
    let ModelWrapper::BPE(bpe) = inner.get_model() else {
        return Err(unnamed("a vocabulary that is no BPE"));
    };
    if settings.alphabet != Alphabet::ByteLevel || inner.get_normalizer().is_some() {
        return Err(unnamed("a vocabulary that does not spell bytes"));
    }
    let split = serde_json::to_value(inner.get_pre_tokenizer()).map_err(bad)?;
    // Trimming says where tokens lie in the text, not which they are.
    let plain = |mut value: serde_json::Value| {
        let steps = value["pretokenizers"].as_array_mut();
        for step in steps.into_iter().flatten() {
            if let Some(trim) = step.get_mut("trim_offsets") {
                *trim = false.into();
            }
        }
        value
    };
    let split = plain(split);
    let mut pre = None;
    for name in ["llama-bpe", "smollm", "gpt-2", "qwen2", "reflect"] {
        if plain(serde_json::to_value(splitter(name)?).map_err(bad)?) == split {
            pre = Some(name.to_owned());
        }
    }
    let pre = pre.ok_or_else(|| unnamed("this tokenizer's way to split a text"))?;
    let by_text = inner.get_vocab(true);
    let count = by_text.values().max().map_or(0, |id| *id as usize + 1);
    // An id without a token keeps its place, as converters of llama.cpp name it.
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut token_types = vec![UNUSED; count];
    for (text, id) in by_text {
        token_types[id as usize] = 1;
        tokens[id as usize] = text;
    }
    for (id, token) in inner.get_added_vocabulary().get_added_tokens_decoder() {
        token_types[*id as usize] = if token.special { CONTROL } else { USER_DEFINED };
        tokens[*id as usize] = token.content.clone();
    }
    let merges = serde_json::to_value(bpe).map_err(bad)?["merges"].take();
    let merges =
        merges.as_array().into_iter().flatten().map(|merge| match merge.as_array().map(Vec::as_slice) {
            Some([left, right]) => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
            _ => merge.as_str().map(str::to_owned),
        });
    let merges = merges.collect::<Option<Vec<String>>>();
    Ok(GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some(pre),
        tokens,
        token_types,
        merges: merges.ok_or_else(|| TextError::BadTokenizer("a merge is not two tokens".into()))?,
        bos_id: settings.bos_id,
        eos_id: settings.eos_id,
        add_bos: Some(settings.bos_id.is_some_and(|id| settings.prefix.contains(&id))),
        add_eos: Some(settings.eos_id.is_some_and(|id| settings.suffix.contains(&id))),
        chat_template: settings.chat_template.clone(),
        ..GgufVocab::default()
    })
}

/// A SentencePiece BPE. Its file has no merges but a score for each token: of all neighbouring
/// pairs that spell a token, the one with the best score is joined first. Each way to split a token
/// in two is therefore a merge, ranked by the score of the token.
fn sentencepiece_bpe(vocab: &GgufVocab) -> Result<(tokenizers::Tokenizer, Alphabet, bool), TextError> {
    let count = vocab.tokens.len();
    if vocab.scores.len() != count {
        return Err(TextError::BadTokenizer(format!(
            "there are {count} tokens but {} scores",
            vocab.scores.len()
        )));
    }
    let kind = |id: usize| vocab.token_types.get(id).copied().unwrap_or(1);
    let mergeable: HashMap<&str, f32> = (0..count)
        .filter(|id| !matches!(kind(*id), UNKNOWN | CONTROL | USER_DEFINED | BYTE))
        .map(|id| (vocab.tokens[id].as_str(), vocab.scores[id]))
        .collect();
    let mut ranked: Vec<(f32, &str, &str)> = Vec::new();
    for id in 0..count {
        let token = vocab.tokens[id].as_str();
        let Some(score) = mergeable.get(token) else {
            continue;
        };
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        ranked.extend(
            splits
                .filter(|(left, right)| mergeable.contains_key(left) && mergeable.contains_key(right))
                .map(|(left, right)| (*score, left, right)),
        );
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let merges = ranked.iter().map(|(_, l, r)| ((*l).to_owned(), (*r).to_owned())).collect();

    let mut bpe = BPE::builder().byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = vocab.unknown_id {
        bpe = bpe.unk_token(vocab.tokens[unknown as usize].clone());
    }
    let mut inner = tokenizers::Tokenizer::new(finish(bpe, spellings(&vocab.tokens)?, merges)?);
    let drop_first_space = vocab.add_space_prefix.unwrap_or(true);
    let spaces: NormalizerWrapper = Replace::new(" ", "▁").map_err(bad)?.into();
    let mut steps = vec![spaces];
    if drop_first_space {
        steps.insert(0, Prepend::new("▁".into()).into());
    }
    inner.with_normalizer(Some(Normalizers::new(steps)));
    let spaces: DecoderWrapper = Replace::new("▁", " ").map_err(bad)?.into();
    let mut decoders: Vec<DecoderWrapper> = vec![spaces, ByteFallback::new().into(), Fuse::new().into()];
    if drop_first_space {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(Decoders::new(decoders)));
    Ok((inner, Alphabet::SentencePiece { drop_first_space }, true))
}

/// Splits by each pattern in turn, matches and gaps alike, then spells bytes as characters.
pub(super) fn split_by(patterns: &[&str]) -> Result<Sequence, TextError> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(bad)?;
        steps.push(split.into());
    }
    steps.push(byte_level(false).into());
    Ok(Sequence::new(steps))
}

fn byte_level(use_regex: bool) -> ByteLevel {
    ByteLevel::new(false, true, use_regex)
}

pub(super) fn finish(builder: BpeBuilder, vocab: Vocab, merges: Merges) -> Result<BPE, TextError> {
    builder.vocab_and_merges(vocab, merges).build().map_err(bad)
}

fn bad(error: impl std::fmt::Display) -> TextError {
    TextError::BadTokenizer(error.to_string())
}
