//! The tag parser: generated text in, typed segments out.
//!
//! A reflection-tuned model writes `<thinking>`, `<reflection>` and `<output>` around the parts of
//! its answer. [`TagParser`] finds these tags while the text arrives, holding back nothing but a
//! possible beginning of a tag, so that the events do not depend on how the text was cut.
//!
//! # When a tag is a tag
//! A tag that is a special token always is one. A tag spelled as text is one unless it is quoted:
//! inside a ``` or ~~~ code fence; on the same line inside `` ` `` or double quotes; or right after
//! an opening quote. A quotation mark opens when it follows white space, a bracket or the start of
//! the segment. An apostrophe or an inch mark therefore quotes nothing, and a forgotten closing
//! quote can hide only tags on its line, and never the closing tag of the innermost segment.
//!
//! A fence that is never closed hides nothing: from the first tag in it that would take effect on, the
//! text is held back until the fence ends (then it was quoted), the next segment opens right behind a
//! closing tag, or the answer ends (then the tag was meant). A closing tag whose opening tag stands in
//! the same fence is quoted with it.
//!
//! # Tags in the wrong place
//! * A closing tag of a segment that is not open, or an opening tag of a kind that is already open,
//!   stays text.
//! * `<thinking>` and `<output>` stand alone: they close whatever is open (`closed: forced`).
//! * `<reflection>` nests in thinking or output, and stands alone outside them.
//! * A closing tag of an outer segment closes the inner ones too (they are `forced`).
//! * What is open at the end is closed there.
//!
//! No character is lost: the text of all events together with the tags that opened and closed
//! segments is the input.

mod doubt;
mod quote;

use self::doubt::{Doubt, Resolved};
use self::quote::Quotes;
use crate::event::{Closed, SegmentKind};

/// One of the six tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Thinking, reflection or output; text has no tag.
    pub kind: SegmentKind,
    /// Whether the tag opens its segment.
    pub opens: bool,
}

/// The tags and their spelling, in the order in which Reflection-Llama-3.1-70B numbers them.
const TAGS: [(&str, Tag); 6] = [
    ("<thinking>", Tag { kind: SegmentKind::Thinking, opens: true }),
    ("</thinking>", Tag { kind: SegmentKind::Thinking, opens: false }),
    ("<output>", Tag { kind: SegmentKind::Output, opens: true }),
    ("</output>", Tag { kind: SegmentKind::Output, opens: false }),
    ("<reflection>", Tag { kind: SegmentKind::Reflection, opens: true }),
    ("</reflection>", Tag { kind: SegmentKind::Reflection, opens: false }),
];

impl Tag {
    /// All tags, in the order of the token ids of Reflection-Llama-3.1-70B.
    pub fn all() -> impl Iterator<Item = Tag> {
        TAGS.iter().map(|(_, tag)| *tag)
    }

    /// The tag with exactly this spelling.
    pub fn parse(text: &str) -> Option<Self> {
        TAGS.iter().find(|(spelling, _)| *spelling == text).map(|(_, tag)| *tag)
    }

    /// How the tag is written.
    pub fn spelling(self) -> &'static str {
        TAGS.iter().find(|(_, tag)| *tag == self).map_or("", |(spelling, _)| spelling)
    }
}

/// What the parser found. The names and meanings are those of [`Event`](crate::Event), which the
/// caller completes with time and verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagEvent {
    /// A segment begins at generated token `token`.
    Start { id: u32, parent: Option<u32>, kind: SegmentKind, token: usize },
    /// Text of segment `id`. Each token id is given once, with the first text that holds one of its
    /// characters; tokens that are nothing but tag are not given.
    Text { id: u32, text: String, token_ids: Vec<u32> },
    /// Segment `id` ended before generated token `token`.
    End { id: u32, token: usize, closed: Closed },
}

/// The state machine. Feed it each generated token once, then [`finish`](Self::finish).
#[derive(Clone, Debug, Default)]
pub struct TagParser {
    /// Open segments, outermost first.
    open: Vec<Segment>,
    /// Number of segments started so far, and of reflections among them.
    started: u32,
    reflections: usize,
    /// One past the index of the newest token.
    tokens: usize,
    /// The beginning of a possible tag, and the index of the token that it began in.
    held: String,
    held_token: usize,
    /// Token ids that no text event has reported yet.
    unreported: Vec<u32>,
    quotes: Quotes,
    /// Kinds whose opening tag stands in the open fence.
    quoted: Vec<SegmentKind>,
    /// A quoted tag that may have been meant, and what follows it.
    doubt: Option<Doubt>,
    events: Vec<TagEvent>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    id: u32,
    kind: SegmentKind,
    /// Index of its first token.
    token: usize,
}

impl TagParser {
    /// A parser before the first token.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tags that a text, such as the end of a prompt, opens and does not close.
    pub fn opened_by(text: &str) -> Vec<Tag> {
        let mut parser = Self::new();
        parser.feed(0, 0, text);
        let tagged = parser.open.iter().filter(|segment| segment.kind != SegmentKind::Text);
        tagged.map(|segment| Tag { kind: segment.kind, opens: true }).collect()
    }

    /// Opens segments before the first token, outermost first: those that the prompt left open. Their
    /// events come with those of the first token.
    pub fn begin_in(&mut self, opened: &[Tag]) {
        for tag in opened {
            self.start(tag.kind, 0);
        }
    }

    /// Takes generated token number `index`, with its id and the characters that it completed
    /// (none, when it ended inside a character).
    pub fn feed(&mut self, index: usize, id: u32, text: &str) -> Vec<TagEvent> {
        self.tokens = index + 1;
        self.take(index, Some(id), text);
        std::mem::take(&mut self.events)
    }

    /// Takes characters that the newest token completed after all.
    pub fn feed_more(&mut self, text: &str) -> Vec<TagEvent> {
        self.take(self.tokens.saturating_sub(1), None, text);
        std::mem::take(&mut self.events)
    }

    /// Handles the characters of the token at `index`; `id` is its id if it is new.
    fn take(&mut self, index: usize, id: Option<u32>, text: &str) {
        match &mut self.doubt {
            Some(doubt) if id.is_some() => doubt.rest.push((index, id, String::new())),
            _ => self.unreported.extend(id),
        }
        let mut rest = text.char_indices();
        while let Some((_, character)) = rest.next() {
            if let Some(doubt) = &mut self.doubt {
                doubt.push(character, index);
                match doubt.look(character) {
                    None => {}
                    Some(Resolved::Quoted) => self.resolve(Resolved::Quoted, true),
                    Some(Resolved::Meant) => {
                        rest.for_each(|(_, character)| doubt.push(character, index));
                        return self.resolve(Resolved::Meant, false);
                    }
                }
            } else if self.step(character, index) && !self.unreported.is_empty() {
                // The tag used up every token so far except, perhaps, the rest of this one.
                self.unreported = id.into_iter().filter(|_| !rest.as_str().is_empty()).collect();
            }
        }
        if self.held.is_empty() && self.doubt.is_none() && !text.is_empty() {
            self.unreported.clear();
        }
    }

    /// Goes on behind a tag in doubt. `looked`: the last character decided, and need not be quoted.
    fn resolve(&mut self, resolved: Resolved, looked: bool) {
        let Some(mut doubt) = self.doubt.take() else { return };
        match resolved {
            Resolved::Quoted => {
                let last = doubt.rest.last_mut().filter(|_| looked);
                let last = last.and_then(|(index, _, text)| Some((*index, text.pop()?)));
                self.push_text(doubt.tag.spelling(), doubt.token);
                for (index, id, text) in doubt.rest {
                    self.unreported.extend(id);
                    self.push_text(&text, index);
                }
                if let Some((index, character)) = last {
                    self.step(character, index);
                }
            }
            Resolved::Meant => {
                let now = std::mem::replace(&mut self.tokens, doubt.tokens);
                self.apply(doubt.tag, doubt.token);
                let shares_token = doubt.rest.first().is_some_and(|(_, id, _)| id.is_none());
                self.unreported = doubt.id.into_iter().filter(|_| shares_token).collect();
                for (index, id, text) in doubt.rest {
                    self.tokens = index + 1;
                    self.take(index, id, &text);
                }
                self.tokens = now;
            }
        }
    }

    /// Takes generated token number `index`, which is the special token of a tag. Quoting does not
    /// hide it; in a place where it makes no sense it is text all the same.
    pub fn feed_special(&mut self, index: usize, id: u32, tag: Tag) -> Vec<TagEvent> {
        // A model with tokens for its tags does not spell them.
        self.resolve(Resolved::Quoted, false);
        self.release_held();
        self.tokens = index + 1;
        self.unreported = vec![id];
        if !self.apply(tag, index) {
            self.push_text(tag.spelling(), index);
        }
        self.unreported.clear();
        std::mem::take(&mut self.events)
    }

    /// Closes the innermost tagged segment because the caller wants it ended: a budget ran out or
    /// it repeats itself. A closing tag that the caller then adds to the sequence itself is not
    /// fed. Gives nothing when no tagged segment is open.
    pub fn force_close(&mut self) -> Vec<TagEvent> {
        self.resolve(Resolved::Quoted, false);
        self.release_held();
        if self.current() != SegmentKind::Text {
            self.close_innermost(self.tokens, Closed::Forced);
        }
        std::mem::take(&mut self.events)
    }

    /// Ends the text: gives what was held back and closes everything that is open.
    pub fn finish(&mut self, closed: Closed) -> Vec<TagEvent> {
        while self.doubt.is_some() {
            self.resolve(Resolved::Meant, false);
        }
        self.release_held();
        self.close_all(self.tokens, closed);
        std::mem::take(&mut self.events)
    }

    /// The kind of the innermost open segment; text when none is open.
    pub fn current(&self) -> SegmentKind {
        self.open.last().map_or(SegmentKind::Text, |segment| segment.kind)
    }

    /// Number of tokens so far in the open segment of this kind, segments inside it and its opening
    /// tag included; 0 when none is open.
    pub fn tokens_in(&self, kind: SegmentKind) -> usize {
        let segment = self.open.iter().find(|segment| segment.kind == kind);
        segment.map_or(0, |segment| self.tokens.saturating_sub(segment.token))
    }

    /// Number of reflections started so far.
    pub fn reflections(&self) -> usize {
        self.reflections
    }

    /// Handles one character; whether it completed a tag that took effect.
    fn step(&mut self, character: char, index: usize) -> bool {
        if !self.held.is_empty() {
            self.held.push(character);
            if TAGS.iter().any(|(spelling, _)| spelling.starts_with(&self.held)) {
                let Some(tag) = Tag::parse(&self.held) else {
                    return false;
                };
                let closes_innermost = !tag.opens && tag.kind == self.current();
                if !self.quotes.hide_tag(closes_innermost) {
                    if self.apply(tag, self.held_token) {
                        self.held.clear();
                        return true;
                    }
                } else if self.may_be_meant(tag, closes_innermost) {
                    self.held.clear();
                    let id = self.unreported.last().copied();
                    self.doubt =
                        Some(Doubt::new(tag, self.held_token, index + 1, id, self.quotes.before_tag()));
                    return false;
                }
                self.release_held();
                return false;
            }
            // Only the first character of a tag is `<`, so what was held can't hide another tag.
            self.held.pop();
            self.release_held();
        }
        if character == '<' {
            self.held.push(character);
            self.held_token = index;
        } else {
            self.push_text(character.encode_utf8(&mut [0; 4]), index);
        }
        false
    }

    /// Whether a tag that is quoted so far may turn out to be meant: it would take effect, its pair is
    /// not quoted with it, and a fence hides it or only the mark before it.
    fn may_be_meant(&mut self, tag: Tag, closes_innermost: bool) -> bool {
        let is_open = self.open.iter().any(|segment| segment.kind == tag.kind);
        if self.quotes.before_tag().is_fenced() {
            let pair = self.quoted.iter().rposition(|kind| *kind == tag.kind).filter(|_| !tag.opens);
            match pair {
                Some(pair) => {
                    self.quoted.remove(pair);
                }
                None if tag.opens && is_open => self.quoted.push(tag.kind),
                None => return tag.opens != is_open,
            }
            return false;
        }
        closes_innermost
    }

    /// Opens or closes segments as the tag says; false when it makes no sense here. `token` is
    /// where the tag begins.
    fn apply(&mut self, tag: Tag, token: usize) -> bool {
        let position = self.open.iter().position(|segment| segment.kind == tag.kind);
        match (tag.opens, position) {
            (true, Some(_)) | (false, None) => return false,
            (true, None) => {
                // Text outside tags has no closing tag: the next tag ends it in the normal way.
                let outside = self.current() == SegmentKind::Text;
                if outside || tag.kind != SegmentKind::Reflection {
                    self.close_all(token, if outside { Closed::Tag } else { Closed::Forced });
                }
                self.start(tag.kind, token);
            }
            (false, Some(position)) => {
                while self.open.len() > position + 1 {
                    self.close_innermost(token, Closed::Forced);
                }
                self.close_innermost(self.tokens, Closed::Tag);
            }
        }
        true
    }

    fn start(&mut self, kind: SegmentKind, token: usize) {
        let segment = Segment { id: self.started, kind, token };
        let parent = self.open.last().map(|segment| segment.id);
        self.started += 1;
        self.reflections += usize::from(kind == SegmentKind::Reflection);
        self.open.push(segment);
        self.events.push(TagEvent::Start { id: segment.id, parent, kind, token });
        self.quotes = Quotes::default();
    }

    fn close_innermost(&mut self, token: usize, closed: Closed) {
        if let Some(segment) = self.open.pop() {
            self.events.push(TagEvent::End { id: segment.id, token, closed });
            self.quotes = Quotes::default();
        }
    }

    fn close_all(&mut self, token: usize, closed: Closed) {
        while !self.open.is_empty() {
            self.close_innermost(token, closed);
        }
    }

    /// Gives out what was held back: it is text after all.
    fn release_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.push_text(&held, self.held_token);
    }

    /// Adds text to the innermost segment, opening one outside all tags if need be.
    fn push_text(&mut self, text: &str, token: usize) {
        if text.is_empty() {
            return;
        }
        if self.open.is_empty() {
            self.start(SegmentKind::Text, token);
        }
        text.chars().for_each(|character| self.quotes.see(character));
        if !self.quotes.is_fenced() {
            self.quoted.clear();
        }
        let segment = self.open.last().map_or(0, |segment| segment.id);
        let reported = std::mem::take(&mut self.unreported);
        match self.events.last_mut() {
            Some(TagEvent::Text { id, text: so_far, token_ids }) if *id == segment => {
                so_far.push_str(text);
                token_ids.extend(reported);
            }
            _ => self.events.push(TagEvent::Text { id: segment, text: text.to_owned(), token_ids: reported }),
        }
    }
}

#[cfg(test)]
mod tests;
