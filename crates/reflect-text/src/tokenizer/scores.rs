//! SentencePiece's way to merge: the best score first, and of equal scores the leftmost pair.
//!
//! A list of merges cannot say this where scores are equal, since it ranks every pair apart. Any two
//! neighbours that together spell a token are a pair, whatever they were made from (llama.cpp,
//! `llm_tokenizer_spm_session`).

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::Token;

/// A vocabulary of tokens with scores.
pub(super) struct Scores {
    /// Tokens that text can become: id and score by spelling.
    tokens: HashMap<String, (u32, f32)>,
    /// The token of each byte, for characters that are no token.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
}

/// A run of characters in the text; a run without bytes has been joined to the one before it.
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that spell a token together.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both: a pair of another length was changed since.
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Scores {
    /// `tokens`: spelling, id and score of those that text can become.
    pub(super) fn new(
        tokens: impl Iterator<Item = (String, u32, f32)>,
        bytes: Vec<Option<u32>>,
        unknown: Option<u32>,
    ) -> Self {
        // Zero has one order only if it has one sign.
        let tokens = tokens.map(|(text, id, score)| (text, (id, score + 0.0))).collect();
        Self { tokens, bytes, unknown }
    }

    /// The tokens of a text; several unknown characters in a row become one token.
    pub(super) fn tokenize(&self, text: &str) -> Vec<Token> {
        let mut symbols: Vec<Symbol> = Vec::new();
        for (start, character) in text.char_indices() {
            let at = symbols.len();
            let end = start + character.len_utf8();
            let next = (end < text.len()).then_some(at + 1);
            symbols.push(Symbol { start, end, previous: at.checked_sub(1), next });
        }
        let mut pairs = BinaryHeap::new();
        for right in 1..symbols.len() {
            pairs.extend(self.pair(text, &symbols, Some(right - 1), Some(right)));
        }
        while let Some(Pair { left, right, bytes, .. }) = pairs.pop() {
            let length = |symbol: &Symbol| symbol.end - symbol.start;
            let (first, second) = (length(&symbols[left]), length(&symbols[right]));
            if first == 0 || second == 0 || first + second != bytes {
                continue;
            }
            symbols[left].end = symbols[right].end;
            symbols[right].start = symbols[right].end;
            let next = symbols[right].next;
            symbols[left].next = next;
            if let Some(next) = next {
                symbols[next].previous = Some(left);
            }
            pairs.extend(self.pair(text, &symbols, symbols[left].previous, Some(left)));
            pairs.extend(self.pair(text, &symbols, Some(left), next));
        }
        let mut tokens = Vec::new();
        for Symbol { start, end, .. } in symbols.into_iter().filter(|symbol| symbol.start < symbol.end) {
            self.emit(text, start, end, &mut tokens);
        }
        tokens
    }

    fn pair(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
    ) -> Option<Pair> {
        let (left, right) = left.zip(right)?;
        let both = &text[symbols[left].start..symbols[right].end];
        let (_, score) = self.tokens.get(both)?;
        Some(Pair { score: *score, left, right, bytes: both.len() })
    }

    fn emit(&self, text: &str, start: usize, end: usize, tokens: &mut Vec<Token>) {
        let spelling = &text[start..end];
        if let Some((id, _)) = self.tokens.get(spelling) {
            tokens.push(Token::new(*id, spelling.to_owned(), (start, end)));
            return;
        }
        let of_byte = |byte: u8| self.bytes.get(usize::from(byte)).copied().flatten();
        let ids: Option<Vec<u32>> = spelling.bytes().map(of_byte).collect();
        match (ids, self.unknown) {
            (Some(ids), _) => {
                tokens.extend(ids.into_iter().zip(spelling.bytes()).enumerate().map(|(at, (id, byte))| {
                    Token::new(id, format!("<0x{byte:02X}>"), (start + at, start + at + 1))
                }))
            }
            (None, Some(unknown)) => match tokens.last_mut() {
                Some(last) if last.id == unknown && last.offsets.1 == start => last.offsets.1 = end,
                _ => tokens.push(Token::new(unknown, spelling.to_owned(), (start, end))),
            },
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(tokens: &[(&str, f32)], text: &str) -> Vec<String> {
        let letters = ["a", "b", "c"].map(|letter| (letter, -1e6));
        let all = letters.iter().chain(tokens).enumerate();
        let all = all.map(|(id, (text, score))| ((*text).to_owned(), id as u32, *score));
        let scores = Scores::new(all, vec![None; 256], Some(99));
        scores.tokenize(text).into_iter().map(|token| token.value).collect()
    }

    #[test]
    fn the_best_pair_is_joined_first_and_of_equals_the_leftmost() {
        assert_eq!(merged(&[("bc", -5.0), ("ab", -5.0)], "abc"), ["ab", "c"]);
        assert_eq!(merged(&[("bc", -4.0), ("ab", -5.0)], "abc"), ["a", "bc"]);
        assert_eq!(merged(&[("aa", 0.0), ("aaa", -0.0)], "aaaaa"), ["aaa", "aa"]);
        // A pair is what its text is: "abc" comes from "a" + "bc" as from "ab" + "c".
        assert_eq!(merged(&[("bc", -1.0), ("ab", -2.0), ("abc", -3.0)], "abcab"), ["abc", "ab"]);
    }

    #[test]
    fn unknown_characters_in_a_row_are_one_token() {
        assert_eq!(merged(&[], "a\u{e9}\u{e8}b"), ["a", "\u{e9}", "b"]);
    }
}
