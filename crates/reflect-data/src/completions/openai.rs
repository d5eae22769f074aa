//! A client for servers that speak OpenAI's chat completions, local or remote.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use ureq::Agent;

use super::mask::{Mask, plain_address};
use super::reply::{own_words, shortened, texts};
use super::{CompletionError, CompletionRequest, Completions, Troubles};

/// The environment variable with the key; nothing else is ever read or stored.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A longer body is no chat completion.
const BODY_LIMIT: u64 = 64 << 20;

/// Which server and model, and how patient to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenAiSettings {
    /// Up to and without `/chat/completions`, as in `http://localhost:8000/v1`.
    pub url: String,
    pub model: String,
    /// Time for one request, from connecting to the last byte.
    pub timeout: Duration,
    /// Attempts after the first, when the server is busy (429), broken (5xx) or silent, or its reply is no
    /// completion or has an empty one.
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
    mask: Mask,
    agent: Agent,
    troubles: Mutex<Troubles>,
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
        let mask = Mask::new(key.as_deref());
        let address = |reason: &str| {
            let url = mask.apply(&plain_address(&settings.url));
            CompletionError::Address { url, reason: reason.into() }
        };
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
        let agent = config.new_agent();
        Ok(Self { settings, endpoint, key, mask, agent, troubles: Mutex::default() })
    }

    /// The answers to one request. A server that gives fewer samples than asked for, or empty ones, is asked
    /// again for the missing ones. When the attempts are used up, what was had by then is given; only a
    /// request without any answer has failed.
    fn answers(&self, request: &CompletionRequest) -> Result<Vec<String>, CompletionError> {
        let attempts = self.settings.retries + 1;
        let mut pause = self.settings.backoff;
        let mut attempt = 1;
        let mut had: Vec<String> = Vec::with_capacity(request.samples);
        // Seeds that brought nothing: the same ones would again.
        let mut spent = 0;
        while had.len() < request.samples {
            let body = self.body(request, had.len(), spent);
            let failure = match self.attempt(&body) {
                Ok(texts) => {
                    let before = had.len();
                    let given = texts.len();
                    had.extend(texts.into_iter().filter(|text| !text.trim().is_empty()));
                    let empty = given - (had.len() - before);
                    if empty == 0 {
                        continue;
                    }
                    spent += empty;
                    self.note(|troubles| troubles.empty += empty);
                    Failure { kind: Kind::Empty, reason: String::new(), wait: None }
                }
                Err(failure) => failure,
            };
            if had.len() >= request.samples {
                break;
            }
            if !failure.passes() || attempt == attempts {
                if had.is_empty() {
                    return Err(self.error(failure, attempt));
                }
                break;
            }
            self.note(|troubles| troubles.retries += 1);
            std::thread::sleep(failure.wait.unwrap_or(pause).min(LONGEST_PAUSE));
            pause = pause.saturating_mul(2);
            attempt += 1;
        }
        had.truncate(request.samples);
        Ok(had)
    }

    fn note(&self, change: impl FnOnce(&mut Troubles)) {
        change(&mut self.troubles.lock().unwrap_or_else(|poison| poison.into_inner()));
    }

    fn body(&self, request: &CompletionRequest, had: usize, spent: usize) -> String {
        let sampling = &request.sampling;
        let mut body = json!({
            "model": self.settings.model,
            "messages": request.messages,
            "n": request.samples - had,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": request.seed.wrapping_add((had + spent) as u64) & (i64::MAX as u64),
        });
        if !sampling.stop.is_empty() {
            body["stop"] = json!(sampling.stop);
        }
        if let Some(tools) = &request.tools {
            body["tools"] = tools.clone();
        }
        body.to_string()
    }

    fn attempt(&self, body: &str) -> Result<Vec<String>, Failure> {
        let mut request = self.agent.post(&self.endpoint).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let silent = |error: &dyn std::fmt::Display| {
            self.note(|troubles| troubles.failed += 1);
            Failure { kind: Kind::Silent, reason: error.to_string(), wait: None }
        };
        let mut response = request.send(body).map_err(|error| silent(&error))?;
        let status = response.status().as_u16();
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let mut bytes = Vec::new();
        let reader = response.body_mut().as_reader();
        reader.take(BODY_LIMIT).read_to_end(&mut bytes).map_err(|error| silent(&error))?;
        if !(200..300).contains(&status) {
            self.note(|troubles| troubles.failed += 1);
            return Err(Failure { kind: Kind::Status(status), reason: own_words(&bytes), wait });
        }
        texts(&bytes).map_err(|reason| {
            self.note(|troubles| troubles.malformed += 1);
            Failure { kind: Kind::Malformed, reason, wait }
        })
    }

    fn error(&self, failure: Failure, attempts: usize) -> CompletionError {
        let url = self.mask.apply(&plain_address(&self.endpoint));
        // Again when it is short: what was left out may have parted the key.
        let reason = self.mask.apply(&shortened(&self.mask.apply(&failure.reason)));
        match failure.kind {
            Kind::Silent => CompletionError::Unreachable { url, attempts, reason },
            Kind::Malformed => CompletionError::Malformed { url, attempts, reason },
            Kind::Empty => CompletionError::Empty { url, attempts },
            Kind::Status(status) => CompletionError::Refused { url, status, reason },
        }
    }
}

impl Completions for OpenAi {
    fn complete(&mut self, requests: &[CompletionRequest]) -> Vec<Result<Vec<String>, CompletionError>> {
        let client = &*self;
        let next = AtomicUsize::new(0);
        let places = Mutex::new(requests.iter().map(|_| None).collect::<Vec<_>>());
        std::thread::scope(|scope| {
            for _ in 0..client.settings.parallel.clamp(1, requests.len().max(1)) {
                scope.spawn(|| {
                    while let Some((place, request)) = take(requests, &next) {
                        let answers = client.answers(request);
                        if answers.as_ref().is_err_and(CompletionError::concerns_all) {
                            // The others would only fail once more.
                            next.store(requests.len(), Ordering::Relaxed);
                        }
                        let mut places = places.lock().unwrap_or_else(|poison| poison.into_inner());
                        if let Some(slot) = places.get_mut(place) {
                            *slot = Some(answers);
                        }
                    }
                });
            }
        });
        let places = places.into_inner().unwrap_or_else(|poison| poison.into_inner());
        let unasked = || CompletionError::Model("it was not asked after another request failed".into());
        places.into_iter().map(|answers| answers.unwrap_or_else(|| Err(unasked()))).collect()
    }

    fn troubles(&self) -> Troubles {
        *self.troubles.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn take<'a>(requests: &'a [CompletionRequest], next: &AtomicUsize) -> Option<(usize, &'a CompletionRequest)> {
    let place = next.fetch_add(1, Ordering::Relaxed);
    Some((place, requests.get(place)?))
}

/// An attempt that gave no answer.
struct Failure {
    kind: Kind,
    reason: String,
    /// The pause that the server asked for.
    wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Status(u16),
    Malformed,
    Empty,
}

impl Failure {
    /// Whether it may go better next time.
    fn passes(&self) -> bool {
        match self.kind {
            Kind::Silent | Kind::Malformed | Kind::Empty => true,
            Kind::Status(status) => matches!(status, 408 | 409 | 425 | 429 | 500..),
        }
    }
}

#[cfg(test)]
mod tests;
