//! Messages, and how they reach a template.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::value::Value;
use crate::tokenizer::Guard;

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Fields", into = "Fields")]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`, or what else the template knows.
    pub role: String,
    /// The text; of parts, their texts with a line end between them.
    pub content: String,
    /// The shape in which the content was given.
    pub given: Content,
    /// The calls of an assistant message, in the shape the template expects.
    pub tool_calls: Option<Json>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
    /// The tool that a tool message comes from.
    pub name: Option<String>,
    /// Whatever else the message holds, such as `reasoning_content`.
    pub extra: serde_json::Map<String, Json>,
}

/// The shape in which the content of a message was given.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Content {
    /// A text.
    #[default]
    Text,
    /// The message has no content.
    Absent,
    /// `null`, a list of parts, or the object that a tool gave.
    Json(Json),
}

/// A message as JSON has it.
#[derive(Serialize, Deserialize)]
struct Fields {
    role: String,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    content: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    extra: serde_json::Map<String, Json>,
}

/// Tells a content of `null` from none.
fn present<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(input).map(Some)
}

impl From<Fields> for Message {
    fn from(fields: Fields) -> Self {
        let Fields { role, content, tool_calls, tool_call_id, name, extra } = fields;
        let (content, given) = match content {
            None => (String::new(), Content::Absent),
            Some(Json::String(text)) => (text, Content::Text),
            Some(other) => (text_of_parts(&other), Content::Json(other)),
        };
        Self { role, content, given, tool_calls, tool_call_id, name, extra }
    }
}

impl From<Message> for Fields {
    fn from(message: Message) -> Self {
        let Message { role, content, given, tool_calls, tool_call_id, name, extra } = message;
        let content = match given {
            Content::Text => Some(Json::String(content)),
            Content::Absent => None,
            Content::Json(json) => Some(json),
        };
        Self { role, content, tool_calls, tool_call_id, name, extra }
    }
}

/// The texts of parts, a line end between them. An object is shown as JSON.
fn text_of_parts(content: &Json) -> String {
    match content {
        Json::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(part_text).collect();
            texts.join("\n")
        }
        Json::Null => String::new(),
        other => other.to_string(),
    }
}

fn part_text(part: &Json) -> Option<&str> {
    part.as_str().or_else(|| part.get("text")?.as_str())
}

impl Message {
    /// A message of a role with a content and nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// Why the content is more than text, for a template that takes nothing else.
    pub(super) fn not_text(&self, at: usize) -> Option<String> {
        let Content::Json(Json::Array(parts)) = &self.given else {
            return None;
        };
        let other = parts.iter().find(|part| part_text(part).is_none())?;
        let kind = other.get("type").and_then(Json::as_str).unwrap_or("an unknown type");
        let number = at + 1;
        Some(format!(
            "it takes texts only, and message {number} has a part of type {kind}; leave that part out"
        ))
    }
}

/// The names under which the thinking of an earlier answer is passed. Templates read the first; those of
/// gpt-oss the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// How contents are shown to a template.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    /// Every content is a text.
    pub only_text: bool,
    /// A text is a list of one part.
    pub text_as_parts: bool,
}

/// Where an input text belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// Index of the message.
    pub message: Option<usize>,
    /// It is the content of the message or a part of it.
    pub is_content: bool,
    pub guard: Guard,
}

/// The inputs of a rendering, each text with its number.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub sources: Vec<Source>,
}

impl Inputs {
    /// JSON whose texts must not steer the model.
    pub fn foreign(&mut self, json: &Json) -> Value {
        self.json(json, Source { message: None, is_content: false, guard: Guard::Text })
    }

    /// A message as a template sees it.
    pub fn message(&mut self, at: usize, message: &Message, shape: Shape) -> Value {
        let guard = guard_of(&message.role);
        let own = Source { message: Some(at), is_content: false, guard };
        let call = Source { guard: Guard::Text, ..own };
        let mut fields = Vec::new();
        let mut push = |name: &str, value: Value| fields.push((Value::text(name), value));
        // Templates put roles between the halves of a control token.
        let role = match message.role.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            true => Value::text(&message.role),
            false => self.json(&message.role.as_str().into(), call),
        };
        push("role", role);
        if let Some(content) = self.content(message, Source { is_content: true, ..own }, shape) {
            push("content", content);
        }
        if let Some(calls) = &message.tool_calls {
            push("tool_calls", self.json(calls, call));
        }
        for (name, text) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
            if let Some(text) = text {
                push(name, self.json(&text.as_str().into(), call));
            }
        }
        let own_or_call = |value: &Json| if value.is_string() { own } else { call };
        for (name, value) in message.extra.iter().filter(|(_, value)| !value.is_null()) {
            push(name, self.json(value, own_or_call(value)));
        }
        if let Some(reasoning) =
            REASONING.iter().find_map(|name| message.extra.get(*name).filter(|v| !v.is_null()))
        {
            let value = self.json(reasoning, own_or_call(reasoning));
            fields.retain(|(name, _)| name.as_str() != Some(REASONING[0]));
            for name in &REASONING[..2] {
                if !fields.iter().any(|(other, _)| other.as_str() == Some(name)) {
                    fields.push((Value::text(name), value.clone()));
                }
            }
        }
        Value::Map(Rc::new(fields))
    }

    /// The content, or `None` where there is none: Hugging Face leaves out fields that are null.
    fn content(&mut self, message: &Message, source: Source, shape: Shape) -> Option<Value> {
        match &message.given {
            Content::Json(Json::Null) if !shape.only_text => return None,
            Content::Json(Json::Array(parts)) if !shape.only_text => {
                return Some(Value::list(parts.iter().map(|part| self.part(part, source)).collect()));
            }
            Content::Json(json) if !shape.only_text => {
                return Some(self.json(json, Source { is_content: false, ..source }));
            }
            Content::Absent if !shape.only_text => return None,
            _ => {}
        }
        let text = self.json(&message.content.as_str().into(), source);
        if !shape.text_as_parts {
            return Some(text);
        }
        let part = [("type", Value::text("text")), ("text", text)];
        let part = part.map(|(name, value)| (Value::text(name), value));
        Some(Value::list(vec![Value::Map(Rc::new(part.to_vec()))]))
    }

    /// A part of a content, in which the text alone counts as content.
    fn part(&mut self, part: &Json, source: Source) -> Value {
        let Json::Object(fields) = part else {
            return self.json(part, source);
        };
        let beside = Source { is_content: false, ..source };
        let field = |(name, value): (&String, &Json)| {
            let is_text = name == "text" && value.is_string();
            (Value::text(name), self.json(value, if is_text { source } else { beside }))
        };
        Value::Map(Rc::new(fields.iter().map(field).collect()))
    }

    fn json(&mut self, json: &Json, source: Source) -> Value {
        Value::of_json(json, &mut || {
            self.sources.push(source);
            u32::try_from(self.sources.len() - 1).ok()
        })
    }
}

/// Who may write the reflection tags as special tokens.
fn guard_of(role: &str) -> Guard {
    match role {
        "system" | "assistant" => Guard::Tags,
        _ => Guard::Text,
    }
}
