//! Many answers at once from one engine: what classification, mining and evaluation ask.

use std::collections::{BTreeMap, VecDeque};

use pollster::block_on;
use reflect_data::completions::{CompletionError, CompletionRequest, Completions, Troubles};
use reflect_llm::{
    Engine, EngineError, Generation, GenerationOptions, Request, SequenceId,
    engine::TokenFilter,
    guard::Budgets,
    sampler::{Candidates, SamplingParams},
    stream::Next,
};
use reflect_text::{ChatTemplate, FinishReason, Message, RenderOptions, SpecialTokens, Tokenizer};

/// A conversation to continue.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub messages: Vec<Message>,
    pub tools: Option<serde_json::Value>,
    /// What the answer begins with.
    pub prefix: String,
    /// Texts that may not be written.
    pub banned: Vec<String>,
    /// Texts that end an answer before them.
    pub stops: Vec<String>,
    pub sampling: SamplingParams,
    pub max_tokens: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// With its tags and its prefix, without the end of the turn.
    pub text: String,
    /// Written tokens, without the prefix.
    pub tokens: usize,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// An engine with what turns conversations into tokens and back.
pub struct Answerer {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    pub eos_ids: Vec<u32>,
    /// Answers that are written at a time; the engine's cache has room for as many contexts.
    pub parallel: usize,
    /// Prompts so far that did not fit the context, and got an empty answer without an end.
    pub too_long: usize,
}

/// An answer that is being written.
struct Active {
    /// Its place among the prompts.
    index: usize,
    prefix: String,
    prompt_tokens: usize,
    generation: Generation,
}

struct Filter<'a> {
    active: &'a mut BTreeMap<SequenceId, Active>,
    tokenizer: &'a Tokenizer,
}

impl TokenFilter for Filter<'_> {
    fn filter(&mut self, sequence: SequenceId, candidates: &mut Candidates) {
        if let Some(active) = self.active.get_mut(&sequence) {
            active.generation.filter(self.tokenizer, candidates);
        }
    }
}

impl Answerer {
    /// The answers to `prompts`, in their order. `told` hears of each that is complete.
    ///
    /// # Errors
    /// If a prompt can't be rendered, or the engine fails; if one answer fails, after the others are complete.
    pub fn answers(
        &mut self,
        prompts: &[Prompt],
        mut told: impl FnMut(usize, &Answer),
    ) -> Result<Vec<Answer>, CompletionError> {
        let mut waiting: VecDeque<usize> = (0..prompts.len()).collect();
        let mut active: BTreeMap<SequenceId, Active> = BTreeMap::new();
        let mut answers: Vec<Option<Answer>> = prompts.iter().map(|_| None).collect();
        let mut failure = None;
        loop {
            while active.len() < self.parallel.max(1) {
                let Some(index) = waiting.pop_front() else { break };
                match self.start(index, &prompts[index])? {
                    Some((id, started)) => drop(active.insert(id, started)),
                    None => {
                        self.too_long += 1;
                        let text = prompts[index].prefix.clone();
                        let answer = Answer { text, tokens: 0, finished: false };
                        told(index, &answer);
                        answers[index] = Some(answer);
                    }
                }
            }
            if active.is_empty() && waiting.is_empty() {
                break;
            }
            let mut filter = Filter { active: &mut active, tokenizer: &self.tokenizer };
            let report = block_on(self.engine.step(&mut filter)).map_err(failed)?;
            let idle = report.rows == 0 && report.failed.is_empty();
            for (id, error) in report.failed {
                // The others are told before the failure is.
                active.remove(&id);
                self.engine.cancel(id);
                failure.get_or_insert(failed(error));
            }
            for (id, sampled) in &report.sampled {
                let Some(writing) = active.get_mut(id) else { continue };
                let (_, next) = writing.generation.push(&self.tokenizer, sampled, 0.0);
                let ended = match next {
                    Next::Stop(reason) => Some(reason),
                    Next::Force(ids) => self.engine.append(*id, &ids).err().map(|_| FinishReason::Length),
                    Next::Continue => None,
                };
                let ended = ended.or((!self.engine.has_room(*id)).then_some(FinishReason::Length));
                if let Some(reason) = ended {
                    if let Some(writing) = active.remove(id) {
                        let index = writing.index;
                        let answer = self.end(*id, writing, reason)?;
                        told(index, &answer);
                        answers[index] = Some(answer);
                    }
                    self.engine.cancel(*id);
                }
            }
            if idle {
                return Err(CompletionError::Model("the engine stopped before the answers ended".into()));
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(answers.into_iter().flatten().collect()),
        }
    }

    /// Hands a prompt to the engine; `None` when it is longer than the context.
    fn start(
        &mut self,
        index: usize,
        prompt: &Prompt,
    ) -> Result<Option<(SequenceId, Active)>, CompletionError> {
        let options = RenderOptions {
            add_generation_prompt: true,
            tools: prompt.tools.clone(),
            ..RenderOptions::default()
        };
        let rendered = self.template.render_ids(&self.tokenizer, &prompt.messages, &options);
        let rendered = rendered.map_err(|error| CompletionError::Model(error.to_string()))?;
        let mut ids = rendered.ids;
        let prefix = self.tokenizer.encode(&prompt.prefix, SpecialTokens::Parse);
        ids.extend(prefix.map_err(|error| CompletionError::Model(error.to_string()))?);
        let mut sampling = prompt.sampling.clone();
        // Where a banned text is one token, that token never comes.
        sampling.banned.extend(prompt.banned.iter().filter_map(|text| self.tokenizer.special_id(text)));
        let options = GenerationOptions {
            max_tokens: prompt.max_tokens,
            eos_ids: self.eos_ids.clone(),
            stops: prompt.stops.clone(),
            banned_texts: prompt.banned.clone(),
            budgets: Budgets { thinking: None, reflection: None, output: None, grace: 0 },
            loop_guard: true,
        };
        let prompt_tokens = ids.len();
        let id = match self.engine.submit(Request { prompt: ids, sampling }) {
            Err(EngineError::PromptTooLong { .. }) => return Ok(None),
            submitted => submitted.map_err(failed)?,
        };
        let generation = Generation::new(options, prompt_tokens).begin_in(&rendered.opened);
        let opened: String = rendered.opened.iter().map(|tag| tag.spelling()).collect();
        let prefix = opened + &prompt.prefix;
        Ok(Some((id, Active { index, prefix, prompt_tokens, generation })))
    }

    fn end(&self, id: SequenceId, writing: Active, reason: FinishReason) -> Result<Answer, CompletionError> {
        let written = self.engine.tokens(id).map_err(failed)?.get(writing.prompt_tokens..);
        let mut written = written.unwrap_or_default();
        if let Some((_, rest)) = written.split_last().filter(|(last, _)| self.eos_ids.contains(last)) {
            written = rest;
        }
        let text = writing.prefix + &self.tokenizer.decode(written, false);
        let finished = reason == FinishReason::Stop;
        Ok(Answer { text, tokens: written.len(), finished })
    }
}

fn failed(error: EngineError) -> CompletionError {
    CompletionError::Model(error.to_string())
}

/// Candidates among which tokens are drawn when a request names no number of its own.
const TOP_K: usize = 64;

impl Completions for Answerer {
    fn complete(&mut self, requests: &[CompletionRequest]) -> Vec<Result<Vec<String>, CompletionError>> {
        let prompts: Vec<Prompt> = requests
            .iter()
            .flat_map(|request| {
                (0..request.samples).map(|sample| Prompt {
                    messages: request.messages.clone(),
                    tools: request.tools.clone(),
                    prefix: String::new(),
                    banned: Vec::new(),
                    stops: request.sampling.stop.clone(),
                    sampling: SamplingParams {
                        temperature: request.sampling.temperature,
                        top_p: request.sampling.top_p,
                        top_k: TOP_K,
                        seed: request.seed.wrapping_add(sample as u64),
                        ..SamplingParams::default()
                    },
                    max_tokens: request.sampling.max_tokens,
                })
            })
            .collect();
        let mut texts: Vec<Option<String>> = prompts.iter().map(|_| None).collect();
        let failure = self.answers(&prompts, |index, answer| texts[index] = Some(answer.text.clone())).err();
        let mut texts = texts.into_iter();
        let of_request = |request: &CompletionRequest| {
            let answers: Option<Vec<String>> = texts.by_ref().take(request.samples).collect();
            answers.ok_or_else(|| {
                let reason = failure.as_ref().map(ToString::to_string);
                CompletionError::Model(reason.unwrap_or_else(|| "it gave too few answers".to_owned()))
            })
        };
        requests.iter().map(of_request).collect()
    }

    fn troubles(&self) -> Troubles {
        Troubles { too_long: self.too_long, ..Troubles::default() }
    }
}
