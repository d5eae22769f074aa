//! Finding added tokens in a text, with a say in which of them count.
//!
//! The `tokenizers` library looks for added tokens before anything else, and either recognises special
//! ones everywhere or nowhere. Here the caller decides place by place. Where everything is allowed the
//! pieces are the library's own.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::normalizer::Range as Within;
use tokenizers::{AddedToken, AddedVocabulary, NormalizedString, Normalizer, NormalizerWrapper};
use tokenizers::{PreTokenizedString, Token};

use crate::error::TextError;

/// The added tokens of a vocabulary, ready for searching.
pub(super) struct AddedTokens {
    /// Those that are looked for in the text as it is.
    plain: Finder,
    /// Those that are looked for after normalisation.
    normalized: Finder,
}

struct Finder {
    search: AhoCorasick,
    /// In the order of the patterns.
    tokens: Vec<(u32, AddedToken)>,
}

/// A token found, and the bytes that it takes, white space around it included.
struct Found {
    id: u32,
    taken: Range<usize>,
}

impl AddedTokens {
    /// # Errors
    /// [`TextError::BadTokenizer`] if the automaton cannot be built.
    pub fn new(added: &AddedVocabulary, normalizer: Option<&NormalizerWrapper>) -> Result<Self, TextError> {
        let mut tokens: Vec<(u32, AddedToken)> =
            added.get_added_tokens_decoder().iter().map(|(id, token)| (*id, token.clone())).collect();
        tokens.sort_by_key(|(id, _)| *id);
        let (normalized, plain): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|(_, token)| token.normalized);
        let spelled = |token: &AddedToken| {
            let mut content = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = normalizer {
                normalizer
                    .normalize(&mut content)
                    .map_err(|error| TextError::BadTokenizer(error.to_string()))?;
            }
            Ok(content.get().to_owned())
        };
        Ok(Self {
            plain: Finder::new(plain, |token| Ok(token.content.clone()))?,
            normalized: Finder::new(normalized, spelled)?,
        })
    }

    /// The text in pieces: added tokens, and what lies between them, normalised. `allowed` is asked for
    /// each token that is found, with the bytes of its spelling in the text.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the normaliser gives up.
    pub fn extract(
        &self,
        text: &str,
        normalizer: Option<&NormalizerWrapper>,
        allowed: &impl Fn(u32, Range<usize>) -> bool,
    ) -> Result<PreTokenizedString, TextError> {
        let mut pieces = PreTokenizedString::from(text);
        // White space that normalisation puts into a spelling belongs to whatever stands before it.
        let allowed = &|id: u32, place: Range<usize>| {
            let Some(spelled) = text.get(place.clone()) else {
                return allowed(id, place);
            };
            let start = place.start + (spelled.len() - spelled.trim_start().len());
            allowed(id, start..start + spelled.trim().len())
        };
        let split = |pieces: &mut PreTokenizedString| {
            pieces.split(|_, piece| self.plain.split(piece, allowed))?;
            pieces.split(|_, mut piece| {
                if let Some(normalizer) = normalizer {
                    normalizer.normalize(&mut piece)?;
                }
                self.normalized.split(piece, allowed)
            })
        };
        split(&mut pieces).map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(pieces)
    }
}

type Piece = (NormalizedString, Option<Vec<Token>>);

impl Finder {
    fn new(
        tokens: Vec<(u32, AddedToken)>,
        spelling: impl Fn(&AddedToken) -> Result<String, TextError>,
    ) -> Result<Self, TextError> {
        let (mut patterns, mut kept) = (Vec::new(), Vec::new());
        for (id, token) in tokens {
            let pattern = spelling(&token)?;
            if !pattern.is_empty() {
                patterns.push(pattern);
                kept.push((id, token));
            }
        }
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns)
            .map_err(|error| TextError::BadTokenizer(error.to_string()))?;
        Ok(Self { search, tokens: kept })
    }

    fn split(
        &self,
        piece: NormalizedString,
        allowed: &impl Fn(u32, Range<usize>) -> bool,
    ) -> tokenizers::Result<Vec<Piece>> {
        let base = piece.offsets_original().0;
        let in_text = |range: Range<usize>| match piece.convert_offsets(Within::Normalized(range)) {
            Some(range) => base + range.start..base + range.end,
            None => 0..usize::MAX,
        };
        let found = self.find(piece.get(), &|id, range| allowed(id, in_text(range)));
        let cut = |range: Range<usize>| {
            piece.slice(Within::Normalized(range)).ok_or("a piece does not end between characters")
        };
        let mut pieces = Vec::with_capacity(2 * found.len() + 1);
        let mut at = 0;
        for Found { id, taken } in found {
            if at < taken.start {
                pieces.push((cut(at..taken.start)?, None));
            }
            at = taken.end;
            let spelled = cut(taken)?;
            let text = spelled.get().to_owned();
            let length = text.len();
            pieces.push((spelled, Some(vec![Token::new(id, text, (0, length))])));
        }
        if at < piece.get().len() || pieces.is_empty() {
            pieces.push((cut(at..piece.get().len())?, None));
        }
        Ok(pieces)
    }

    /// The tokens in a text, leftmost and longest first. A match that is not allowed counts as if it
    /// were not there; one that should be a word and is part of one hides what it covers.
    fn find(&self, text: &str, allowed: &impl Fn(u32, Range<usize>) -> bool) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        let mut at = 0;
        while let Some(matched) = self.search.find(Input::new(text).range(at..)) {
            let (id, token) = &self.tokens[matched.pattern().as_usize()];
            let Range { start, end } = matched.range();
            if !allowed(*id, start..end) {
                at = start + text[start..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            at = end;
            let is_word = |c: char| c == '_' || c.is_alphanumeric();
            let in_word = text[..start].ends_with(is_word) || text[end..].starts_with(is_word);
            if token.single_word && in_word {
                continue;
            }
            let after_last = found.last().map_or(0, |last| last.taken.end);
            let space = |text: &str| text.len() - text.trim_start().len();
            let taken_start = match token.lstrip {
                true => text[..start].trim_end().len().max(after_last),
                false => start,
            };
            let taken_end = if token.rstrip { end + space(&text[end..]) } else { end };
            found.push(Found { id: *id, taken: taken_start..taken_end });
        }
        found
    }
}
