//! The detectors themselves, on words.

use std::collections::{BTreeSet, HashMap};

use crate::words::{fingerprint, mix};

/// Words of a sequence that no two authors write by chance.
const GRAM: usize = 13;
/// Items with fewer words have no sequence: they would be found everywhere.
const SHORTEST_GRAM: usize = 5;

/// The word sequences of the test items.
pub(super) struct Grams {
    /// Length, then fingerprint of the sequence, to the items that have it.
    by_length: HashMap<usize, HashMap<u64, Vec<usize>>>,
    /// Distinct sequences of each item.
    counts: Vec<usize>,
}

impl Grams {
    pub(super) fn new<'a>(items: impl Iterator<Item = &'a [String]>) -> Self {
        let mut grams = Self { by_length: HashMap::new(), counts: Vec::new() };
        for (index, words) in items.enumerate() {
            let length = words.len().min(GRAM);
            let sequences: BTreeSet<u64> =
                if length < SHORTEST_GRAM { BTreeSet::new() } else { sequences(words, length).collect() };
            grams.counts.push(sequences.len());
            if !sequences.is_empty() {
                let known = grams.by_length.entry(length).or_default();
                sequences.into_iter().for_each(|gram| known.entry(gram).or_default().push(index));
            }
        }
        grams
    }

    /// The share of their sequences that the items have in common with a text; items with none are
    /// left out.
    pub(super) fn shared(&self, words: &[String]) -> HashMap<usize, f32> {
        let mut found: HashMap<usize, usize> = HashMap::new();
        for (length, known) in &self.by_length {
            let sequences: BTreeSet<u64> = sequences(words, *length).collect();
            for item in sequences.iter().filter_map(|gram| known.get(gram)).flatten() {
                *found.entry(*item).or_default() += 1;
            }
        }
        let share = |(item, shared): (usize, usize)| {
            let all = self.counts.get(item).copied().unwrap_or(1);
            (item, shared as f32 / all as f32)
        };
        found.into_iter().map(share).collect()
    }
}

fn sequences(words: &[String], length: usize) -> impl Iterator<Item = u64> + '_ {
    let hashes: Vec<u64> = words.iter().map(|word| fingerprint(word)).collect();
    let last = (words.len() + 1).saturating_sub(length);
    (0..last).map(move |start| {
        let window = hashes.get(start..start + length).unwrap_or_default();
        window.iter().fold(0, |hash: u64, word| mix(hash.rotate_left(7) ^ word))
    })
}

/// Fingerprints of the words and word pairs of a text, sorted, each once.
pub(super) fn shingles(words: &[String]) -> Vec<u64> {
    let hashes: Vec<u64> = words.iter().map(|word| fingerprint(word)).collect();
    let pairs = hashes.windows(2).map(|pair| pair.iter().fold(1, |hash: u64, word| mix(hash ^ word)));
    let mut shingles: Vec<u64> = hashes.iter().copied().chain(pairs).collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The share of their shingles that two texts have in common (Jaccard); 0 for two without any.
pub(super) fn overlap(a: &[u64], b: &[u64]) -> f32 {
    let shared = a.iter().filter(|shingle| b.binary_search(shingle).is_ok()).count();
    let all = a.len() + b.len() - shared;
    if all == 0 { 0.0 } else { shared as f32 / all as f32 }
}

/// Words that stand for a number in a word problem. A half is none of the whole numbers. `one` is
/// left out: it is an article too often.
const NUMBER_WORDS: [(&str, u64); 40] = [
    ("two", 2),
    ("three", 3),
    ("four", 4),
    ("five", 5),
    ("six", 6),
    ("seven", 7),
    ("eight", 8),
    ("nine", 9),
    ("ten", 10),
    ("eleven", 11),
    ("twelve", 12),
    ("thirteen", 13),
    ("fourteen", 14),
    ("fifteen", 15),
    ("sixteen", 16),
    ("seventeen", 17),
    ("eighteen", 18),
    ("nineteen", 19),
    ("twenty", 20),
    ("thirty", 30),
    ("forty", 40),
    ("fifty", 50),
    ("sixty", 60),
    ("seventy", 70),
    ("eighty", 80),
    ("ninety", 90),
    ("hundred", 100),
    ("thousand", 1000),
    ("dozen", 12),
    ("half", HALF),
    ("halves", HALF),
    ("twice", 2),
    ("double", 2),
    ("doubled", 2),
    ("doubles", 2),
    ("thrice", 3),
    ("triple", 3),
    ("tripled", 3),
    ("triples", 3),
    ("zero", 0),
];
const HALF: u64 = u64::MAX;

/// The numbers that words name, in their order.
pub(super) fn numbers(words: &[String]) -> Vec<u64> {
    let number = |word: &String| match word.bytes().all(|byte| byte.is_ascii_digit()) {
        // Of a number too long for a register its digits are as good as its value.
        true => Some(word.parse().unwrap_or_else(|_| fingerprint(word))),
        false => NUMBER_WORDS.iter().find(|(name, _)| name == word).map(|(_, value)| *value),
    };
    words.iter().filter_map(number).collect()
}

/// The longest common sequence of two lists of numbers as a share of the longer one; 0 where either has
/// fewer than two, as a single number agrees by chance.
pub(super) fn number_agreement(a: &[u64], b: &[u64]) -> f32 {
    if a.len().min(b.len()) < 2 {
        return 0.0;
    }
    let mut lengths = vec![0_usize; b.len() + 1];
    for left in a {
        let mut diagonal = 0;
        for (place, right) in b.iter().enumerate() {
            let above = lengths[place + 1];
            lengths[place + 1] = if left == right { diagonal + 1 } else { above.max(lengths[place]) };
            diagonal = above;
        }
    }
    lengths[b.len()] as f32 / a.len().max(b.len()) as f32
}

/// 1 − Levenshtein distance ÷ the longer length; 0 for two empty texts.
pub(super) fn edit_similarity(a: &[String], b: &[String]) -> f32 {
    let longest = a.len().max(b.len());
    if longest == 0 {
        return 0.0;
    }
    // Whole words by number: comparing them is the inner loop.
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut number = |word| {
        let next = numbers.len() as u32;
        *numbers.entry(word).or_insert(next)
    };
    let a: Vec<u32> = a.iter().map(|word| number(word.as_str())).collect();
    let b: Vec<u32> = b.iter().map(|word| number(word.as_str())).collect();
    let mut costs: Vec<usize> = (0..=b.len()).collect();
    for (row, left) in a.iter().enumerate() {
        let mut diagonal = row;
        let mut before = row + 1;
        for (cost, right) in costs.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(left != right);
            diagonal = *cost;
            *cost = replaced.min(diagonal + 1).min(before + 1);
            before = *cost;
        }
    }
    // The row is as long as `b`: an empty one costs all of `a`.
    let distance = if b.is_empty() { a.len() } else { costs.last().copied().unwrap_or(longest) };
    1.0 - distance as f32 / longest as f32
}

/// Which items hold a word, to find the ones worth comparing.
pub(super) struct Candidates {
    items: HashMap<String, Vec<usize>>,
    count: usize,
}

impl Candidates {
    pub(super) fn new<'a>(all: impl Iterator<Item = &'a [String]>) -> Self {
        let mut candidates = Self { items: HashMap::new(), count: 0 };
        for (index, words) in all.enumerate() {
            candidates.count += 1;
            for word in words.iter().collect::<BTreeSet<_>>() {
                candidates.items.entry(word.clone()).or_default().push(index);
            }
        }
        candidates
    }

    /// The items that share the rarest words with a text, best first: the sum of the words' inverse
    /// document frequencies. Words of more than a fifth of many items are too common to tell.
    pub(super) fn best(&self, words: &[String], count: usize) -> Vec<usize> {
        let common = (self.count / 5).max(20);
        let mut sums: HashMap<usize, f32> = HashMap::new();
        for word in words.iter().collect::<BTreeSet<_>>() {
            let Some(items) = self.items.get(word).filter(|items| items.len() <= common) else { continue };
            let weight = (1.0 + self.count as f32 / items.len() as f32).ln();
            items.iter().for_each(|item| *sums.entry(*item).or_default() += weight);
        }
        let mut ranked: Vec<(usize, f32)> = sums.into_iter().collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.into_iter().take(count).map(|(item, _)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::words;

    #[test]
    fn edit_similarity_counts_words() {
        let similarity = |a: &str, b: &str| edit_similarity(&words(a), &words(b));
        assert_eq!(similarity("a b c d", "a x c d"), 0.75);
        assert_eq!(similarity("a b c d", "b c d"), 0.75);
        assert_eq!(similarity("a b", ""), 0.0);
        assert_eq!(similarity("", "a b"), 0.0);
        assert_eq!(similarity("a b c", "c b a"), 1.0 - 2.0 / 3.0);
    }

    #[test]
    fn overlap_counts_words_and_pairs() {
        // 60 and 60 words with 40 in common, in one order: 40 + 39 shared of 80 + 79 shingles.
        let text = |range: std::ops::Range<u32>| words(&range.map(|n| format!("w{n} ")).collect::<String>());
        let digits =
            |words: Vec<String>| -> Vec<String> { words.chunks(2).map(|pair| pair.concat()).collect() };
        let (a, b) = (digits(text(0..60)), digits(text(20..80)));
        assert_eq!(overlap(&shingles(&a), &shingles(&b)), 79.0 / 159.0);
        assert_eq!(overlap(&[], &[]), 0.0);
    }

    #[test]
    fn numbers_agree_in_their_order() {
        let agreement = |a: &str, b: &str| number_agreement(&numbers(&words(a)), &numbers(&words(b)));
        assert_eq!(agreement("Twice a dozen, 1,200 and half", "2 by twelve, then 1200, one half"), 1.0);
        assert_eq!(agreement("3 and 4 and 5", "5 and 4 and 3"), 1.0 / 3.0);
        assert_eq!(agreement("3 apples", "3 apples"), 0.0);
        let long = "9".repeat(40);
        assert_eq!(agreement(&format!("{long} 2"), &format!("{long} 2")), 1.0);
    }

    #[test]
    fn candidates_share_rare_words() {
        let items = [words("the red fox"), words("the blue whale"), words("the red whale")];
        let candidates = Candidates::new(items.iter().map(Vec::as_slice));
        assert_eq!(candidates.best(&words("a blue whale"), 2), [1, 2]);
        assert!(candidates.best(&words("nothing"), 2).is_empty());
    }
}
