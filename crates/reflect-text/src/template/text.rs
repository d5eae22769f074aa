//! Text that knows where each of its characters came from.
//!
//! A template cuts, joins, repeats and rewrites what it is given. [`Text`] goes through all of that
//! with a note for every stretch: written by the template, or taken from an input, and from which of
//! its bytes. So a user's characters stay a user's characters whatever the template does with them.

use std::ops::Range;
use std::rc::Rc;

/// Where a stretch of text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Index of the input.
    pub source: u32,
    /// Byte of the input at which the stretch begins.
    pub at: usize,
    /// The stretch equals the input's bytes from there on; otherwise a filter rewrote them.
    pub verbatim: bool,
}

/// A stretch of text of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Byte of the text after the stretch.
    end: usize,
    /// `None`: the template wrote it.
    origin: Option<Origin>,
}

/// A string with the origin of each byte. Clones share their content.
#[derive(Clone, Debug, Default)]
pub(super) struct Text(Rc<TextBuilder>);

/// Text under construction.
#[derive(Clone, Debug, Default)]
pub(super) struct TextBuilder {
    text: String,
    runs: Vec<Run>,
}

impl TextBuilder {
    /// Adds text of one origin.
    pub fn push_from(&mut self, text: &str, origin: Option<Origin>) {
        if text.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.push_str(text);
        let end = self.text.len();
        let begin = self.runs.iter().rev().nth(1).map_or(0, |run| run.end);
        if let Some(last) = self.runs.last_mut() {
            let continues = match (last.origin, origin) {
                (None, None) => true,
                (Some(before), Some(next)) if before.source == next.source => match next.verbatim {
                    true => before.verbatim && before.at + (start - begin) == next.at,
                    false => !before.verbatim,
                },
                _ => false,
            };
            if continues {
                last.end = end;
                return;
            }
        }
        self.runs.push(Run { end, origin });
    }

    /// Adds text that the template writes.
    pub fn push_str(&mut self, text: &str) {
        self.push_from(text, None);
    }

    /// Adds a text with its origins.
    pub fn push(&mut self, text: &Text) {
        self.push_range(text, 0..text.len());
    }

    /// Adds the bytes `range` of a text with their origins.
    pub fn push_range(&mut self, text: &Text, range: Range<usize>) {
        for (stretch, origin) in text.stretches(range) {
            self.push_from(&text.as_str()[stretch], origin);
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    pub fn finish(self) -> Text {
        Text(Rc::new(self))
    }
}

impl Text {
    /// Text that the template writes.
    pub fn plain(text: &str) -> Self {
        let mut builder = TextBuilder::default();
        builder.push_str(text);
        builder.finish()
    }

    /// The whole of an input.
    pub fn of_source(text: &str, source: u32) -> Self {
        let mut builder = TextBuilder::default();
        builder.push_from(text, Some(Origin { source, at: 0, verbatim: true }));
        builder.finish()
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    pub fn len(&self) -> usize {
        self.0.text.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.text.is_empty()
    }

    /// The stretches of one origin within `range`, in order.
    pub fn stretches(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, Option<Origin>)> {
        let runs = &self.0.runs;
        let first = runs.partition_point(|run| run.end <= range.start);
        let mut begin = first.checked_sub(1).map_or(0, |before| runs[before].end);
        runs[first..].iter().map_while(move |run| {
            let start = begin.max(range.start);
            let skipped = start - begin;
            begin = run.end;
            let end = run.end.min(range.end);
            let origin = run.origin.map(|origin| match origin.verbatim {
                true => Origin { at: origin.at + skipped, ..origin },
                false => origin,
            });
            (start < end).then_some((start..end, origin))
        })
    }

    /// Whether an input for which `of` holds has a part in the text.
    pub fn comes_from(&self, of: impl Fn(u32) -> bool) -> bool {
        self.0.runs.iter().any(|run| run.origin.is_some_and(|origin| of(origin.source)))
    }

    /// The bytes `range` as a text of its own.
    pub fn slice(&self, range: Range<usize>) -> Self {
        if range == (0..self.len()) {
            return self.clone();
        }
        let mut builder = TextBuilder::default();
        builder.push_range(self, range);
        builder.finish()
    }

    /// The characters as texts of their own.
    pub fn characters(&self) -> Vec<Self> {
        self.as_str().char_indices().map(|(at, c)| self.slice(at..at + c.len_utf8())).collect()
    }

    /// Rewrites each character; `rewrite` adds what stands for it. Its origin stays.
    pub fn map_characters(&self, mut rewrite: impl FnMut(usize, char, &mut String)) -> Self {
        let mut builder = TextBuilder::default();
        self.map_into(&mut builder, &mut rewrite);
        builder.finish()
    }

    /// [`map_characters`](Self::map_characters) into a text under construction.
    pub fn map_into(&self, to: &mut TextBuilder, rewrite: &mut impl FnMut(usize, char, &mut String)) {
        let mut written = String::new();
        for (range, origin) in self.stretches(0..self.len()) {
            let begin = range.start;
            for (at, character) in self.as_str()[range].char_indices() {
                written.clear();
                rewrite(begin + at, character, &mut written);
                let same = written.chars().eq([character]);
                let origin = origin.map(|origin| match origin.verbatim {
                    true => Origin { at: origin.at + at, verbatim: same, ..origin },
                    false => origin,
                });
                to.push_from(&written, origin);
            }
        }
    }

    /// Replaces the non-overlapping matches of `old`, at most `count` of them. An empty `old` stands
    /// before each character and at the end.
    pub fn replace(&self, old: &str, new: &Text, count: Option<usize>) -> Self {
        let text = self.as_str();
        let most = count.unwrap_or(usize::MAX);
        let mut builder = TextBuilder::default();
        let mut kept = 0;
        for (at, _) in text.match_indices(old).take(most) {
            builder.push_range(self, kept..at);
            builder.push(new);
            kept = at + old.len();
        }
        builder.push_range(self, kept..self.len());
        builder.finish()
    }

    /// One text after another.
    pub fn concat(&self, other: &Self) -> Self {
        let mut builder = TextBuilder::clone(&self.0);
        builder.push(other);
        builder.finish()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::plain(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte's input and place in it.
    fn bytes(text: &Text) -> Vec<Option<(u32, usize)>> {
        let mut all = Vec::new();
        for (range, origin) in text.stretches(0..text.len()) {
            for at in 0..range.len() {
                all.push(
                    origin.map(|origin| (origin.source, origin.at + if origin.verbatim { at } else { 0 })),
                );
            }
        }
        all
    }

    #[test]
    fn slices_and_sums_keep_their_places() {
        let input = Text::of_source("hello world", 3);
        let text = Text::plain("<").concat(&input.slice(6..11)).concat(&Text::plain(">"));
        assert_eq!(text.as_str(), "<world>");
        let mut expected = vec![None];
        expected.extend((6..11).map(|at| Some((3, at))));
        expected.push(None);
        assert_eq!(bytes(&text), expected);
        assert_eq!(bytes(&text.slice(2..4)), [Some((3, 7)), Some((3, 8))]);
        // Neighbours become one stretch again.
        let joined = input.slice(0..4).concat(&input.slice(4..11));
        assert_eq!(joined.stretches(0..11).count(), 1);
        let swapped = input.slice(4..11).concat(&input.slice(0..4));
        assert_eq!(swapped.stretches(0..11).count(), 2);
    }

    #[test]
    fn rewriting_keeps_the_input() {
        let text = Text::of_source("aé\"b", 1).map_characters(|_, character, to| match character {
            '"' => to.push_str("\\\""),
            other => to.push(other),
        });
        assert_eq!(text.as_str(), "aé\\\"b");
        let stretches: Vec<_> = text.stretches(0..text.len()).collect();
        assert_eq!(stretches.len(), 3);
        assert!(stretches.iter().all(|(_, origin)| origin.unwrap().source == 1));
        assert!(!stretches[1].1.unwrap().verbatim);
        assert_eq!(stretches[2].1, Some(Origin { source: 1, at: 4, verbatim: true }));
    }

    #[test]
    fn replacing_is_like_pythons() {
        let input = Text::of_source("aXbXc", 0);
        let new = Text::plain("--");
        assert_eq!(input.replace("X", &new, None).as_str(), "a--b--c");
        assert_eq!(input.replace("X", &new, Some(1)).as_str(), "a--bXc");
        assert_eq!(Text::plain("ab").replace("", &new, None).as_str(), "--a--b--");
        assert_eq!(bytes(&input.replace("bX", &Text::plain(""), None)), [0, 1, 4].map(|at| Some((0, at))));
    }
}
