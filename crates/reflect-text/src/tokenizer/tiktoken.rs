//! The `tokenizer.model` of Meta's Llama 3 releases.
//!
//! The file lists byte strings in base64 with their ranks. Merging joins the neighbouring pair whose
//! joint bytes have the lowest rank, and a piece that is itself in the list is taken whole. As
//! merges of a BPE this is every way to split a token into two others, in the order of the ranks.

use std::collections::{BTreeMap, HashMap};

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::{Alphabet, Settings, byte_level, gguf};
use crate::error::TextError;

/// Number of ids after the ranks that are set aside for special tokens.
const SPECIAL_COUNT: usize = 256;

pub(super) fn build(file: &[u8]) -> Result<(tokenizers::Tokenizer, Settings), TextError> {
    let tokens = parse(file)?;
    let first_special =
        u32::try_from(tokens.len()).map_err(|_| TextError::BadTokenizer("it has too many tokens".into()))?;
    let ranks: HashMap<&[u8], u32> = (0u32..).zip(&tokens).map(|(r, t)| (t.as_slice(), r)).collect();
    if ranks.len() != tokens.len() {
        return Err(TextError::BadTokenizer("two ranks have the same bytes".into()));
    }
    let mut merges = Merges::new();
    for token in &tokens {
        let mut splits: Vec<(u32, u32, usize)> = (1..token.len())
            .filter_map(|at| Some((*ranks.get(&token[..at])?, *ranks.get(&token[at..])?, at)))
            .collect();
        splits.sort_unstable();
        merges.extend(
            splits
                .into_iter()
                .map(|(_, _, at)| (byte_level::encode(&token[..at]), byte_level::encode(&token[at..]))),
        );
    }
    let vocab: Vocab = (0u32..).zip(&tokens).map(|(r, t)| (byte_level::encode(t), r)).collect();
    let bpe = gguf::finish(BPE::builder().ignore_merges(true), vocab, merges)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(gguf::split_by(&[gguf::LLAMA3])?));
    let special: Vec<AddedToken> =
        special_names().into_iter().map(|name| AddedToken::from(name, true)).collect();
    inner.add_special_tokens(&special);
    let settings = Settings {
        alphabet: Alphabet::ByteLevel,
        bos_id: Some(first_special),
        eos_id: Some(first_special + 1),
        pad_id: None,
        unknown_id: None,
        end_ids: super::end_ids(&inner),
        prefix: vec![first_special],
        suffix: vec![],
        chat_template: None,
        chat_templates: BTreeMap::new(),
        scores: None,
        notes: gguf::Notes::default(),
        file: None,
    };
    Ok((inner, settings))
}

/// The special tokens in the order of their ids.
fn special_names() -> Vec<String> {
    let named = [
        (0, "begin_of_text"),
        (1, "end_of_text"),
        (4, "finetune_right_pad_id"),
        (5, "step_id"),
        (6, "start_header_id"),
        (7, "end_header_id"),
        (8, "eom_id"),
        (9, "eot_id"),
        (10, "python_tag"),
        (11, "image"),
    ];
    let mut reserved = 0..;
    (0..SPECIAL_COUNT)
        .map(|index| match named.iter().find(|(at, _)| *at == index) {
            Some((_, name)) => format!("<|{name}|>"),
            None => format!("<|reserved_special_token_{}|>", reserved.next().unwrap_or(index)),
        })
        .collect()
}

/// The byte strings in the order of their ranks.
fn parse(file: &[u8]) -> Result<Vec<Vec<u8>>, TextError> {
    let text = std::str::from_utf8(file)
        .map_err(|_| TextError::BadTokenizer("it is not a list of base64 and ranks".into()))?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let entry = line
            .split_once(' ')
            .and_then(|(bytes, rank)| Some((base64(bytes)?, rank.trim().parse::<usize>().ok()?)));
        match entry {
            Some((bytes, rank)) if rank == tokens.len() && !bytes.is_empty() => tokens.push(bytes),
            _ => {
                return Err(TextError::BadTokenizer(format!(
                    "line {} is not base64 and the next rank",
                    number + 1
                )));
            }
        }
    }
    if tokens.is_empty() {
        return Err(TextError::BadTokenizer("the file is empty".into()));
    }
    Ok(tokens)
}

/// Decodes standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0u32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_vectors() {
        // RFC 4648, section 10.
        for (text, bytes) in [("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(base64("Zg"), None);
        assert_eq!(base64("Z==="), None);
        assert_eq!(base64("Z*=="), None);
    }

    #[test]
    fn special_names_are_numbered_around_the_named_ones() {
        let names = special_names();
        assert_eq!(names.len(), 256);
        assert_eq!(names[2], "<|reserved_special_token_0|>");
        assert_eq!(names[9], "<|eot_id|>");
        assert_eq!(names[12], "<|reserved_special_token_2|>");
        assert_eq!(names[255], "<|reserved_special_token_245|>");
    }

    #[test]
    fn broken_files_are_refused() {
        for file in ["", "QQ== 1\n", "QQ==\n", "?? 0\n", "QQ== 0\nQQ== 1\n"] {
            assert!(build(file.as_bytes()).is_err(), "{file:?}");
        }
    }
}
