//! Hugging Face's `tokenizer.json`, with the settings of `tokenizer_config.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Encoding, PostProcessor, Token};

use super::gguf::{GgufVocab, NORMAL, Notes};
use super::scores::Scores;
use super::{Alphabet, Settings};
use crate::error::TextError;

/// The part of `tokenizer_config.json` that matters here.
#[derive(Default, Deserialize)]
struct Config {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    unk_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<ChatTemplates>,
    #[serde(default)]
    gguf: Notes,
}

/// A token by its spelling, or by an object that holds the spelling.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Object { content: String },
}

impl TokenText {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

/// One template, or several by name, in either spelling that transformers reads.
#[derive(Deserialize)]
#[serde(untagged)]
enum ChatTemplates {
    One(String),
    List(Vec<NamedTemplate>),
    Map(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplates {
    /// By name; one alone is the default.
    fn by_name(self) -> BTreeMap<String, String> {
        match self {
            Self::One(template) => BTreeMap::from([("default".to_owned(), template)]),
            Self::List(list) => list.into_iter().map(|entry| (entry.name, entry.template)).collect(),
            Self::Map(map) => map,
        }
    }
}

/// Reads a `tokenizer.json`; what it says about padding and truncation is not for running a model.
pub(super) fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer, TextError> {
    let bad = |error: tokenizers::Error| TextError::BadTokenizer(error.to_string());
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(bad)?;
    inner.with_padding(None);
    inner.with_truncation(None).map_err(bad)?;
    Ok(inner)
}

pub(super) fn build(
    bytes: &[u8],
    config: Option<&[u8]>,
) -> Result<(tokenizers::Tokenizer, Settings), TextError> {
    let inner = parse(bytes)?;
    let config: Config = match config {
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|error| TextError::BadTokenizer(format!("tokenizer_config.json: {error}")))?,
        None => Config::default(),
    };
    let (mut prefix, mut suffix) = surroundings(&inner)?;
    let id = |text: &Option<TokenText>| text.as_ref().and_then(|t| inner.token_to_id(t.text()));
    let bos_id = id(&config.bos_token).or(prefix.first().copied());
    let eos_id = id(&config.eos_token);
    apply_setting(config.add_bos_token, bos_id, &mut prefix, 0);
    let end = suffix.len();
    apply_setting(config.add_eos_token, eos_id, &mut suffix, end);
    let mut templates = config.chat_template.map(ChatTemplates::by_name).unwrap_or_default();
    let alphabet = alphabet_of(&inner)?;
    let unknown = match inner.get_model() {
        ModelWrapper::BPE(bpe) => bpe.unk_token.as_deref().and_then(|text| inner.token_to_id(text)),
        _ => None,
    };
    let settings = Settings {
        alphabet,
        bos_id,
        eos_id,
        pad_id: id(&config.pad_token),
        unknown_id: unknown.or(id(&config.unk_token)),
        end_ids: super::end_ids(&inner),
        prefix,
        suffix,
        chat_template: templates.remove("default"),
        chat_templates: templates,
        scores: scores(&inner, alphabet, &config.gguf, unknown)?,
        notes: config.gguf,
        file: None,
    };
    Ok((inner, settings))
}

/// The scores that the notes of a GGUF file hold, for a vocabulary that still is the file's.
fn scores(
    inner: &tokenizers::Tokenizer,
    alphabet: Alphabet,
    notes: &Notes,
    unknown_id: Option<u32>,
) -> Result<Option<Scores>, TextError> {
    let count = notes.scores.len();
    if count == 0 || alphabet == Alphabet::ByteLevel {
        return Ok(None);
    }
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let tokens: Option<Vec<String>> = (0..count as u32).map(|id| inner.id_to_token(id)).collect();
    let Some(tokens) = tokens else { return Ok(None) };
    let kind = |id: u32| if added.contains_key(&id) { super::gguf::CONTROL } else { NORMAL };
    let token_types = (0..count as u32).map(kind).collect();
    let vocab =
        GgufVocab { tokens, token_types, scores: notes.scores.clone(), unknown_id, ..GgufVocab::default() };
    Scores::of(&vocab).map(Some)
}

/// The ids that the tokenizer's post-processor puts before and after a text, found by letting it
/// wrap an id that no vocabulary has.
fn surroundings(inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), TextError> {
    let Some(processor) = inner.get_post_processor() else {
        return Ok((vec![], vec![]));
    };
    let marker = Encoding::from_tokens(vec![Token::new(u32::MAX, String::new(), (0, 0))], 0);
    let wrapped =
        processor.process(marker, None, true).map_err(|error| TextError::BadTokenizer(error.to_string()))?;
    let mut sides = wrapped.get_ids().split(|id| *id == u32::MAX).map(<[u32]>::to_vec);
    Ok((sides.next().unwrap_or_default(), sides.next().unwrap_or_default()))
}

/// Makes `ids` follow an explicit `add_bos_token` or `add_eos_token`; silence changes nothing.
fn apply_setting(setting: Option<bool>, id: Option<u32>, ids: &mut Vec<u32>, position: usize) {
    match (setting, id) {
        (Some(true), Some(id)) if !ids.contains(&id) => ids.insert(position, id),
        (Some(false), Some(id)) => ids.retain(|other| *other != id),
        _ => {}
    }
}

/// How a vocabulary spells bytes, from its decoder or, where there is none, from what splits a text.
pub(super) fn alphabet_of(inner: &tokenizers::Tokenizer) -> Result<Alphabet, TextError> {
    let parts = match inner.get_decoder() {
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(single) => std::slice::from_ref(single),
        None => &[],
    };
    let has = |wanted: fn(&DecoderWrapper) -> bool| parts.iter().any(wanted);
    let splits = match inner.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(sequence)) => sequence.as_ref(),
        Some(single) => std::slice::from_ref(single),
        None => &[],
    };
    let spells_bytes = splits.iter().any(|part| matches!(part, PreTokenizerWrapper::ByteLevel(_)));
    if has(|part| matches!(part, DecoderWrapper::ByteLevel(_))) || (parts.is_empty() && spells_bytes) {
        return Ok(Alphabet::ByteLevel);
    }
    if has(|part| matches!(part, DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_))) {
        let drop_first_space =
            has(|part| matches!(part, DecoderWrapper::Metaspace(_) | DecoderWrapper::Strip(_)));
        return Ok(Alphabet::SentencePiece { drop_first_space });
    }
    Err(TextError::Unsupported("a vocabulary that is neither byte-level nor SentencePiece".into()))
}
