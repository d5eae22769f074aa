//! Keeps training data apart from tests: finds the training texts that pose the same problem as a test
//! item, word for word, reworded, or with other names and numbers. A like topic is not enough.
//!
//! Four detectors look at normalised words (see [`words`]); a test item is contaminated when any of them
//! says so:
//! * **13-gram**: the share of the item's 13-word sequences that the training text has too. An item of 5
//!   to 12 words counts as one sequence, a shorter one has none.
//! * **overlap**: the share of single words and word pairs that two texts have in common (Jaccard).
//! * **numbers**: a lower overlap, of texts that name the same numbers in the same order. A rewording
//!   keeps them; another problem on the same topic has its own.
//! * **edit**: 1 − Levenshtein distance in words ÷ the longer length.
//!
//! All but the first are computed for the few test items that share the most rare words with the
//! training text. Problems made from one template are similar by design: for those, the split by
//! template keeps sides apart, and only the 13-grams say something.

mod detectors;
mod measure;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::detectors::{Candidates, Grams, edit_similarity, number_agreement, numbers, overlap, shingles};
pub use self::measure::{Counts, Measurement, choose_thresholds, measure};
use crate::words::words;

/// When a similarity counts, and how many test items are compared with a training text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Share of an item's 13-word sequences from which the 13-grams say contaminated.
    pub ngram: f32,
    /// Overlap from which it says contaminated, whatever the numbers; less of it for long texts and for
    /// texts without numbers.
    pub overlap: f32,
    /// Edit similarity from which it says contaminated.
    pub edit: f32,
    /// Test items compared with each training text.
    pub candidates: usize,
}

impl Default for Settings {
    /// Thresholds for what a reader calls the same problem: on the 141 pairs of
    /// `tests/golden/decontamination` they have a precision of 1.00 (`tests/decontamination.rs` measures it).
    fn default() -> Self {
        Self { ngram: 0.25, overlap: 0.42, edit: 0.6, candidates: 8 }
    }
}

/// Two texts of at least so many words share less by chance: this part of the overlap is enough.
const LONG: usize = 60;
const LONG_PART: f32 = 0.6;
/// The part that is enough for texts without any number: there nothing but the words can tell.
const WORDS_ONLY_PART: f32 = 0.7;
/// Overlap and agreement of numbers that say contaminated together, for texts with two numbers or more.
const WITH_NUMBERS: [(f32, f32); 2] = [(0.18, 0.8), (0.15, 0.9)];

/// How much a training text resembles a test item, each from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Share of the item's 13-word sequences that the training text has.
    pub ngram: f32,
    pub overlap: f32,
    /// Share of the numbers that both name in the same order; 0 where either names fewer than two.
    pub numbers: f32,
    pub edit: f32,
    /// The part of [`Settings::overlap`] that is enough for texts of this kind.
    #[serde(skip)]
    part: f32,
}

/// Which detectors say that a test item is contaminated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    pub ngram: bool,
    pub overlap: bool,
    pub numbers: bool,
    pub edit: bool,
}

impl Default for Scores {
    /// Of texts that share nothing.
    fn default() -> Self {
        Self { ngram: 0.0, overlap: 0.0, numbers: 0.0, edit: 0.0, part: 1.0 }
    }
}

impl Scores {
    /// What the detectors say of these scores.
    pub fn findings(self, settings: &Settings) -> Findings {
        let together = |(overlap, numbers): (f32, f32)| self.overlap >= overlap && self.numbers >= numbers;
        Findings {
            ngram: self.ngram >= settings.ngram,
            overlap: self.overlap >= self.part * settings.overlap,
            numbers: WITH_NUMBERS.into_iter().any(together),
            edit: self.edit >= settings.edit,
        }
    }
}

impl Findings {
    /// Whether any detector says so.
    pub fn any(self) -> bool {
        self.ngram || self.overlap || self.numbers || self.edit
    }

    fn or(self, other: Self) -> Self {
        Self {
            ngram: self.ngram || other.ngram,
            overlap: self.overlap || other.overlap,
            numbers: self.numbers || other.numbers,
            edit: self.edit || other.edit,
        }
    }
}

/// A training text that resembles a test item.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Match {
    /// Index of the training text.
    pub training: usize,
    /// Index of the test item.
    pub test: usize,
    pub scores: Scores,
    pub found_by: Findings,
}

/// What was found in a training set: `read` is `kept` plus `dropped`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub read: usize,
    pub kept: usize,
    pub dropped: usize,
    /// Dropped texts that each detector found; one text may be found by several.
    pub by_ngram: usize,
    pub by_overlap: usize,
    pub by_numbers: usize,
    pub by_edit: usize,
    pub tests: usize,
    /// Test items that at least one training text repeats.
    pub contaminated_tests: usize,
    /// For each dropped text the test item it resembles most.
    pub matches: Vec<Match>,
}

/// Test items, ready to be looked for in training texts.
pub struct TestIndex {
    items: Vec<Item>,
    grams: Grams,
    candidates: Candidates,
    settings: Settings,
}

/// A text as the detectors see it.
struct Item {
    words: Vec<String>,
    /// Fingerprints of the words and word pairs, sorted.
    shingles: Vec<u64>,
    numbers: Vec<u64>,
}

impl Item {
    fn new(text: &str) -> Self {
        let words = words(text);
        Self { shingles: shingles(&words), numbers: numbers(&words), words }
    }
}

impl TestIndex {
    /// Prepares the test items.
    pub fn new<S: AsRef<str>>(tests: &[S], settings: Settings) -> Self {
        let items: Vec<Item> = tests.iter().map(|test| Item::new(test.as_ref())).collect();
        let grams = Grams::new(items.iter().map(|item| item.words.as_slice()));
        let candidates = Candidates::new(items.iter().map(|item| item.words.as_slice()));
        Self { items, grams, candidates, settings }
    }

    /// The test items that share a 13-gram with a training text or are the nearest to it in words,
    /// with their scores. Most of them are not contaminated: ask [`Scores::findings`].
    pub fn nearest(&self, training: &str) -> Vec<(usize, Scores)> {
        let training = Item::new(training);
        let shared = self.grams.shared(&training.words);
        let mut tests = self.candidates.best(&training.words, self.settings.candidates);
        tests.extend(shared.keys());
        tests.sort_unstable();
        tests.dedup();
        let score = |test: usize| {
            let mut scores = self.similarities(test, &training);
            scores.ngram = shared.get(&test).copied().unwrap_or_default();
            (test, scores)
        };
        tests.into_iter().map(score).collect()
    }

    /// The scores of one test item and one training text.
    pub fn compare(&self, test: usize, training: &str) -> Scores {
        let training = Item::new(training);
        let mut scores = self.similarities(test, &training);
        scores.ngram = self.grams.shared(&training.words).get(&test).copied().unwrap_or_default();
        scores
    }

    fn similarities(&self, test: usize, training: &Item) -> Scores {
        let Some(item) = self.items.get(test) else { return Scores::default() };
        let part = if item.words.len().min(training.words.len()) >= LONG {
            LONG_PART
        } else if item.numbers.is_empty() && training.numbers.is_empty() {
            WORDS_ONLY_PART
        } else {
            1.0
        };
        Scores {
            ngram: 0.0,
            overlap: overlap(&item.shingles, &training.shingles),
            numbers: number_agreement(&item.numbers, &training.numbers),
            edit: edit_similarity(&item.words, &training.words),
            part,
        }
    }
}

/// The text of a row that is compared: what the user and the tools say in its `messages`, or its
/// `question`, its `prompt` (with a `canonical_solution`, as HumanEval has it), its `text`. `None`
/// when the row has none of these.
pub fn text_of(row: &Value) -> Option<String> {
    let field = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    if let Some(messages) = row.get("messages").and_then(Value::as_array) {
        let told = messages.iter().filter(|message| {
            let role = message.get("role").and_then(Value::as_str);
            !matches!(role, Some("system" | "assistant"))
        });
        let contents = told.filter_map(|message| message.get("content").and_then(Value::as_str));
        return Some(contents.collect::<Vec<_>>().join("\n"));
    }
    let program = || Some(field("prompt")? + &field("canonical_solution").unwrap_or_default());
    field("question").or_else(program).or_else(|| field("text"))
}

/// Looks for the test items in every training text; `keep` learns of each text whether it may stay,
/// in order.
pub fn decontaminate<S: AsRef<str>>(
    training: impl IntoIterator<Item = S>,
    tests: &TestIndex,
    mut keep: impl FnMut(usize, bool),
) -> Report {
    let mut report = Report { tests: tests.items.len(), ..Report::default() };
    let mut contaminated = vec![false; tests.items.len()];
    for (index, text) in training.into_iter().enumerate() {
        report.read += 1;
        let mut found = Findings::default();
        let mut closest: Option<(usize, Scores)> = None;
        for (test, scores) in tests.nearest(text.as_ref()) {
            let findings = scores.findings(&tests.settings);
            if !findings.any() {
                continue;
            }
            found = found.or(findings);
            if let Some(flag) = contaminated.get_mut(test) {
                *flag = true;
            }
            if closest.is_none_or(|(_, best)| scores.overlap > best.overlap) {
                closest = Some((test, scores));
            }
        }
        report.by_ngram += usize::from(found.ngram);
        report.by_overlap += usize::from(found.overlap);
        report.by_numbers += usize::from(found.numbers);
        report.by_edit += usize::from(found.edit);
        keep(index, closest.is_none());
        match closest {
            None => report.kept += 1,
            Some((test, scores)) => {
                report.dropped += 1;
                let found_by = scores.findings(&tests.settings);
                report.matches.push(Match { training: index, test, scores, found_by });
            }
        }
    }
    report.contaminated_tests = contaminated.iter().filter(|flag| **flag).count();
    report
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TESTS: [&str; 3] = [
        "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends every day with four.",
        "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?",
        "Compute 17 * 24.",
    ];

    #[test]
    fn copies_and_rephrasings_are_dropped() {
        let tests = TestIndex::new(&TESTS, Settings::default());
        let training = [
            "Toulouse has twice as many sheep as Charleston. Charleston has 4 times as many sheep as Seattle.",
            "Question: Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning, and then?",
            "A garment requires 2 bolts of blue fiber and half the amount of white fiber. What is the total quantity of bolts needed?",
        ];
        let mut kept = Vec::new();
        let report = decontaminate(training, &tests, |index, keep| kept.push((index, keep)));
        assert_eq!(kept, [(0, true), (1, false), (2, false)]);
        assert_eq!((report.read, report.kept, report.dropped), (3, 1, 2));
        assert_eq!((report.by_ngram, report.contaminated_tests), (1, 2));
        assert_eq!(report.matches.iter().map(|found| found.test).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_thirteen_gram_needs_thirteen_words() {
        let tests = TestIndex::new(&["a b c d e f g h i j k l m n"], Settings::default());
        assert_eq!(tests.compare(0, "x a b c d e f g h i j k l y m n").ngram, 0.0);
        assert_eq!(tests.compare(0, "x b c d e f g h i j k l m n").ngram, 0.5);
        // Seven words are one sequence; three are none.
        let tests = TestIndex::new(&["a b c d e f g", "a b c"], Settings::default());
        assert_eq!(tests.compare(0, "x a b c d e f g y").ngram, 1.0);
        assert_eq!(tests.compare(1, "a b c").ngram, 0.0);
    }

    #[test]
    fn equal_texts_score_one_and_empty_ones_nothing() {
        let tests = TestIndex::new(&[TESTS[0], ""], Settings::default());
        let same = tests.compare(0, TESTS[0]);
        assert_eq!((same.ngram, same.overlap, same.numbers, same.edit), (1.0, 1.0, 1.0, 1.0));
        assert!(!tests.compare(1, "").findings(&Settings::default()).any());
        assert_eq!(tests.compare(9, "no such item"), Scores::default());
    }

    #[test]
    fn rows_of_every_kind_have_a_text() {
        let text = |row: &str| text_of(&serde_json::from_str(row).unwrap());
        let chat = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}]}"#;
        assert_eq!(text(chat).as_deref(), Some("u\nt"));
        assert_eq!(text(r#"{"question": "q", "answer": "a"}"#).as_deref(), Some("q"));
        assert_eq!(text(r#"{"prompt": "p", "canonical_solution": "c"}"#).as_deref(), Some("pc"));
        assert_eq!(text(r#"{"text": "t"}"#).as_deref(), Some("t"));
        assert_eq!(text(r#"{"answer": "a"}"#), None);
        assert_eq!(text("[]"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(tests in proptest::collection::vec(".{0,60}", 0..4), text in ".{0,60}") {
            let index = TestIndex::new(&tests, Settings::default());
            let report = decontaminate([text.as_str()], &index, |_, _| {});
            prop_assert_eq!(report.read, report.kept + report.dropped);
        }
    }
}
