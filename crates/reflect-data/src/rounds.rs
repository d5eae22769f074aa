//! The loop of every step that asks a model about each record: in batches, written out batch by
//! batch, and continued where an earlier run stopped.

use serde::{Deserialize, Serialize};

use crate::completions::{CompletionError, CompletionRequest, Completions, Sampling};
use crate::import::Record;
use crate::resume::{Output, ResumeError};
use crate::words::fingerprint;

/// How often each problem is tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Answers to each problem.
    pub samples: usize,
    /// Problems asked at once; as many are lost when the step is killed.
    pub batch: usize,
    pub sampling: Sampling,
    /// Together with the id of a problem it fixes the seed of its answers, whatever the order.
    pub seed: u64,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { samples: 8, batch: 16, sampling: Sampling::default(), seed: 0 }
    }
}

/// Why a step stopped; what it had written stays, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum RoundsError {
    #[error(transparent)]
    Completion(#[from] CompletionError),
    #[error(transparent)]
    Output(#[from] ResumeError),
    #[error("the model gave {given} answers to {asked} requests; this is a mistake in its implementation")]
    Answers { given: usize, asked: usize },
}

/// Asks the model about each record that `output` doesn't have, lets `each` make a record of it and
/// the answers, and appends that. Calls `progress` with the number of records done, skipped ones
/// included. Returns how many were skipped because an earlier run wrote them.
///
/// # Errors
/// [`RoundsError`], after what was complete has been written.
pub fn ask_each(
    records: &[Record],
    model: &mut dyn Completions,
    rounds: &Rounds,
    output: &mut Output,
    progress: &mut dyn FnMut(usize),
    each: &mut dyn FnMut(&Record, &[String]) -> Record,
) -> Result<usize, RoundsError> {
    let open = output.open_of(records)?;
    let skipped = records.len() - open.len();
    let mut done = skipped;
    progress(done);
    for batch in open.chunks(rounds.batch.max(1)) {
        let requests: Vec<CompletionRequest> = batch.iter().map(|record| request(record, rounds)).collect();
        let answers = model.complete(&requests)?;
        if answers.len() != batch.len() {
            return Err(RoundsError::Answers { given: answers.len(), asked: batch.len() });
        }
        for (record, answers) in batch.iter().zip(&answers) {
            output.push(&each(record, answers))?;
        }
        output.flush()?;
        done += batch.len();
        progress(done);
    }
    Ok(skipped)
}

fn request(record: &Record, rounds: &Rounds) -> CompletionRequest {
    CompletionRequest {
        messages: record.problem.messages.clone(),
        tools: record.problem.tools.clone(),
        samples: rounds.samples,
        sampling: rounds.sampling.clone(),
        seed: rounds.seed ^ fingerprint(&record.problem.id),
    }
}
