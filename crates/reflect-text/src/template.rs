//! Conversations to text, and to ids with the place of each message: the only renderer.
//!
//! A template is the Jinja source that checkpoints ship, run the way Hugging Face's
//! `apply_chat_template` runs it. [`ChatTemplate::render_ids`] goes one step further: it knows which
//! part of the text is the content of a message. That gives the loss mask of training its exact
//! spans, and keeps a user from writing control tokens into the prompt.

mod environment;

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::{Environment, Value};
use serde::{Deserialize, Serialize};

pub use self::environment::Date;
use crate::error::TextError;
use crate::event::SegmentKind;
use crate::tags::Tag;
use crate::tokenizer::{Guard, SpecialTokens, Tokenizer};

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: Option<String>,
    eos: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`, or what else the template knows.
    pub role: String,
    #[serde(default)]
    pub content: String,
    /// The calls of an assistant message, in the shape the template expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
    /// The call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The tool that a tool message comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of a role with a content and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// The variables of a rendering beside the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the header of an assistant message, for the model to continue.
    pub add_generation_prompt: bool,
    /// The variable `date_string`, for example `26 Jul 2024`.
    pub date_string: Option<String>,
    /// What `strftime_now` tells; without it the function is not defined and templates use the date
    /// that they have built in.
    pub today: Option<Date>,
    /// JSON schemas of the tools that the model may call.
    pub tools: Option<serde_json::Value>,
    /// Documents for retrieval.
    pub documents: Option<serde_json::Value>,
    /// Any other variable, for example `builtin_tools` or `tools_in_user_message`.
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// A conversation as text and as ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub text: String,
    pub ids: Vec<u32>,
    /// The bytes of each id in the text; empty where there are no `spans`.
    pub offsets: Vec<Range<usize>>,
    /// Where the contents of the messages stand, in the order of the text. Messages that are empty
    /// or that the template leaves out have none. `None` when the template changes the contents
    /// (beyond trimming white space): then the text was tokenised as one, and special tokens in
    /// contents were recognised.
    pub spans: Option<Vec<Span>>,
}

/// The content of one message in a rendering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index of the message.
    pub message: usize,
    /// Its role.
    pub role: String,
    /// Its bytes in the text.
    pub text: Range<usize>,
    /// The ids that hold at least one of its bytes. The token after them is usually the end of the
    /// turn.
    pub ids: Range<usize>,
}

/// ChatML, for checkpoints without a template of their own.
const CHATML: &str = "\
{% for message in messages %}\
{% if message.tool_calls %}{{ raise_exception('this template does not write tool calls') }}{% endif %}\
<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The header format of Llama 3, without a date line.
const LLAMA3: &str = "\
{{ bos_token }}\
{% for message in messages %}\
{% if message.tool_calls %}{{ raise_exception('this template does not write tool calls') }}{% endif %}\
<|start_header_id|>{{ 'ipython' if message.role == 'tool' else message.role }}<|end_header_id|>\n\n\
{{ message.content }}<|eot_id|>\
{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

/// What Reflection-Llama-3.1-70B was trained on: as Llama 3, but nothing after the system header.
const REFLECTION_TRAIN: &str = "\
{{ bos_token }}\
{% for message in messages %}\
{% if message.tool_calls %}{{ raise_exception('this template does not write tool calls') }}{% endif %}\
<|start_header_id|>{{ 'ipython' if message.role == 'tool' else message.role }}<|end_header_id|>\
{% if message.role != 'system' %}{{ '\\n\\n' }}{% endif %}\
{{ message.content }}<|eot_id|>\
{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}";

impl ChatTemplate {
    /// Names that [`built_in`](Self::built_in) knows.
    pub const BUILT_IN: [&str; 3] = ["chatml", "llama3", "reflection-train"];

    /// Compiles a template. `bos` and `eos` are the spellings of the checkpoint's tokens.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line of a syntax error.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TextError> {
        let template = Self {
            environment: environment::new(),
            source: environment::without_generation_blocks(source),
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
        };
        template.environment.template_from_str(&template.source).map_err(failed)?;
        Ok(template)
    }

    /// The template of a checkpoint: `own` if it ships one in a file, else its tokenizer's, else the one that
    /// its special tokens are made for, else `None`.
    ///
    /// # Errors
    /// If its own does not compile.
    pub fn of_checkpoint(tokenizer: &Tokenizer, own: Option<&str>) -> Result<Option<Self>, TextError> {
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
        let bos = spelling(tokenizer.bos_id());
        let eos = spelling(tokenizer.eos_ids().first().copied());
        let (bos, eos) = (bos.as_deref(), eos.as_deref());
        if let Some(source) = own.or(tokenizer.chat_template()) {
            return Self::new(source, bos, eos).map(Some);
        }
        let has = |token: &str| tokenizer.special_id(token).is_some();
        let reflects = has(Tag { kind: SegmentKind::Reflection, opens: true }.spelling());
        let name = match (has("<|start_header_id|>"), has("<|im_start|>")) {
            (true, _) if reflects => "reflection-train",
            (true, _) => "llama3",
            (false, true) => "chatml",
            (false, false) => return Ok(None),
        };
        Self::built_in(name, bos, eos).map(Some)
    }

    /// A template for checkpoints that ship none: `chatml`, `llama3`, or `reflection-train`, the
    /// format that Reflection-Llama-3.1-70B was trained on, which has no blank line after the
    /// header of the system message.
    ///
    /// # Errors
    /// [`TextError::Template`] for an unknown name.
    pub fn built_in(name: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TextError> {
        let source = match name {
            "chatml" => CHATML,
            "llama3" => LLAMA3,
            "reflection-train" => REFLECTION_TRAIN,
            _ => {
                let known = Self::BUILT_IN.join(", ");
                return Err(TextError::Template(format!("there is no \"{name}\", only {known}")));
            }
        };
        Self::new(source, bos, eos)
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// [`TextError::Template`] when the template refuses the conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in &options.extra {
            variables.insert(name, Value::from_serialize(value));
        }
        variables.insert("messages", Value::from_serialize(messages));
        variables.insert("add_generation_prompt", options.add_generation_prompt.into());
        variables.insert("tools", Value::from_serialize(&options.tools));
        variables.insert("documents", Value::from_serialize(&options.documents));
        let texts =
            [("bos_token", &self.bos), ("eos_token", &self.eos), ("date_string", &options.date_string)];
        for (name, text) in texts {
            if let Some(text) = text {
                variables.insert(name, text.into());
            }
        }
        if let Some(today) = options.today {
            let format = move |format: &str| today.format(format);
            variables.insert("strftime_now", Value::from_function(format));
        }
        let template = self.environment.template_from_str(&self.source).map_err(failed)?;
        template.render(variables).map_err(failed)
    }

    /// The conversation as ids, with the place of each content. Special tokens are recognised in
    /// what the template writes; in contents of the system and of the assistant only the reflection
    /// tags are, in other contents none. Texts from [`RenderOptions`] and the arguments of tool
    /// calls count as written by the template.
    ///
    /// # Errors
    /// As [`render`](Self::render) and [`Tokenizer::encode`].
    pub fn render_ids(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Rendered, TextError> {
        let text = self.render(messages, options)?;
        let Some(places) = self.locate(&text, messages, options) else {
            let ids = tokenizer.encode(&text, SpecialTokens::Parse)?;
            return Ok(Rendered { text, ids, offsets: Vec::new(), spans: None });
        };
        let guarded: Vec<(Range<usize>, Guard)> = places
            .iter()
            .map(|(message, range)| (range.clone(), guard_of(&messages[*message].role)))
            .collect();
        let encoded = tokenizer.encode_guarded(&text, &guarded)?;
        let spans = places
            .into_iter()
            .map(|(message, range)| {
                let first = encoded.offsets.partition_point(|token| token.end <= range.start);
                let end = encoded.offsets.partition_point(|token| token.start < range.end);
                let role = messages[message].role.clone();
                Span { message, role, text: range, ids: first..end.max(first) }
            })
            .collect();
        Ok(Rendered { text, ids: encoded.ids, offsets: encoded.offsets, spans: Some(spans) })
    }

    /// Finds the contents in a rendering: renders again with a marker in the place of each content,
    /// then checks that putting the contents there gives the text. `None` when it does not.
    fn locate(
        &self,
        text: &str,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Option<Vec<(usize, Range<usize>)>> {
        let mut mark = String::from('\u{10FFFD}');
        while text.contains(&mark) {
            mark.push('\u{10FFFD}');
        }
        let mut marked = messages.to_vec();
        for (index, message) in marked.iter_mut().enumerate() {
            if !message.content.is_empty() {
                message.content = format!("{mark}{index}{mark}");
            }
        }
        let skeleton = self.render(&marked, options).ok()?;
        let parts: Vec<&str> = skeleton.split(&mark).collect();
        let mut places: Vec<(usize, Range<usize>)> = Vec::new();
        let mut at = parts[0].len();
        if !text.starts_with(parts[0]) {
            return None;
        }
        // What follows the first part is message number, text, message number, text, and so on.
        for pair in parts[1..].chunks(2) {
            let [number, after] = pair else { return None };
            let message: usize = number.parse().ok()?;
            let content = &messages.get(message)?.content;
            let variants = [content.as_str(), content.trim(), content.trim_end(), content.trim_start()];
            let here = &text[at..];
            let fits =
                |variant: &&str| here.strip_prefix(*variant).is_some_and(|rest| rest.starts_with(*after));
            let length = variants.into_iter().find(fits)?.len();
            if places.iter().any(|(other, _)| *other == message) {
                return None;
            }
            places.push((message, at..at + length));
            at += length + after.len();
        }
        (at == text.len()).then_some(places)
    }
}

/// Who may write the reflection tags as special tokens.
fn guard_of(role: &str) -> Guard {
    match role {
        "system" | "assistant" => Guard::Tags,
        _ => Guard::Text,
    }
}

fn failed(error: minijinja::Error) -> TextError {
    TextError::Template(error.to_string())
}

#[cfg(test)]
mod tests;
