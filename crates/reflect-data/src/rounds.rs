//! The loop of every step that asks a model about each record: in batches, written out batch by
//! batch, and continued where an earlier run stopped.

use serde::{Deserialize, Serialize};

use crate::completions::{CompletionError, CompletionRequest, Completions, Sampling, Troubles};
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

/// What became of the records of a step that asks a model: they are `skipped`, `asked` and `unanswered`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// Written by an earlier run.
    pub skipped: usize,
    /// Answered by this run, and written.
    pub asked: usize,
    /// Not answered, and not written: the next run asks them again.
    pub unanswered: usize,
    pub answers: usize,
    /// Answers that were wanted of answered records and could not be had.
    pub missing_answers: usize,
    pub replies: Troubles,
    /// Why the first record was not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
}

/// Asks the model about each record that `output` doesn't have, lets `each` make a record of it and
/// the answers, and appends that. Calls `progress` with the number of records done, skipped ones
/// included. An answer without a text is none.
///
/// # Errors
/// [`RoundsError`], after what was complete has been written. A record that gets no answer is no error
/// as long as others of its batch get some.
pub fn ask_each(
    records: &[Record],
    model: &mut dyn Completions,
    rounds: &Rounds,
    output: &mut Output,
    progress: &mut dyn FnMut(usize),
    each: &mut dyn FnMut(&Record, &[String]) -> Record,
) -> Result<Asked, RoundsError> {
    let open = output.open_of(records)?;
    let mut told = Asked { skipped: records.len() - open.len(), ..Asked::default() };
    let mut done = told.skipped;
    progress(done);
    let mut empty = 0;
    for batch in open.chunks(rounds.batch.max(1)) {
        let requests: Vec<CompletionRequest> = batch.iter().map(|record| request(record, rounds)).collect();
        let answers = model.complete(&requests);
        if answers.len() != batch.len() {
            return Err(RoundsError::Answers { given: answers.len(), asked: batch.len() });
        }
        let mut failure = None;
        let before = told.asked;
        for (record, answers) in batch.iter().zip(answers) {
            let mut answers = match answers {
                Ok(answers) => answers,
                Err(error) => {
                    failure = failure.or(Some(error));
                    Vec::new()
                }
            };
            let given = answers.len();
            answers.retain(|answer| !answer.trim().is_empty());
            empty += given - answers.len();
            if answers.is_empty() {
                told.unanswered += 1;
                continue;
            }
            told.asked += 1;
            told.answers += answers.len();
            told.missing_answers += rounds.samples.saturating_sub(answers.len());
            output.push(&each(record, &answers))?;
        }
        output.flush()?;
        let fatal = told.asked == before || failure.as_ref().is_some_and(CompletionError::concerns_all);
        if let Some(error) = failure {
            if fatal {
                return Err(error.into());
            }
            told.first_failure.get_or_insert_with(|| error.to_string());
        }
        done += batch.len();
        progress(done);
    }
    told.replies = model.troubles();
    told.replies.empty += empty;
    Ok(told)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::import;
    use crate::resume::testing::scratch;

    /// A server that fails for some problems.
    struct Flaky(fn(&str) -> Result<Vec<String>, CompletionError>);

    impl Completions for Flaky {
        fn complete(&mut self, requests: &[CompletionRequest]) -> Vec<Result<Vec<String>, CompletionError>> {
            requests.iter().map(|request| self.0(&request.messages[0].content)).collect()
        }
    }

    fn malformed() -> CompletionError {
        CompletionError::Malformed { url: "u".into(), attempts: 1, reason: "r".into() }
    }

    fn records() -> Vec<Record> {
        let rows: Vec<String> =
            (0..4).map(|n| format!(r#"{{"prompt": "{n}", "response": "{n}"}}"#)).collect();
        import(rows.join("\n").as_bytes(), "x.jsonl", None).unwrap().0
    }

    fn run(name: &str, model: &mut Flaky, batch: usize) -> (Result<Asked, RoundsError>, usize) {
        let path = scratch(name);
        let rounds = Rounds { samples: 2, batch, ..Rounds::default() };
        let mut output = Output::open(&path, &()).unwrap();
        let told =
            ask_each(&records(), model, &rounds, &mut output, &mut |_| {}, &mut |record, _| record.clone());
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        crate::resume::testing::remove(&path);
        (told, lines)
    }

    #[test]
    fn what_is_not_answered_is_counted_and_costs_nothing_else() {
        let mut model = Flaky(|prompt| match prompt {
            "1" => Err(malformed()),
            "2" => Ok(vec![String::new(), " ".to_owned()]),
            "3" => Ok(vec!["a".to_owned()]),
            _ => Ok(vec!["a".to_owned(), String::new()]),
        });
        let (told, lines) = run("flaky", &mut model, 4);
        let told = told.unwrap();
        assert_eq!((told.asked, told.unanswered, lines), (2, 2, 2));
        assert_eq!((told.answers, told.missing_answers, told.replies.empty), (2, 2, 3));
        assert!(told.first_failure.is_some());
    }

    #[test]
    fn a_batch_without_any_answer_ends_the_step() {
        let mut model =
            Flaky(|prompt| if prompt < "2" { Ok(vec!["a".to_owned()]) } else { Err(malformed()) });
        let (told, lines) = run("dead", &mut model, 2);
        assert!(matches!(told, Err(RoundsError::Completion(CompletionError::Malformed { .. }))));
        assert_eq!(lines, 2);
    }

    #[test]
    fn a_wrong_key_ends_the_step_after_its_batch() {
        let mut model = Flaky(|prompt| match prompt {
            "1" => Err(CompletionError::Refused { url: "u".into(), status: 401, reason: "r".into() }),
            _ => Ok(vec!["a".to_owned()]),
        });
        let (told, lines) = run("key", &mut model, 2);
        assert!(told.is_err());
        assert_eq!(lines, 1);
    }
}
