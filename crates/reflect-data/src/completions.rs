//! How this crate asks a model: [`Completions`], implemented by an engine of ours or by a client
//! for somebody else's server.

#[cfg(feature = "http")]
pub mod openai;

use reflect_text::Message;
use serde::{Deserialize, Serialize};

/// Anything that answers conversations.
pub trait Completions {
    /// The answers to each request, in the order of the requests: as many texts as it wants samples.
    /// A text is the whole assistant message with its tags, without the end of the turn.
    ///
    /// Callers give many requests at once so that an engine can batch them.
    ///
    /// # Errors
    /// The first failure; answers that were complete by then are lost, so callers keep batches
    /// small enough to repeat.
    fn complete(&mut self, requests: &[CompletionRequest]) -> Result<Vec<Vec<String>>, CompletionError>;

    /// Prompts so far that did not fit the context of the model and have empty answers. A server refuses
    /// them instead.
    fn too_long(&self) -> usize {
        0
    }
}

/// A conversation to continue, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    pub messages: Vec<Message>,
    /// JSON schemas of the tools the model may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<serde_json::Value>,
    /// Independent answers wanted.
    pub samples: usize,
    pub sampling: Sampling,
    /// Where the sampler starts; sample `i` uses `seed + i`.
    pub seed: u64,
}

/// How tokens are chosen, and where an answer ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    pub top_p: f32,
    pub max_tokens: usize,
    /// Texts that end an answer before them.
    #[serde(default)]
    pub stop: Vec<String>,
}

impl Default for Sampling {
    /// As Reflection-Llama-3.1-70B is commonly run.
    fn default() -> Self {
        Self { temperature: 0.7, top_p: 0.95, max_tokens: 1024, stop: Vec::new() }
    }
}

/// Why a model gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CompletionError {
    /// The address can't be used.
    #[error(
        "`{url}` is not an address to send requests to ({reason}); give one such as http://localhost:8000/v1"
    )]
    Address { url: String, reason: String },
    /// Nobody answered, even after repeating.
    #[error("no answer from {url} after {attempts} attempts ({reason}); check that the server is up")]
    Unreachable { url: String, attempts: usize, reason: String },
    /// The server refused the request.
    #[error(
        "{url} refused the request with status {status} ({reason}); check the model's name and OPENAI_API_KEY"
    )]
    Refused { url: String, status: u16, reason: String },
    /// The answer is not what the protocol says.
    #[error(
        "the answer of {url} can't be used ({reason}); check that it speaks the chat completions protocol"
    )]
    Malformed { url: String, reason: String },
    /// Another implementation failed, in its own words.
    #[error("the model failed: {0}")]
    Model(String),
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A model of tests: a function from request and sample number to text.
    pub(crate) struct Scripted<F> {
        pub(crate) answer: F,
        /// Requests so far.
        pub(crate) asked: usize,
    }

    impl<F: FnMut(&CompletionRequest, usize) -> String> Scripted<F> {
        pub(crate) fn new(answer: F) -> Self {
            Self { answer, asked: 0 }
        }
    }

    impl<F: FnMut(&CompletionRequest, usize) -> String> Completions for Scripted<F> {
        fn complete(&mut self, requests: &[CompletionRequest]) -> Result<Vec<Vec<String>>, CompletionError> {
            self.asked += requests.len();
            let answers = |request: &CompletionRequest| {
                (0..request.samples).map(|sample| (self.answer)(request, sample)).collect()
            };
            Ok(requests.iter().map(answers).collect())
        }
    }
}
