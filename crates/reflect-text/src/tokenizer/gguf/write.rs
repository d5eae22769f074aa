//! A tokenizer as the `tokenizer.ggml.*` entries of a GGUF file.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use tokenizers::Model;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;

use super::super::{Alphabet, Settings};
use super::splitting::{self, Step};
use super::{BYTE, CONTROL, GgufVocab, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, bad, byte_of};
use crate::error::TextError;

/// The entries of a BPE tokenizer, and what they cannot say, each as a clause. `file` is the
/// `tokenizer.json` that it was read from, where it was; where the entries leave something out, it becomes
/// [`GgufVocab::huggingface_json`].
pub(in super::super) fn vocab(
    inner: &tokenizers::Tokenizer,
    settings: &Settings,
    file: Option<&[u8]>,
) -> Result<(GgufVocab, Vec<String>), TextError> {
    let bpe = match inner.get_model() {
        ModelWrapper::BPE(bpe) => bpe,
        ModelWrapper::Unigram(_) => return Err(unnamed("a Unigram vocabulary")),
        ModelWrapper::WordPiece(_) => return Err(unnamed("a WordPiece vocabulary")),
        ModelWrapper::WordLevel(_) => return Err(unnamed("a vocabulary of whole words")),
    };
    if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() {
        return Err(unnamed("tokens that mark the beginning or the end of words"));
    }
    let text = match file {
        Some(bytes) => std::str::from_utf8(bytes).map_err(bad)?.to_owned(),
        None => inner.to_string(false).map_err(bad)?,
    };
    let mut parsed: Value = serde_json::from_str(&text).map_err(bad)?;
    let merges = merges(parsed.pointer_mut("/model/merges").map(Value::take).unwrap_or_default())?;
    let (tokens, token_types) = tokens(inner, settings);
    let mut losses = around_and_added(inner, settings);
    let mut vocab = GgufVocab {
        tokens,
        token_types,
        bos_id: settings.bos_id,
        eos_id: settings.eos_id,
        unknown_id: settings.unknown_id,
        pad_id: settings.pad_id,
        other_ids: settings.notes.other_ids.clone(),
        add_bos: Some(settings.bos_id.is_some_and(|id| settings.prefix.contains(&id))),
        add_eos: Some(settings.eos_id.is_some_and(|id| settings.suffix.contains(&id))),
        chat_template: settings.chat_template.clone(),
        chat_templates: settings.chat_templates.clone(),
        ..GgufVocab::default()
    };
    match settings.alphabet {
        Alphabet::ByteLevel => {
            vocab.model = "gpt2".to_owned();
            let name = byte_level_rule(inner, bpe, settings, &mut losses)?;
            vocab.pre = Some(name.to_owned());
            vocab.merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        }
        Alphabet::SentencePiece { .. } => {
            vocab.model = "llama".to_owned();
            vocab.pre = Some(settings.notes.pre.clone().unwrap_or_else(|| "default".to_owned()));
            vocab.add_space_prefix = Some(spaces(inner, bpe, &mut losses)?);
            vocab.scores = match settings.scores {
                Some(_) => settings.notes.scores.clone(),
                None => scores(&vocab.tokens, &vocab.token_types, &merges, &mut losses),
            };
            let last = vocab.scores.iter().copied().fold(0.0, f32::min);
            vocab.scores.resize(vocab.tokens.len(), last);
        }
    }
    vocab.huggingface_json = (!losses.is_empty()).then_some(text);
    Ok((vocab, losses))
}

fn unnamed(what: &str) -> TextError {
    TextError::NotInGguf(what.to_owned())
}

/// Merges in either spelling of `tokenizer.json`.
fn merges(list: Value) -> Result<Vec<(String, String)>, TextError> {
    let Value::Array(list) = list else { return Ok(Vec::new()) };
    let halves = |merge: &Value| match merge.as_array().map(Vec::as_slice) {
        Some([left, right]) => Some((left.as_str()?.to_owned(), right.as_str()?.to_owned())),
        _ => merge.as_str()?.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
    };
    let merges: Option<Vec<(String, String)>> = list.iter().map(halves).collect();
    merges.ok_or_else(|| TextError::BadTokenizer("a merge is not two tokens".into()))
}

/// Spelling and type of each id.
fn tokens(inner: &tokenizers::Tokenizer, settings: &Settings) -> (Vec<String>, Vec<u32>) {
    let mut kinds = kinds(inner, settings.alphabet);
    let count = kinds.len();
    for (kind, ids) in &settings.notes.token_types {
        ids.iter().filter(|id| (**id as usize) < count).for_each(|id| kinds[*id as usize] = *kind);
    }
    // An id without a token keeps its place, as converters of llama.cpp name it.
    let text = |id: u32| inner.id_to_token(id).unwrap_or_else(|| format!("[PAD{id}]"));
    let mut tokens: Vec<String> = (0..count as u32).map(text).collect();
    for (id, spelling) in settings.notes.spellings.iter().filter(|(id, _)| (**id as usize) < count) {
        tokens[*id as usize].clone_from(spelling);
    }
    (tokens, kinds)
}

/// The type of each id, as far as `tokenizer.json` tells it.
fn kinds(inner: &tokenizers::Tokenizer, alphabet: Alphabet) -> Vec<u32> {
    let by_text = inner.get_vocab(true);
    let count = by_text.values().max().map_or(0, |id| *id as usize + 1);
    let mut kinds = vec![UNUSED; count];
    let pieces = matches!(alphabet, Alphabet::SentencePiece { .. });
    for (text, id) in &by_text {
        let is_byte = pieces && byte_of(text).is_some();
        kinds[*id as usize] = if is_byte { BYTE } else { NORMAL };
    }
    let unknown = match inner.get_model() {
        ModelWrapper::BPE(bpe) => bpe.unk_token.as_deref(),
        _ => None,
    };
    for (id, token) in inner.get_added_vocabulary().get_added_tokens_decoder() {
        kinds[*id as usize] = match token.special {
            true if unknown == Some(token.content.as_str()) => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
    }
    kinds
}

/// What GGUF cannot say about the tokens put around a text and about those found in it.
fn around_and_added(inner: &tokenizers::Tokenizer, settings: &Settings) -> Vec<String> {
    let mut losses = Vec::new();
    let at_most = |ids: &[u32], id: Option<u32>| ids.iter().eq(id.as_ref().filter(|id| ids.contains(id)));
    if !at_most(&settings.prefix, settings.bos_id) || !at_most(&settings.suffix, settings.eos_id) {
        losses.push("that more than the begin and end tokens stand around a text".to_owned());
    }
    let normalises = inner.get_normalizer().is_some();
    let mut named = BTreeSet::new();
    for token in inner.get_added_vocabulary().get_added_tokens_decoder().values() {
        let flags = [
            (token.lstrip, "takes the white space before it"),
            (token.rstrip, "takes the white space behind it"),
            (token.single_word, "is a word of its own"),
            (token.normalized && normalises, "is looked for in the normalised text"),
        ];
        named
            .extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, what)| (what, token.content.clone())));
    }
    for what in named.iter().map(|(what, _)| *what).collect::<BTreeSet<_>>() {
        let all: Vec<&str> =
            named.iter().filter(|(other, _)| *other == what).map(|(_, t)| t.as_str()).collect();
        let more = if all.len() > 3 { format!(" and {} others", all.len() - 3) } else { String::new() };
        losses.push(format!("that {}{more} {what}", all[..all.len().min(3)].join(", ")));
    }
    losses
}

/// The name of the rule by which a byte-level BPE splits.
fn byte_level_rule(
    inner: &tokenizers::Tokenizer,
    bpe: &BPE,
    settings: &Settings,
    losses: &mut Vec<String>,
) -> Result<&'static str, TextError> {
    let pre = serde_json::to_value(inner.get_pre_tokenizer()).map_err(bad)?;
    let name = splitting::name_of(&pre, bpe.ignore_merges, settings.notes.pre.as_deref())
        .ok_or_else(|| unnamed("this tokenizer's way to split a text"))?;
    let rule = splitting::rule(name).ok_or_else(|| unnamed(name))?;
    let (own, named) =
        (splitting::steps(&pre), splitting::steps(&serde_json::to_value(rule.splitter()?).map_err(bad)?));
    if own.last() == Some(&Step::Bytes { adds_space: true }) {
        losses.push("that a text begins with a space".to_owned());
    }
    if own[..own.len() - 1] != named[..named.len() - 1] {
        losses.push(format!("how it splits letters that are not ASCII ({name} is near)"));
    }
    if let Some(normalizer) = inner.get_normalizer() {
        let normalizer = serde_json::to_value(normalizer).map_err(bad)?;
        losses.push(format!(
            "that a text is normalised first ({})",
            normalizer["type"].as_str().unwrap_or("?")
        ));
    }
    if rule.ignore_merges != bpe.ignore_merges && !merges_reach_all(inner, bpe)? {
        losses.push("which tokens are looked up before merging".to_owned());
    }
    Ok(name)
}

/// Whether merging gives every token of the vocabulary, so that looking whole pieces up first changes nothing.
fn merges_reach_all(inner: &tokenizers::Tokenizer, bpe: &BPE) -> Result<bool, TextError> {
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let mut merging = bpe.clone();
    merging.ignore_merges = false;
    for (text, id) in bpe.get_vocab().into_iter().filter(|(_, id)| !added.contains_key(id)) {
        let tokens = merging.tokenize(&text).map_err(bad)?;
        if tokens.len() != 1 || tokens[0].id != id {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a SentencePiece vocabulary puts a space before a text.
fn spaces(inner: &tokenizers::Tokenizer, bpe: &BPE, losses: &mut Vec<String>) -> Result<bool, TextError> {
    let normalizer = serde_json::to_value(inner.get_normalizer()).map_err(bad)?;
    let pre = serde_json::to_value(inner.get_pre_tokenizer()).map_err(bad)?;
    let steps: Vec<Value> = match normalizer["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => normalizer["normalizers"].as_array().cloned().unwrap_or_default(),
        Some(_) => vec![normalizer],
    };
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let metaspace =
        |scheme: &str| pre["type"] == "Metaspace" && pre["prepend_scheme"] == scheme && pre["split"] == false;
    if bpe.ignore_merges || !bpe.byte_fallback {
        losses.push("how it looks up whole pieces and bytes".to_owned());
    }
    if pre.is_null() && steps == [prepend.clone(), replace.clone()] {
        return Ok(true);
    }
    if pre.is_null() && steps == [replace] || steps.is_empty() && metaspace("never") {
        return Ok(false);
    }
    losses.push("where it puts spaces and normalises".to_owned());
    let adds = steps.contains(&prepend) || pre["type"] == "Metaspace" && pre["prepend_scheme"] != "never";
    Ok(adds)
}

/// Scores in the order of the merges that make each token.
fn scores(
    tokens: &[String],
    kinds: &[u32],
    merges: &[(String, String)],
    losses: &mut Vec<String>,
) -> Vec<f32> {
    let joined: Vec<String> = merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
    let mut ranks: HashMap<&str, usize> = HashMap::new();
    let mut listed: HashMap<&str, usize> = HashMap::new();
    let mut last = None;
    let mut in_runs = true;
    for text in &joined {
        let next = ranks.len();
        let rank = *ranks.entry(text).or_insert(next);
        in_runs &= rank == next || last == Some(rank);
        last = Some(rank);
        *listed.entry(text.as_str()).or_default() += 1;
    }
    let text_tokens: BTreeSet<&str> = tokens
        .iter()
        .zip(kinds)
        .filter(|(_, kind)| matches!(**kind, NORMAL | UNUSED))
        .map(|(text, _)| text.as_str())
        .collect();
    let ways = |text: &str| {
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        splits.filter(|(left, right)| text_tokens.contains(left) && text_tokens.contains(right)).count()
    };
    let all_ways = text_tokens.iter().all(|text| ways(text) == listed.get(text).copied().unwrap_or(0));
    if !in_runs || !all_ways {
        losses.push("which of the ways to join a token its merges leave out".to_owned());
    }
    let worst = ranks.len();
    let score = |(text, kind): (&String, &u32)| match *kind {
        NORMAL | UNUSED => -(ranks.get(text.as_str()).copied().unwrap_or(worst) as f32),
        _ => 0.0,
    };
    tokens.iter().zip(kinds).map(score).collect()
}
