//! One answer: the options of the command line, and the loop that steps the engine and turns its
//! tokens into events.

use std::time::{Duration, Instant};

use anyhow::Result;
use pollster::block_on;
use reflect_llm::{
    Completion, Engine, Generation, GenerationOptions, SequenceId, guard::Budgets, sampler::SamplingParams,
};
use reflect_text::{Event, FinishReason, Tokenizer};

use crate::{
    args::{AnswerArgs, SamplingArgs},
    input,
};

/// The sampling settings of the command line, checked before anything is loaded.
///
/// # Errors
/// If one of them makes no sense.
pub fn sampling(args: &AnswerArgs, top_logprobs: usize, vocab: usize) -> Result<SamplingParams> {
    if let Some(id) = args.ban_token.iter().find(|id| **id as usize >= vocab) {
        return Err(input(format!("--ban-token {id} is not in the model's vocabulary of {vocab}")));
    }
    if top_logprobs > vocab {
        return Err(input(format!("--top-logprobs {top_logprobs} is more than the vocabulary of {vocab}")));
    }
    let SamplingArgs { greedy, temperature, top_p, top_k, min_p, repetition_penalty, seed } = args.sampling;
    let chosen = if greedy {
        SamplingParams::greedy()
    } else {
        SamplingParams { temperature, top_p, top_k, min_p, ..SamplingParams::default() }
    };
    let params =
        SamplingParams { repetition_penalty, seed, banned: args.ban_token.clone(), top_logprobs, ..chosen };
    params.validate().map_err(|problem| input(problem.to_string()))?;
    Ok(params)
}

/// How the command line bounds an answer.
pub fn limits(args: &AnswerArgs, eos_ids: Vec<u32>) -> GenerationOptions {
    GenerationOptions {
        max_tokens: args.max_tokens.get(),
        eos_ids,
        stops: args.stop.clone(),
        banned_texts: args.ban.clone(),
        budgets: Budgets {
            thinking: args.budget_thinking,
            reflection: args.budget_reflection,
            output: args.budget_output,
            grace: args.grace,
        },
        loop_guard: !args.no_loop_guard,
    }
}

/// Lets the engine write the answer of `sequence`, the only one in it, and gives each event to
/// `sink`; the last is `done`. Asks `interrupted` before each step.
///
/// # Errors
/// If the engine or the sink fails.
pub fn answer(
    engine: &mut Engine,
    sequence: SequenceId,
    tokenizer: &Tokenizer,
    generation: Generation,
    load_time: Duration,
    interrupted: impl Fn() -> bool,
    mut sink: impl FnMut(&Event) -> Result<()>,
) -> Result<Completion> {
    let start = Instant::now();
    let now_ms = || start.elapsed().as_secs_f64() * 1e3;
    let mut completion = Completion::new(sequence, generation, now_ms());
    let reason = loop {
        if interrupted() {
            break FinishReason::Cancelled;
        }
        let progress = block_on(completion.step(engine, tokenizer, now_ms))?;
        progress.events.iter().try_for_each(&mut sink)?;
        if let Some(reason) = progress.ended {
            break reason;
        }
    };
    let events = completion.finish(reason, load_time.as_secs_f64() * 1e3, now_ms());
    events.iter().try_for_each(sink)?;
    Ok(completion)
}
