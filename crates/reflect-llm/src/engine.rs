//! Many sequences over one model and one paged cache. Token ids in, token ids out: text, tags and
//! templates are not known here.

mod rows;

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reflect_kernels::{KvFormat, KvShape, PAGE, PairLayout, SequenceRows};
use rows::{Rows, device_candidates, failed_at_the_end, read_floats};

use crate::{
    cache::{CacheFull, KvCache},
    model::{Llama, LogitRows},
    recorder::Recorder,
    sampler::{Candidates, SampleError, Sampled, SamplingParams},
    scheduler::{Group, Limits, Plan, Scheduler, View},
    shard,
    weights::LoadError,
};

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Positions that a sequence may have.
    pub context: usize,
    /// Positions in the cache over all sequences.
    pub cache_positions: usize,
    /// Rows of a step, of prompts and of sequences that decode: more is faster, needs more scratch memory, and
    /// lets those that decode wait longer.
    pub prefill_chunk: usize,
    pub kv_format: KvFormat,
}

/// What can go wrong in a step or a request.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    #[error("the prompt has {tokens} tokens and the context only {context}; shorten it or raise --context")]
    PromptTooLong { tokens: usize, context: usize },
    #[error("token {id} is not in the model's vocabulary of {vocab}; the tokenizer does not fit the model")]
    UnknownToken { id: u32, vocab: usize },
    #[error("there is no sequence {0:?}; it has ended or was cancelled")]
    NoSequence(SequenceId),
    #[error(transparent)]
    CacheFull(#[from] CacheFull),
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Which layers were there and why it failed.
    #[error("the device{0}; load the model again, or use another --device")]
    Device(String),
}

/// Names a sequence of one engine; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub(crate) u64);

/// What a sequence is to be continued with.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub sampling: SamplingParams,
}

/// Looks at the candidates before a token is chosen: bans that depend on the text.
pub trait TokenFilter {
    /// May ban candidates of `sequence`.
    fn filter(&mut self, sequence: SequenceId, candidates: &mut Candidates);

    /// Sees each token as it is chosen. `false` says that what follows in the same step, if it was drafted, is
    /// no longer wanted.
    fn chosen(&mut self, _sequence: SequenceId, _sampled: &Sampled) -> bool {
        true
    }
}

/// Bans nothing.
impl TokenFilter for () {
    fn filter(&mut self, _: SequenceId, _: &mut Candidates) {}
}

/// What one step did.
#[derive(Debug, Default)]
pub struct StepReport {
    /// Tokens chosen in this step. Each is already part of its sequence.
    pub sampled: Vec<(SequenceId, Sampled)>,
    /// Sequences that can't go on. They are paused, and nobody else is touched.
    pub failed: Vec<(SequenceId, EngineError)>,
    /// Rows that went through the model.
    pub rows: usize,
}

impl StepReport {
    /// The step of an engine with one sequence, whose failure is that of the step.
    ///
    /// # Errors
    /// One of `failed`.
    pub fn alone(mut self) -> Result<Self, EngineError> {
        match self.failed.pop() {
            Some((_, error)) => Err(error),
            None => Ok(self),
        }
    }
}

/// A model with its cache and the sequences in flight.
#[derive(Debug)]
pub struct Engine {
    model: Llama,
    cache: KvCache,
    /// Of each stage.
    recorders: Vec<Recorder>,
    options: EngineOptions,
    sequences: BTreeMap<SequenceId, Sequence>,
    scheduler: Scheduler,
    next_id: u64,
}

#[derive(Debug)]
struct Sequence {
    tokens: Vec<u32>,
    /// Tokens whose keys and values are cached, always fewer than `tokens` before a step.
    computed: usize,
    pages: Vec<u32>,
    sampling: SamplingParams,
    rng: ChaCha8Rng,
    /// Paused sequences take no part in steps. They keep their pages until others need them.
    paused: bool,
}

impl Engine {
    /// An engine over `model`, with its cache allocated.
    pub fn new(model: Llama, options: EngineOptions) -> Self {
        let pages = options.cache_positions.div_ceil(PAGE).max(1);
        let cache = KvCache::new(&model, pages, options.kv_format);
        let recorders = model.stages.iter().map(|_| Recorder::default()).collect();
        Self {
            model,
            cache,
            recorders,
            options,
            sequences: BTreeMap::new(),
            scheduler: Scheduler::default(),
            next_id: 0,
        }
    }

    /// Bytes that the cache takes for `positions` positions of a model.
    pub fn cache_bytes(model: &crate::config::LlamaConfig, positions: usize, format: KvFormat) -> u64 {
        let layout = PairLayout::Interleaved;
        let shape = KvShape { kv_heads: model.num_key_value_heads, head_dim: model.head_dim, format, layout };
        let pages = positions.div_ceil(PAGE) as u64;
        pages * model.num_hidden_layers as u64 * 4 * shape.page_words() as u64
    }

    pub fn model(&self) -> &Llama {
        &self.model
    }

    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Adds a sequence. Its prompt goes through the model in the coming steps.
    ///
    /// # Errors
    /// If the prompt is empty, too long, or has an id outside the vocabulary; if the sampling
    /// settings make no sense.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId, EngineError> {
        request.sampling.validate()?;
        if request.prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let rng = ChaCha8Rng::seed_from_u64(request.sampling.seed);
        let mut sequence = Sequence {
            tokens: Vec::new(),
            computed: 0,
            pages: Vec::new(),
            sampling: request.sampling,
            rng,
            paused: false,
        };
        self.check(&sequence, &request.prompt)?;
        sequence.tokens = request.prompt;
        Ok(self.insert(sequence))
    }

    /// Appends tokens that were not sampled: forced tags, the next turn of a conversation.
    ///
    /// # Errors
    /// If there is no such sequence, no room in its context, or an id outside the vocabulary.
    pub fn append(&mut self, id: SequenceId, tokens: &[u32]) -> Result<(), EngineError> {
        let sequence = self.sequences.get(&id).ok_or(EngineError::NoSequence(id))?;
        self.check(sequence, tokens)?;
        self.sequence(id)?.tokens.extend(tokens);
        Ok(())
    }

    /// A new sequence with the first `len` tokens of another. Full cache pages are shared; at most
    /// 31 positions are computed again.
    ///
    /// # Errors
    /// If there is no such sequence, or `len` is 0 or more than it has.
    pub fn fork(
        &mut self,
        id: SequenceId,
        len: usize,
        sampling: SamplingParams,
    ) -> Result<SequenceId, EngineError> {
        sampling.validate()?;
        let parent = self.sequences.get(&id).ok_or(EngineError::NoSequence(id))?;
        if len == 0 || len > parent.tokens.len() {
            return Err(EngineError::EmptyPrompt);
        }
        // The last token goes through the model once more, for its logits.
        let shared = parent.computed.min(len - 1) / PAGE * PAGE;
        let sequence = Sequence {
            tokens: parent.tokens[..len].to_vec(),
            computed: shared,
            pages: self.cache.share(&parent.pages, shared),
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
            sampling,
            paused: false,
        };
        Ok(self.insert(sequence))
    }

    /// Forgets the tokens from `len` on.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<(), EngineError> {
        let sequence = self.sequences.get_mut(&id).ok_or(EngineError::NoSequence(id))?;
        sequence.tokens.truncate(len);
        let kept = sequence.computed.min(len.saturating_sub(1));
        // A shared page may be kept in part; what follows in it would be written over the other
        // owner's lines, so the part is computed again in a page of its own.
        sequence.computed = if kept < sequence.computed { kept / PAGE * PAGE } else { kept };
        let computed = sequence.computed;
        self.cache.shrink(&mut sequence.pages, computed);
        Ok(())
    }

    /// Leaves a sequence out of the steps, or lets it take part again. Its cache is kept until others need the
    /// room, and computed again where it was not.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) -> Result<(), EngineError> {
        self.sequence(id)?.paused = paused;
        Ok(())
    }

    /// Removes a sequence and frees its pages. Removing one that is gone does nothing.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.cache.shrink(&mut sequence.pages, 0);
            self.scheduler.remove(id);
        }
    }

    /// The tokens of a sequence so far, prompt included.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn tokens(&self, id: SequenceId) -> Result<&[u32], EngineError> {
        self.sequences.get(&id).map(|s| s.tokens.as_slice()).ok_or(EngineError::NoSequence(id))
    }

    /// Positions of the cache that no sequence holds, in whole pages.
    pub fn free_positions(&self) -> usize {
        self.cache.free_pages() * PAGE
    }

    /// Whether all tokens of a sequence but the last are computed, so that its next step can try a draft.
    pub fn is_past_prompt(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|s| s.computed + 1 == s.tokens.len())
    }

    /// Whether a sequence has a free position left.
    pub fn has_room(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|s| s.tokens.len() < self.options.context)
    }

    /// Runs one step: one token of every sequence that is past its prompt, and prompts in the rows that are
    /// left ([`Scheduler`]). Chooses a token for each sequence all of whose tokens are then computed, and
    /// appends it. Where the cache is full the newest sequence is computed again later. Does nothing if no
    /// sequence is ready.
    ///
    /// # Errors
    /// If the device failed. What goes wrong with one sequence stands in the report.
    pub async fn step(&mut self, filter: &mut impl TokenFilter) -> Result<StepReport, EngineError> {
        let mut report = StepReport::default();
        let groups = self.schedule(&mut report);
        if groups.is_empty() {
            return Ok(report);
        }
        let parts = |group: &Group| -> Vec<SequenceRows<'_>> {
            let rows = group.iter().filter_map(|(id, rows)| Some((self.sequences.get(id)?, rows.clone())));
            rows.map(|(s, rows)| SequenceRows {
                ids: &s.tokens[rows.clone()],
                first_position: rows.start,
                pages: &s.pages,
            })
            .collect()
        };
        let passes: Vec<Vec<SequenceRows<'_>>> = groups.iter().map(parts).collect();
        let logits =
            shard::run(&self.model, &mut self.cache.layers, &mut self.recorders, &passes, LogitRows::Last)
                .await?;

        for (group, logits) in groups.iter().zip(logits) {
            let mut finished = false;
            for (id, rows) in group {
                report.rows += rows.len();
                if let Some(sequence) = self.sequences.get_mut(id) {
                    sequence.computed = rows.end;
                    finished |= sequence.computed == sequence.tokens.len();
                }
            }
            if finished {
                let ids: Vec<SequenceId> = group.iter().map(|(id, _)| *id).collect();
                self.choose(&ids, logits, filter, &mut report).await?;
            }
        }
        Ok(report)
    }

    /// Logits of each token of `tokens`, `[T * vocab]`, computed from scratch in chunks.
    ///
    /// # Errors
    /// As [`submit`](Self::submit) and [`step`](Self::step).
    pub async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let sampling = SamplingParams::greedy();
        let id = self.submit(Request { prompt: tokens.to_vec(), sampling })?;
        let result = self.all_logits(id).await;
        self.cancel(id);
        result
    }

    async fn all_logits(&mut self, id: SequenceId) -> Result<Vec<f32>, EngineError> {
        let sequence = self.sequences.get_mut(&id).ok_or(EngineError::NoSequence(id))?;
        self.cache.grow(&mut sequence.pages, sequence.tokens.len())?;
        let mut all = Vec::new();
        for start in (0..sequence.tokens.len()).step_by(self.options.prefill_chunk) {
            let end = (start + self.options.prefill_chunk).min(sequence.tokens.len());
            let part = SequenceRows {
                ids: &sequence.tokens[start..end],
                first_position: start,
                pages: &sequence.pages,
            };
            let logits = shard::run(
                &self.model,
                &mut self.cache.layers,
                &mut self.recorders,
                &[vec![part]],
                LogitRows::All,
            )
            .await?;
            for logits in logits {
                let read = read_floats(logits).await;
                all.extend(read.map_err(|reason| failed_at_the_end(&self.model, reason))?);
            }
        }
        Ok(all)
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, sequence);
        self.scheduler.add(id);
        id
    }

    fn sequence(&mut self, id: SequenceId) -> Result<&mut Sequence, EngineError> {
        self.sequences.get_mut(&id).ok_or(EngineError::NoSequence(id))
    }

    fn check(&self, sequence: &Sequence, more: &[u32]) -> Result<(), EngineError> {
        let (tokens, context) = (sequence.tokens.len() + more.len(), self.options.context);
        if tokens > context {
            return Err(EngineError::PromptTooLong { tokens, context });
        }
        let vocab = self.model.config.vocab_size;
        match more.iter().find(|id| **id as usize >= vocab) {
            Some(&id) => Err(EngineError::UnknownToken { id, vocab }),
            None => Ok(()),
        }
    }

    /// The passes of the next step, with pages for all of them.
    fn schedule(&mut self, report: &mut StepReport) -> Vec<Group> {
        loop {
            let views = self.sequences.iter().map(|(id, s)| {
                let (tokens, pages) = (s.tokens.len(), s.pages.len());
                (*id, View { tokens, computed: s.computed, pages, paused: s.paused })
            });
            let limits = Limits {
                rows: self.options.prefill_chunk,
                stages: self.model.stages.len(),
                free_pages: self.cache.free_pages(),
            };
            let groups = match self.scheduler.plan(&views.collect(), limits) {
                Plan::Run(groups) => groups,
                Plan::Evict(id) => {
                    self.evict(id);
                    continue;
                }
                Plan::Fail(id) => {
                    self.fail(id, CacheFull.into(), report);
                    continue;
                }
            };
            let mut full = None;
            for (id, rows) in groups.iter().flatten() {
                if let Some(sequence) = self.sequences.get_mut(id)
                    && self.cache.grow(&mut sequence.pages, rows.end).is_err()
                {
                    full = Some(*id);
                }
            }
            match full {
                None => return groups,
                Some(id) => self.fail(id, CacheFull.into(), report),
            }
        }
    }

    /// Takes the pages of a sequence, which is computed again when it is its turn.
    fn evict(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.computed = 0;
            self.cache.shrink(&mut sequence.pages, 0);
        }
    }

    /// Tells that a sequence can't go on.
    fn fail(&mut self, id: SequenceId, error: EngineError, report: &mut StepReport) {
        self.evict(id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.paused = true;
        }
        report.failed.push((id, error));
    }

    /// One step of a sequence in which a draft of what comes next is tried: its tokens go through the model
    /// together with the last one, and the step keeps the chosen tokens up to the first that is not as
    /// drafted. Each is chosen as it would have been without a draft, so the answer is the same but
    /// for the rounding of several rows at once (Leviathan et al. 2023, arXiv 2211.17192, with drafts that are
    /// certain). A sequence whose prompt is not through, or that has no room, does a step without.
    ///
    /// # Errors
    /// As [`step`](Self::step); if a drafted id is outside the vocabulary.
    pub async fn step_drafted(
        &mut self,
        id: SequenceId,
        draft: &[u32],
        filter: &mut impl TokenFilter,
    ) -> Result<StepReport, EngineError> {
        let vocab = self.model.config.vocab_size;
        if let Some(&id) = draft.iter().find(|id| **id as usize >= vocab) {
            return Err(EngineError::UnknownToken { id, vocab });
        }
        let sequence = self.sequences.get_mut(&id).ok_or(EngineError::NoSequence(id))?;
        let len = sequence.tokens.len();
        let most = self.options.prefill_chunk.min(self.options.context.saturating_sub(len));
        let draft = &draft[..draft.len().min(most.saturating_sub(1))];
        let ready = !sequence.paused && sequence.computed + 1 == len && !draft.is_empty();
        if !ready || self.cache.grow(&mut sequence.pages, len + draft.len()).is_err() {
            return self.step(filter).await;
        }
        let ids: Vec<u32> = sequence.tokens.last().into_iter().chain(draft).copied().collect();
        let rows = SequenceRows { ids: &ids, first_position: len - 1, pages: &sequence.pages };
        let mut passes = shard::run(
            &self.model,
            &mut self.cache.layers,
            &mut self.recorders,
            &[vec![rows]],
            LogitRows::All,
        )
        .await?;
        let mut report = StepReport { rows: ids.len(), ..StepReport::default() };
        let Some(logits) = passes.pop() else { return Ok(report) };
        let wanted = device_candidates([&*sequence]);
        let mut rows = Rows::read(&self.model, logits, wanted).await?;
        for row in 0..ids.len() {
            sequence.computed += 1;
            let sampled = match rows.choose(row, id, sequence, filter).await {
                Ok(sampled) => sampled,
                Err(error @ EngineError::Sample(_)) => {
                    self.fail(id, error, &mut report);
                    break;
                }
                Err(error) => return Err(error),
            };
            let wanted = filter.chosen(id, &sampled);
            let as_drafted = draft.get(row) == Some(&sampled.id);
            report.sampled.push((id, sampled));
            if !wanted || !as_drafted {
                break;
            }
        }
        Ok(report)
    }

    /// Chooses the next token of each sequence of `group` whose tokens are all computed.
    async fn choose(
        &mut self,
        group: &[SequenceId],
        logits: Tensor<2>,
        filter: &mut impl TokenFilter,
        report: &mut StepReport,
    ) -> Result<(), EngineError> {
        let wanted = device_candidates(group.iter().filter_map(|id| self.sequences.get(id)));
        let mut rows = Rows::read(&self.model, logits, wanted).await?;
        let mut failed = Vec::new();
        for (row, id) in group.iter().enumerate() {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            if sequence.computed < sequence.tokens.len() || sequence.tokens.len() >= self.options.context {
                continue;
            }
            match rows.choose(row, *id, sequence, filter).await {
                Ok(chosen) => {
                    filter.chosen(*id, &chosen);
                    report.sampled.push((*id, chosen));
                }
                Err(error @ EngineError::Sample(_)) => failed.push((*id, error)),
                Err(error) => return Err(error),
            }
        }
        for (id, error) in failed {
            self.fail(id, error, report);
        }
        Ok(())
    }
}
