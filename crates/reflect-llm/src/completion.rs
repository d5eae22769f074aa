//! One answer being written: steps the engine and turns its tokens into events. The caller has the clock, so
//! that the same loop runs natively and in a browser.

use reflect_text::{Event, FinishReason, Timings, Tokenizer};

use crate::{
    draft::Drafter,
    engine::{Engine, EngineError, SequenceId, TokenFilter},
    sampler::{Candidates, Sampled},
    stream::{Generation, Next, Written},
};

/// The answer of one sequence, the only one that its engine writes.
pub struct Completion {
    sequence: SequenceId,
    generation: Generation,
    clock: Clock,
    written: Vec<Written>,
    drafts: Drafts,
}

/// How many tokens were drafted, and how many of them kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    pub drafted: usize,
    pub kept: usize,
}

/// What a step brought.
#[derive(Debug)]
pub struct Progress {
    pub events: Vec<Event>,
    /// Why the answer is complete, if it is; [`Completion::finish`] comes next.
    pub ended: Option<FinishReason>,
}

impl Completion {
    /// An answer that starts at `now_ms` by the caller's clock.
    pub fn new(sequence: SequenceId, generation: Generation, now_ms: f64) -> Self {
        Self {
            sequence,
            generation,
            clock: Clock::start(now_ms),
            written: Vec::new(),
            drafts: Drafts::default(),
        }
    }

    pub fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// Takes tokens that are in the sequence already, as if they had just been written.
    pub fn replay(&mut self, tokenizer: &Tokenizer, written: &[Written], now_ms: f64) -> Vec<Event> {
        self.written.extend_from_slice(written);
        written.iter().flat_map(|token| self.generation.replay(tokenizer, token, now_ms)).collect()
    }

    /// Runs one step of the engine, with a draft if there is a `drafter`: the answer is the same.
    ///
    /// # Errors
    /// If the engine or the drafter fails.
    pub async fn step(
        &mut self,
        engine: &mut Engine,
        drafter: Option<&mut Drafter>,
        tokenizer: &Tokenizer,
        now_ms: impl Fn() -> f64,
    ) -> Result<Progress, EngineError> {
        let ended = |reason| Progress { events: Vec::new(), ended: Some(reason) };
        if !engine.has_room(self.sequence) {
            return Ok(ended(FinishReason::Length));
        }
        let draft = match drafter {
            // A prompt takes steps of its own, in which a draft is not looked at.
            Some(drafter) if engine.is_past_prompt(self.sequence) => {
                drafter.draft(engine.tokens(self.sequence)?).await?
            }
            _ => Vec::new(),
        };
        let mut text = TextFilter {
            generation: &mut self.generation,
            tokenizer,
            now_ms: &now_ms,
            progress: Progress { events: Vec::new(), ended: None },
            next: Next::Continue,
        };
        let report = engine.step_drafted(self.sequence, &draft, &mut text).await?.alone()?;
        let TextFilter { mut progress, next, .. } = text;
        if report.rows == 0 {
            return Err(EngineError::NoSequence(self.sequence));
        }
        self.clock.stepped(report.rows, report.sampled.len(), now_ms());
        if !report.sampled.is_empty() {
            let kept = report.sampled.iter().zip(&draft).filter(|((_, sampled), id)| sampled.id == **id);
            self.drafts.kept += kept.count();
            self.drafts.drafted += draft.len();
        }
        self.written.extend(report.sampled.into_iter().map(|(_, sampled)| Written::Sampled(sampled)));
        progress.ended = match next {
            Next::Continue => None,
            Next::Stop(reason) => Some(reason),
            Next::Force(ids) => self.append(engine, &ids)?,
        };
        Ok(progress)
    }

    /// Ends the answer: what was held back, open segments, and `done`.
    pub fn finish(&mut self, reason: FinishReason, load_ms: f64, now_ms: f64) -> Vec<Event> {
        let timings = self.clock.timings(load_ms);
        self.generation.finish(reason, timings, now_ms)
    }

    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }

    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Every token of the answer, forced and replayed ones too, the end token included.
    pub fn written(&self) -> &[Written] {
        &self.written
    }

    /// Appends what the engine forces; `Some` where it does not fit the context.
    fn append(&mut self, engine: &mut Engine, ids: &[u32]) -> Result<Option<FinishReason>, EngineError> {
        if engine.tokens(self.sequence)?.len() + ids.len() >= engine.options().context {
            return Ok(Some(FinishReason::Length));
        }
        engine.append(self.sequence, ids)?;
        self.written.extend(ids.iter().copied().map(Written::Given));
        Ok(None)
    }
}

/// The text so far: what it bans, and what it becomes with each token.
struct TextFilter<'a, F> {
    generation: &'a mut Generation,
    tokenizer: &'a Tokenizer,
    now_ms: &'a F,
    progress: Progress,
    /// What the last token asks for.
    next: Next,
}

impl<F: Fn() -> f64> TokenFilter for TextFilter<'_, F> {
    fn filter(&mut self, _: SequenceId, candidates: &mut Candidates) {
        self.generation.filter(self.tokenizer, candidates);
    }

    fn chosen(&mut self, _: SequenceId, sampled: &Sampled) -> bool {
        let (events, next) = self.generation.push(self.tokenizer, sampled, (self.now_ms)());
        self.progress.events.extend(events);
        self.next = next;
        matches!(self.next, Next::Continue)
    }
}

/// Times of one answer, in milliseconds.
struct Clock {
    start: f64,
    /// Rows computed until the first token came, and when that was.
    prefill: (usize, Option<f64>),
    /// Tokens that came after the first, and when the last of them was.
    decode: (usize, f64),
}

impl Clock {
    fn start(now_ms: f64) -> Self {
        Self { start: now_ms, prefill: (0, None), decode: (0, now_ms) }
    }

    fn stepped(&mut self, rows: usize, sampled: usize, now_ms: f64) {
        if self.prefill.1.is_some() {
            self.decode = (self.decode.0 + sampled, now_ms);
            return;
        }
        self.prefill.0 += rows;
        if sampled > 0 {
            self.prefill.1 = Some(now_ms);
        }
    }

    fn timings(&self, load_ms: f64) -> Timings {
        let first = self.prefill.1.unwrap_or(self.start);
        Timings {
            load_ms,
            prefill_tokens_per_s: rate(self.prefill.0, first - self.start),
            decode_tokens_per_s: rate(self.decode.0, self.decode.1 - first),
        }
    }
}

/// Count a second, 0 where no time passed.
fn rate(count: usize, ms: f64) -> f64 {
    if ms > 0.0 { count as f64 / ms * 1e3 } else { 0.0 }
}
