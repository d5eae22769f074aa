//! A client for servers that speak OpenAI's chat completions, local or remote.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::Agent;

use super::{CompletionError, CompletionRequest, Completions};

/// The environment variable with the key; nothing else is ever read or stored.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A longer body is no chat completion.
const BODY_LIMIT: u64 = 64 << 20;
/// Characters of a server's own words in an error.
const REASON_LENGTH: usize = 200;

/// Which server and model, and how patient to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenAiSettings {
    /// Up to and without `/chat/completions`, as in `http://localhost:8000/v1`.
    pub url: String,
    pub model: String,
    /// Time for one request, from connecting to the last byte.
    pub timeout: Duration,
    /// Attempts after the first, when the server is busy (429), broken (5xx) or silent.
    pub retries: usize,
    /// Pause before the first of them; it doubles each time, unless the server names its own.
    pub backoff: Duration,
    /// Requests under way at once.
    pub parallel: usize,
}

impl OpenAiSettings {
    /// A server and a model with ten minutes for a request, five retries and four requests at once.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            timeout: Duration::from_secs(600),
            retries: 5,
            backoff: Duration::from_secs(1),
            parallel: 4,
        }
    }
}

/// A connection to a server.
pub struct OpenAi {
    settings: OpenAiSettings,
    endpoint: String,
    key: Option<String>,
    agent: Agent,
}

impl OpenAi {
    /// A client with the key in `OPENAI_API_KEY`, or with none for servers that want none. Nothing
    /// is sent yet.
    ///
    /// # Errors
    /// [`CompletionError::Address`] unless the address begins with http:// or https://.
    pub fn new(settings: OpenAiSettings) -> Result<Self, CompletionError> {
        Self::with_key(settings, std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()))
    }

    fn with_key(settings: OpenAiSettings, key: Option<String>) -> Result<Self, CompletionError> {
        let address =
            |reason: &str| CompletionError::Address { url: settings.url.clone(), reason: reason.into() };
        if !settings.url.starts_with("http://") && !settings.url.starts_with("https://") {
            return Err(address("it begins neither with http:// nor with https://"));
        }
        let endpoint = format!("{}/chat/completions", settings.url.trim_end_matches('/'));
        if endpoint.parse::<ureq::http::Uri>().is_err() {
            return Err(address("it is no URL"));
        }
        let config = Agent::config_builder()
            .timeout_global(Some(settings.timeout))
            .http_status_as_error(false)
            .user_agent("reflect")
            .build();
        Ok(Self { settings, endpoint, key, agent: config.new_agent() })
    }

    /// The answers to one request. A server that gives fewer samples than asked for is asked again.
    fn answers(&self, request: &CompletionRequest) -> Result<Vec<String>, CompletionError> {
        let mut texts: Vec<String> = Vec::with_capacity(request.samples);
        while texts.len() < request.samples {
            let body = self.body(request, texts.len());
            let given = self.send(&body)?;
            if given.is_empty() {
                return Err(self.malformed("it holds no choices"));
            }
            texts.extend(given);
        }
        texts.truncate(request.samples);
        Ok(texts)
    }

    fn body(&self, request: &CompletionRequest, had: usize) -> String {
        let sampling = &request.sampling;
        let mut body = json!({
            "model": self.settings.model,
            "messages": request.messages,
            "n": request.samples - had,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed.wrapping_add(had as u64) & (i64::MAX as u64),
        });
        if !sampling.stop.is_empty() {
            body["stop"] = json!(sampling.stop);
        }
        if let Some(tools) = &request.tools {
            body["tools"] = tools.clone();
        }
        body.to_string()
    }

    /// Sends a body until it is answered or the attempts are used up.
    fn send(&self, body: &str) -> Result<Vec<String>, CompletionError> {
        let attempts = self.settings.retries + 1;
        let mut pause = self.settings.backoff;
        let mut attempt = 1;
        loop {
            let failure = match self.attempt(body) {
                Ok(texts) => return Ok(texts),
                Err(failure) => failure,
            };
            if !failure.passing || attempt == attempts {
                return Err(self.error(failure, attempt));
            }
            std::thread::sleep(failure.wait.unwrap_or(pause).min(LONGEST_PAUSE));
            pause = pause.saturating_mul(2);
            attempt += 1;
        }
    }

    fn attempt(&self, body: &str) -> Result<Vec<String>, Failure> {
        let mut request = self.agent.post(&self.endpoint).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let silent = |reason: String| Failure { status: None, reason, passing: true, wait: None };
        let mut response = request.send(body).map_err(|error| silent(error.to_string()))?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut bytes = Vec::new();
        let reader = response.body_mut().as_reader();
        reader.take(BODY_LIMIT).read_to_end(&mut bytes).map_err(|error| silent(error.to_string()))?;
        if !(200..300).contains(&status) {
            let passing = status == 429 || status >= 500;
            return Err(Failure { status: Some(status), reason: own_words(&bytes), passing, wait });
        }
        let malformed = |reason: String| Failure { status: Some(status), reason, passing: false, wait: None };
        let reply: Reply = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        Ok(reply.choices.into_iter().map(|choice| choice.message.text()).collect())
    }

    fn error(&self, failure: Failure, attempts: usize) -> CompletionError {
        let url = self.endpoint.clone();
        let reason = failure.reason;
        match failure.status {
            None => CompletionError::Unreachable { url, attempts, reason },
            Some(200..300) => CompletionError::Malformed { url, reason },
            Some(status) => CompletionError::Refused { url, status, reason },
        }
    }

    fn malformed(&self, reason: &str) -> CompletionError {
        CompletionError::Malformed { url: self.endpoint.clone(), reason: reason.to_owned() }
    }
}

impl Completions for OpenAi {
    fn complete(&mut self, requests: &[CompletionRequest]) -> Result<Vec<Vec<String>>, CompletionError> {
        let client = &*self;
        let next = AtomicUsize::new(0);
        let outcome = Mutex::new((vec![Vec::new(); requests.len()], None));
        std::thread::scope(|scope| {
            for _ in 0..client.settings.parallel.clamp(1, requests.len().max(1)) {
                scope.spawn(|| {
                    while let Some((place, request)) = take(requests, &next) {
                        let answers = client.answers(request);
                        let mut outcome = outcome.lock().unwrap_or_else(|poison| poison.into_inner());
                        match answers {
                            Ok(texts) => {
                                if let Some(slot) = outcome.0.get_mut(place) {
                                    *slot = texts;
                                }
                            }
                            Err(error) => {
                                outcome.1.get_or_insert(error);
                                // The rest of the batch would be thrown away.
                                next.store(requests.len(), Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        match outcome.into_inner().unwrap_or_else(|poison| poison.into_inner()) {
            (_, Some(error)) => Err(error),
            (texts, None) => Ok(texts),
        }
    }
}

fn take<'a>(requests: &'a [CompletionRequest], next: &AtomicUsize) -> Option<(usize, &'a CompletionRequest)> {
    let place = next.fetch_add(1, Ordering::Relaxed);
    Some((place, requests.get(place)?))
}

/// An attempt that gave no answer.
struct Failure {
    status: Option<u16>,
    reason: String,
    /// Whether it may go better next time.
    passing: bool,
    /// The pause that the server asked for.
    wait: Option<Duration>,
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Answer,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
}

impl Answer {
    /// The content; of an answer that is nothing but calls, the calls as Llama 3.1 writes them.
    fn text(self) -> String {
        if let Some(content) = self.content.filter(|content| !content.is_empty()) {
            return content;
        }
        let calls = self.tool_calls.unwrap_or_default().into_iter().map(|call| {
            let function = call.get("function").cloned().unwrap_or_default();
            let arguments = function.get("arguments").cloned().unwrap_or_default();
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
            let name = function.get("name").cloned().unwrap_or_default();
            json!({"name": name, "parameters": parsed.unwrap_or(arguments)}).to_string()
        });
        calls.collect::<Vec<_>>().join("\n")
    }
}

/// What a server says about its refusal, short enough for a sentence.
fn own_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let parsed: Option<Value> = serde_json::from_str(&text).ok();
    let message = parsed.as_ref().and_then(|value| {
        let error = value.get("error")?;
        error.get("message").unwrap_or(error).as_str().map(str::to_owned)
    });
    let message = message.unwrap_or_else(|| text.into_owned());
    let words: Vec<&str> = message.split_whitespace().collect();
    let shown: String = words.join(" ").chars().filter(|c| !c.is_control()).take(REASON_LENGTH).collect();
    if shown.is_empty() { "it gave no reason".to_owned() } else { shown }
}

#[cfg(test)]
mod tests;
