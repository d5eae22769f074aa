//! How well the detectors work, on pairs of originals and rephrasings.
//!
//! Each original is a test item. It is a *positive* against its own rephrasing, and a *negative*
//! against all the others together: the hardest mismatched pair decides, as in a real training set.

use serde::Serialize;

use super::{Findings, Scores, Settings, TestIndex};

/// Right and wrong answers of a detector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub true_positives: usize,
    pub false_positives: usize,
    pub false_negatives: usize,
    pub true_negatives: usize,
}

impl Counts {
    fn add(&mut self, contaminated: bool, found: bool) {
        match (contaminated, found) {
            (true, true) => self.true_positives += 1,
            (false, true) => self.false_positives += 1,
            (true, false) => self.false_negatives += 1,
            (false, false) => self.true_negatives += 1,
        }
    }

    /// Of what was found, the share that is contaminated; 0 when nothing was found.
    pub fn precision(self) -> f64 {
        ratio(self.true_positives, self.true_positives + self.false_positives)
    }

    /// Of what is contaminated, the share that was found.
    pub fn recall(self) -> f64 {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// The harmonic mean of the two.
    pub fn f1(self) -> f64 {
        ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The counts of each detector and of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Measurement {
    pub pairs: usize,
    pub ngram: Counts,
    pub overlap: Counts,
    pub numbers: Counts,
    pub edit: Counts,
    pub any: Counts,
}

impl Measurement {
    /// The detectors with their names, the combination last.
    pub fn rows(&self) -> [(&'static str, Counts); 5] {
        [
            ("13-gram", self.ngram),
            ("overlap", self.overlap),
            ("numbers", self.numbers),
            ("edit", self.edit),
            ("any", self.any),
        ]
    }
}

/// Measures detectors with these thresholds on pairs of original and rephrasing.
pub fn measure<S: AsRef<str>>(pairs: &[(S, S)], settings: &Settings) -> Measurement {
    count(&score(pairs, settings), settings)
}

/// The thresholds, in steps of 0.01, that give the best F1 of all detectors together on these pairs;
/// of equally good ones the highest. Use one half of the pairs here and [`measure`] on the other.
pub fn choose_thresholds<S: AsRef<str>>(sets: &[Vec<(S, S)>], settings: &Settings) -> Settings {
    // Scored set by set, since test sets are decontaminated one by one.
    let scored: Vec<_> = sets.iter().map(|pairs| score(pairs, settings)).collect();
    let mut best = (f64::MIN, *settings);
    for overlap in (5..=60).rev() {
        for edit in (10..=80).rev() {
            let tried = Settings { overlap: overlap as f32 / 100.0, edit: edit as f32 / 100.0, ..*settings };
            // Every set weighs the same, however large.
            let f1: f64 = scored.iter().map(|scores| count(scores, &tried).any.f1()).sum();
            if f1 > best.0 {
                best = (f1, tried);
            }
        }
    }
    best.1
}

/// For each original its scores with its own rephrasing, and those with all others.
fn score<S: AsRef<str>>(pairs: &[(S, S)], settings: &Settings) -> Vec<(Scores, Vec<Scores>)> {
    let originals: Vec<&str> = pairs.iter().map(|(original, _)| original.as_ref()).collect();
    let index = TestIndex::new(&originals, *settings);
    let mut scores: Vec<(Scores, Vec<Scores>)> = pairs
        .iter()
        .enumerate()
        .map(|(test, (_, rephrased))| (index.compare(test, rephrased.as_ref()), Vec::new()))
        .collect();
    for (own, (_, rephrased)) in pairs.iter().enumerate() {
        for (test, found) in index.nearest(rephrased.as_ref()) {
            if let Some((_, others)) = scores.get_mut(test).filter(|_| test != own) {
                others.push(found);
            }
        }
    }
    scores
}

fn count(scores: &[(Scores, Vec<Scores>)], settings: &Settings) -> Measurement {
    let mut measured = Measurement { pairs: scores.len(), ..Measurement::default() };
    for (own, others) in scores {
        let of_others = others.iter().map(|scores| scores.findings(settings));
        let of_others = of_others.fold(Scores::default().findings(settings), Findings::or);
        for (contaminated, found) in [(true, own.findings(settings)), (false, of_others)] {
            measured.ngram.add(contaminated, found.ngram);
            measured.overlap.add(contaminated, found.overlap);
            measured.numbers.add(contaminated, found.numbers);
            measured.edit.add(contaminated, found.edit);
            measured.any.add(contaminated, found.any());
        }
    }
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Vec<(&'static str, &'static str)> {
        vec![
            (
                "Tom has three red apples and buys two more.",
                "Three red apples belong to Tom, who buys two more.",
            ),
            ("A train leaves Rome at noon going north.", "At noon a train going north leaves Rome."),
            ("What is the index of <p> in S_5?", "Find the index of <p> within S_5."),
        ]
    }

    #[test]
    fn every_pair_gives_a_positive_and_a_negative() {
        let measured = measure(&pairs(), &Settings::default());
        for (_, counts) in measured.rows() {
            assert_eq!(counts.true_positives + counts.false_negatives, 3);
            assert_eq!(counts.false_positives + counts.true_negatives, 3);
        }
        // Word order changed: no long sequence survives, which is why there are other detectors.
        assert_eq!(measured.ngram.true_positives, 0);
        assert_eq!(measured.any.recall(), 1.0);
    }

    #[test]
    fn chosen_thresholds_part_what_bad_ones_do_not() {
        for bad in [0.0, 1.0] {
            let settings = Settings { overlap: bad, edit: bad, ..Settings::default() };
            assert!(measure(&pairs(), &settings).any.f1() < 0.7, "{bad} finds all or nothing");
            let chosen = choose_thresholds(&[pairs()], &settings);
            assert_eq!(measure(&pairs(), &chosen).any.f1(), 1.0, "{chosen:?}");
        }
    }

    #[test]
    fn ratios() {
        let counts = Counts { true_positives: 3, false_positives: 1, false_negatives: 2, true_negatives: 9 };
        assert_eq!((counts.precision(), counts.recall()), (0.75, 0.6));
        assert!((counts.f1() - 2.0 * 0.75 * 0.6 / 1.35).abs() < 1e-12);
        assert_eq!(Counts::default().f1(), 0.0);
    }
}
