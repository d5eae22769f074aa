//! The tokenizer of a GGUF file, from its `tokenizer.ggml.*` entries, and back.
//!
//! A GGUF file names its splitting rule (`tokenizer.ggml.pre`) and leaves the rule itself to the
//! program. The rules here give the ids that llama.cpp gives, which is the reference for GGUF.
//! What `tokenizer.json` has no place for is kept beside it as [`Notes`]; what the lists of GGUF have no
//! place for is kept in the file's `tokenizer.huggingface.json`.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::scores::Scores;
use super::{Alphabet, Settings, json};
use crate::error::TextError;

mod splitting;
mod write;

pub(super) use self::splitting::{LLAMA3, split_by};
pub(super) use self::write::vocab;

/// The `tokenizer.ggml.*` entries of a GGUF file; each field says which.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the name of the splitting rule.
    pub pre: Option<String>,
    /// `tokens`, in the order of their ids. A spelling may be empty or stand there twice.
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
    /// Every other id, by the name of its entry, such as `eot_token_id`.
    pub other_ids: BTreeMap<String, u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// The other templates, `tokenizer.chat_template.NAME`, by their names.
    pub chat_templates: BTreeMap<String, String>,
    /// `tokenizer.huggingface.json`: the whole `tokenizer.json`, where the lists cannot say all of it.
    pub huggingface_json: Option<String>,
}

/// What a GGUF vocabulary says that `tokenizer.json` has no place for. It lies in `tokenizer_config.json`
/// under `gguf`, where other programs overlook it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Notes {
    /// The name of the splitting rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pre: Option<String>,
    /// The true spellings of tokens that have a stand-in: empty ones, and those that another id has.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) spellings: BTreeMap<u32, String>,
    /// Ids of each type where `tokenizer.json` would say another.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) token_types: BTreeMap<u32, Vec<u32>>,
    /// The scores of a SentencePiece vocabulary.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) scores: Vec<f32>,
    /// Ids such as `eot_token_id`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) other_ids: BTreeMap<String, u32>,
}

pub(super) const NORMAL: u32 = 1;
const UNKNOWN: u32 = 2;
pub(super) const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const UNUSED: u32 = 5;
const BYTE: u32 = 6;

/// Spellings that end an answer of a GGUF model whatever their type is, as llama.cpp has them: ends of
/// turns and texts, and what follows the middle that a model fills in.
const ENDS: [&str; 33] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Builds the tokenizer of a GGUF vocabulary.
pub(super) fn build(mut vocab: GgufVocab) -> Result<(tokenizers::Tokenizer, Settings), TextError> {
    check(&vocab)?;
    let ends = end_ids(&vocab.tokens);
    let respelled = stand_ins(&mut vocab.tokens);
    let own_types = vocab.token_types.clone();
    vocab.token_types.resize(vocab.tokens.len(), NORMAL);
    for id in &ends {
        // llama.cpp takes them for control tokens, whatever the file says.
        vocab.token_types[*id as usize] = CONTROL;
    }
    let scores = match vocab.model.as_str() {
        "llama" => Some(Scores::of(&vocab)?),
        _ => None,
    };
    let whole = vocab.huggingface_json.as_deref().and_then(|file| same_ids(file, &vocab.tokens));
    let lists = match vocab.model.as_str() {
        "gpt2" => byte_level_bpe(&vocab)?,
        "llama" => sentencepiece_bpe(&vocab)?,
        other => {
            return Err(TextError::Unsupported(format!("the GGUF vocabulary type \"{other}\"")));
        }
    };
    let file = whole.is_some().then_some(vocab.huggingface_json.take()).flatten();
    let (inner, alphabet, scores) = match whole {
        Some(inner) => {
            let alphabet = json::alphabet_of(&inner)?;
            (inner, alphabet, None)
        }
        None => {
            let mut inner = lists.inner;
            inner.add_tokens(&added_tokens(&vocab, &respelled));
            (inner, lists.alphabet, scores)
        }
    };
    let around = |add: bool, id: Option<u32>| -> Vec<u32> { id.filter(|_| add).into_iter().collect() };
    let notes = Notes {
        token_types: untold_types(&vocab, &own_types, alphabet, &respelled),
        pre: vocab.pre,
        spellings: respelled,
        scores: if scores.is_some() { vocab.scores } else { Vec::new() },
        other_ids: vocab.other_ids,
    };
    let settings = Settings {
        alphabet,
        bos_id: vocab.bos_id,
        eos_id: vocab.eos_id,
        pad_id: vocab.pad_id,
        unknown_id: vocab.unknown_id,
        end_ids: ends,
        prefix: around(vocab.add_bos.unwrap_or(lists.adds_bos), vocab.bos_id),
        suffix: around(vocab.add_eos.unwrap_or(false), vocab.eos_id),
        chat_template: vocab.chat_template,
        chat_templates: vocab.chat_templates,
        scores,
        notes,
        file,
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
    let ids = [vocab.bos_id, vocab.eos_id, vocab.unknown_id];
    if let Some(id) = ids.into_iter().flatten().find(|id| *id as usize >= count) {
        return bad(format!("the special token {id} is outside the vocabulary of {count} tokens"));
    }
    Ok(())
}

/// The ids that end an answer by their spelling.
fn end_ids(tokens: &[String]) -> Vec<u32> {
    let mut by_text: HashMap<&str, u32> = HashMap::new();
    for (text, id) in tokens.iter().zip(0u32..) {
        by_text.entry(text).or_insert(id);
    }
    let has = |text: &str| by_text.contains_key(text);
    // Where calls and returns have tokens of their own, a message ends without the answer ending.
    let messages = has("<|call|>") && has("<|return|>") || has("<|calls|>") && has("<|flush|>");
    let ends = ENDS.iter().filter(|text| match **text {
        "<|end|>" => !messages,
        "</s>" => !has("<|tool_response>"),
        _ => true,
    });
    ends.filter_map(|text| by_text.get(text).copied()).collect()
}

/// Gives every token a spelling of its own, so that a map by spelling can hold them: the first id with a
/// spelling keeps it. Gives the true spellings of the others. No text is split into a stand-in, since it
/// has a space, which no piece of a text has.
fn stand_ins(tokens: &mut [String]) -> BTreeMap<u32, String> {
    let changed: Vec<u32> = {
        let mut seen = HashSet::new();
        let ids = (0u32..).zip(tokens.iter());
        ids.filter(|(_, token)| token.is_empty() || !seen.insert(token.as_str())).map(|(id, _)| id).collect()
    };
    let mut true_spellings = BTreeMap::new();
    for id in changed {
        let token = &mut tokens[id as usize];
        let what = if token.is_empty() { "empty" } else { "duplicate" };
        true_spellings.insert(id, std::mem::replace(token, format!("[{what} token {id}]")));
    }
    true_spellings
}

/// The tokens that are found in a text before it is split. User-defined tokens are text; the others
/// steer the model.
fn added_tokens(vocab: &GgufVocab, respelled: &BTreeMap<u32, String>) -> Vec<AddedToken> {
    (0u32..)
        .zip(vocab.tokens.iter().zip(&vocab.token_types))
        .filter(|(id, (_, kind))| {
            matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !respelled.contains_key(id)
        })
        .map(|(_, (text, kind))| AddedToken::from(text.as_str(), *kind != USER_DEFINED).normalized(false))
        .collect()
}

/// Ids by the type that a file gives them, where the flags of added tokens do not tell it.
fn untold_types(
    vocab: &GgufVocab,
    own: &[u32],
    alphabet: Alphabet,
    respelled: &BTreeMap<u32, String>,
) -> BTreeMap<u32, Vec<u32>> {
    let pieces = matches!(alphabet, Alphabet::SentencePiece { .. });
    let mut untold: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (id, own) in (0u32..).zip(own) {
        let told = match vocab.token_types[id as usize] {
            _ if respelled.contains_key(&id) => NORMAL,
            UNKNOWN | CONTROL if pieces && vocab.unknown_id == Some(id) => UNKNOWN,
            UNKNOWN | CONTROL => CONTROL,
            USER_DEFINED => USER_DEFINED,
            _ if pieces && byte_of(&vocab.tokens[id as usize]).is_some() => BYTE,
            _ => NORMAL,
        };
        if told != *own {
            untold.entry(*own).or_default().push(id);
        }
    }
    untold
}

/// The tokenizer of a `tokenizer.json`, if it has the ids that the list of tokens says.
fn same_ids(file: &str, tokens: &[String]) -> Option<tokenizers::Tokenizer> {
    let inner = json::parse(file.as_bytes()).ok()?;
    let same = |(text, id): (&String, &u32)| tokens.get(*id as usize) == Some(text);
    inner.get_vocab(true).iter().all(same).then_some(inner)
}

/// What the lists of a vocabulary say, without its added tokens.
struct Lists {
    inner: tokenizers::Tokenizer,
    alphabet: Alphabet,
    /// Whether the beginning-of-text token comes first unless the file says otherwise.
    adds_bos: bool,
}

fn spellings(tokens: &[String]) -> Vocab {
    (0u32..).zip(tokens).map(|(id, text)| (text.clone(), id)).collect()
}

fn byte_level_bpe(vocab: &GgufVocab) -> Result<Lists, TextError> {
    let pre = vocab.pre.as_deref().unwrap_or("default");
    let rule = splitting::rule(pre)
        .ok_or_else(|| TextError::Unsupported(format!("the GGUF pre-tokenizer \"{pre}\"")))?;
    // A left half may begin with the space that is elsewhere the separator.
    let halves = |line: &str| {
        let at = line.char_indices().skip(1).find(|(_, character)| *character == ' ')?.0;
        Some((line[..at].to_owned(), line[at + 1..].to_owned()))
    };
    let mut seen = HashSet::new();
    // Of a merge that stands there twice, the better place counts.
    let lines = vocab.merges.iter().filter(|line| seen.insert(line.as_str()));
    let merges = lines
        .map(|line| halves(line))
        .collect::<Option<Merges>>()
        .ok_or_else(|| TextError::BadTokenizer("a merge is not two tokens and a space".into()))?;
    let bpe = BPE::builder().ignore_merges(rule.ignore_merges);
    let mut inner = tokenizers::Tokenizer::new(finish(bpe, spellings(&vocab.tokens), merges)?);
    inner.with_pre_tokenizer(Some(rule.splitter()?));
    inner.with_decoder(Some(ByteLevel::new(false, true, false)));
    Ok(Lists { inner, alphabet: Alphabet::ByteLevel, adds_bos: rule.adds_bos })
}

impl GgufVocab {
    /// Says that `ids` end an answer, too. Those that do so by their spelling, or have an entry, need
    /// nothing; two others find one. Gives what is left.
    pub fn end_with(&mut self, ids: &[u32]) -> Vec<u32> {
        let known = end_ids(&self.tokens);
        let mut left = Vec::new();
        for id in ids.iter().copied().filter(|id| (*id as usize) < self.tokens.len()) {
            let named =
                self.other_ids.get("eot_token_id").into_iter().chain(self.other_ids.get("eom_token_id"));
            if known.contains(&id) || self.eos_id == Some(id) || named.copied().any(|named| named == id) {
                continue;
            }
            let free =
                ["eot_token_id", "eom_token_id"].into_iter().find(|name| !self.other_ids.contains_key(*name));
            match free {
                _ if self.eos_id.is_none() => self.eos_id = Some(id),
                Some(name) => {
                    self.other_ids.insert(name.to_owned(), id);
                }
                None => left.push(id),
            }
        }
        left
    }

    /// Gives the vocabulary one token for each of `rows` rows of an embedding. Ids without a token get an
    /// unused one, named as converters of llama.cpp name it; tokens without a row go. Gives their number.
    pub fn fit(&mut self, rows: usize) -> usize {
        let gone = self.tokens.len().saturating_sub(rows);
        if self.token_types.is_empty() {
            self.token_types.resize(self.tokens.len(), NORMAL);
        }
        self.tokens.truncate(rows);
        let ids = self.tokens.len()..rows;
        self.tokens.extend(ids.map(|id| format!("[PAD{id}]")));
        self.token_types.resize(rows, UNUSED);
        if !self.scores.is_empty() {
            let last = self.scores.iter().copied().fold(0.0, f32::min);
            self.scores.resize(rows, last);
        }
        let has_row = |id: &u32| (*id as usize) < rows;
        for id in [&mut self.bos_id, &mut self.eos_id, &mut self.unknown_id, &mut self.pad_id] {
            *id = id.filter(has_row);
        }
        self.other_ids.retain(|_, id| has_row(id));
        gone
    }
}

impl Scores {
    /// Those of a SentencePiece vocabulary.
    pub(super) fn of(vocab: &GgufVocab) -> Result<Self, TextError> {
        let count = vocab.tokens.len();
        if vocab.scores.len() != count {
            return Err(TextError::BadTokenizer(format!(
                "there are {count} tokens but {} scores",
                vocab.scores.len()
            )));
        }
        let mut bytes = vec![None; 256];
        let mut tokens = Vec::new();
        let entries = vocab.tokens.iter().zip(&vocab.scores).zip(&vocab.token_types);
        for (id, ((text, score), kind)) in (0u32..).zip(entries) {
            match (byte_of(text), *kind) {
                (Some(byte), BYTE | NORMAL) => bytes[usize::from(byte)] = Some(id),
                (_, UNKNOWN | CONTROL | USER_DEFINED) => {}
                _ => tokens.push((text.clone(), id, *score)),
            }
        }
        Ok(Self::new(tokens.into_iter(), bytes, vocab.unknown_id))
    }
}

/// A SentencePiece BPE. Its file has no merges but a score for each token: of all neighbouring pairs that
/// spell a token, the one with the best score is joined first. [`Scores`] does that; the merges here are
/// what comes nearest for programs that know merges alone: each way to split a token in two, ranked by the
/// score of the token.
fn sentencepiece_bpe(vocab: &GgufVocab) -> Result<Lists, TextError> {
    let count = vocab.tokens.len();
    let kind = |id: usize| vocab.token_types.get(id).copied().unwrap_or(NORMAL);
    let mergeable: HashMap<&str, f32> = (0..count)
        .filter(|id| !matches!(kind(*id), UNKNOWN | CONTROL | USER_DEFINED | BYTE))
        .map(|id| (vocab.tokens[id].as_str(), vocab.scores[id]))
        .collect();
    let mut ranked: Vec<(f32, &str, &str)> = Vec::new();
    for token in &vocab.tokens {
        let Some(score) = mergeable.get(token.as_str()) else {
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
    let mut inner = tokenizers::Tokenizer::new(finish(bpe, spellings(&vocab.tokens), merges)?);
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
    Ok(Lists { inner, alphabet: Alphabet::SentencePiece { drop_first_space }, adds_bos: true })
}

pub(super) fn finish(builder: BpeBuilder, vocab: Vocab, merges: Merges) -> Result<BPE, TextError> {
    builder.vocab_and_merges(vocab, merges).build().map_err(bad)
}

fn bad(error: impl std::fmt::Display) -> TextError {
    TextError::BadTokenizer(error.to_string())
}
