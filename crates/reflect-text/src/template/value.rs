//! The values of a template, with the habits of Python: what is true, equal, in order, and how a
//! value looks as text.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;

use super::text::{Text, TextBuilder};

/// What went wrong, as a clause without a full stop.
pub(super) type Outcome<T> = Result<T, String>;

/// A value of a template.
#[derive(Clone, Debug, Default)]
pub(super) enum Value {
    /// Nothing of that name, and the name if it is known.
    #[default]
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
    List(Rc<Vec<Value>>),
    Map(Rc<Vec<(Value, Value)>>),
    /// What `namespace()` makes: the only value that `set` can change.
    Namespace(Rc<RefCell<Vec<(String, Value)>>>),
    /// `loop` in the body of a `for`.
    Loop(Rc<Loop>),
    /// A macro, by its place in the interpreter's list.
    Macro(usize),
    /// A function of the environment, by its name.
    Function(&'static str),
}

/// The place of a `for` loop.
#[derive(Debug)]
pub(super) struct Loop {
    pub index: usize,
    pub length: usize,
    pub depth: usize,
    pub previous: Value,
    pub next: Value,
}

impl Value {
    pub fn text(text: &str) -> Self {
        Self::Text(Text::plain(text))
    }

    pub fn list(items: Vec<Value>) -> Self {
        Self::List(Rc::new(items))
    }

    /// A value of JSON. `source` gives each string the number of its input; object keys count too.
    pub fn of_json(json: &serde_json::Value, source: &mut impl FnMut() -> Option<u32>) -> Self {
        match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(held) => Self::Bool(*held),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(whole), _) => Self::Int(whole.into()),
                (None, Some(whole)) => Self::Int(whole.into()),
                (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text_of(text, source)),
            serde_json::Value::Array(items) => {
                Self::list(items.iter().map(|item| Self::of_json(item, source)).collect())
            }
            serde_json::Value::Object(fields) => {
                let entry = |(key, value): (&String, &serde_json::Value)| {
                    let key = Self::Text(text_of(key, source));
                    (key, Self::of_json(value, source))
                };
                Self::Map(Rc::new(fields.iter().map(entry).collect()))
            }
        }
    }

    /// Python's name of the type, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Map(_) => "dict",
            Self::Namespace(_) => "namespace",
            Self::Loop(_) => "loop",
            Self::Macro(_) | Self::Function(_) => "function",
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(held) => *held,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(fields) => !fields.is_empty(),
            Self::Namespace(_) | Self::Loop(_) | Self::Macro(_) | Self::Function(_) => true,
        }
    }

    /// The number behind a number or a truth value.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            other => other.as_int().map(|number| number as f64),
        }
    }

    /// The whole number behind a whole number or a truth value.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(held) => Some((*held).into()),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// What a loop over the value goes through.
    pub fn items(&self) -> Outcome<Vec<Value>> {
        match self {
            Self::List(items) => Ok(items.to_vec()),
            Self::Map(fields) => Ok(fields.iter().map(|(key, _)| key.clone()).collect()),
            Self::Text(text) => Ok(text.characters().into_iter().map(Self::Text).collect()),
            Self::Undefined => Ok(Vec::new()),
            other => Err(format!("'{}' object is not iterable", other.kind())),
        }
    }

    /// The field of a map.
    pub fn field(&self, key: &Value) -> Option<Value> {
        match (self, key) {
            (Self::Map(fields), key) => {
                fields.iter().find(|(other, _)| other.equals(key)).map(|(_, value)| value.clone())
            }
            (Self::Namespace(fields), Self::Text(key)) => {
                let fields = fields.borrow();
                fields.iter().find(|(name, _)| name == key.as_str()).map(|(_, value)| value.clone())
            }
            (Self::Loop(place), Self::Text(key)) => place.field(key.as_str()),
            _ => None,
        }
    }

    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined, Self::Undefined) | (Self::None, Self::None) => true,
            (Self::Text(a), Self::Text(b)) => a.as_str() == b.as_str(),
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Map(a), Self::Map(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, value)| other.field(key).is_some_and(|held| held.equals(value)))
            }
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => self.as_float().zip(other.as_float()).is_some_and(|(a, b)| a == b),
            },
        }
    }

    /// Which of two values comes first.
    pub fn order(&self, other: &Self) -> Outcome<Ordering> {
        let refused = || format!("'{}' and '{}' have no order", self.kind(), other.kind());
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Ok(a.as_str().cmp(b.as_str())),
            (Self::List(a), Self::List(b)) => {
                for (a, b) in a.iter().zip(b.iter()) {
                    if !a.equals(b) {
                        return a.order(b);
                    }
                }
                Ok(a.len().cmp(&b.len()))
            }
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => Ok(a.cmp(&b)),
                _ => {
                    let (a, b) = self.as_float().zip(other.as_float()).ok_or_else(refused)?;
                    a.partial_cmp(&b).ok_or_else(refused)
                }
            },
        }
    }

    /// `item in self`.
    pub fn contains(&self, item: &Self) -> Outcome<bool> {
        match (self, item) {
            (Self::Text(text), Self::Text(part)) => Ok(text.as_str().contains(part.as_str())),
            (Self::Text(_), other) => {
                Err(format!("'in <string>' requires string as left operand, not {}", other.kind()))
            }
            (Self::List(items), _) => Ok(items.iter().any(|held| held.equals(item))),
            (Self::Map(_) | Self::Namespace(_), _) => Ok(self.field(item).is_some()),
            (Self::Undefined, _) => Ok(false),
            (other, _) => Err(format!("argument of type '{}' is not iterable", other.kind())),
        }
    }

    /// Number of characters, items or fields.
    pub fn length(&self) -> Outcome<usize> {
        match self {
            Self::Text(text) => Ok(text.as_str().chars().count()),
            Self::List(items) => Ok(items.len()),
            Self::Map(fields) => Ok(fields.len()),
            Self::Undefined => Ok(0),
            other => Err(format!("object of type '{}' has no len()", other.kind())),
        }
    }

    /// Python's `str()`.
    pub fn to_text(&self) -> Text {
        match self {
            Self::Text(text) => text.clone(),
            Self::Undefined => Text::default(),
            other => {
                let mut builder = TextBuilder::default();
                other.repr_into(&mut builder);
                builder.finish()
            }
        }
    }

    /// Python's `repr()`.
    pub fn repr_into(&self, to: &mut TextBuilder) {
        match self {
            Self::Undefined => to.push_str("Undefined"),
            Self::None => to.push_str("None"),
            Self::Bool(true) => to.push_str("True"),
            Self::Bool(false) => to.push_str("False"),
            Self::Int(number) => to.push_str(&number.to_string()),
            Self::Float(number) => to.push_str(&python_float(*number)),
            Self::Text(text) => quote_into(text, to),
            Self::List(items) => {
                to.push_str("[");
                for (index, item) in items.iter().enumerate() {
                    to.push_str(if index > 0 { ", " } else { "" });
                    item.repr_into(to);
                }
                to.push_str("]");
            }
            Self::Map(fields) => {
                to.push_str("{");
                for (index, (key, value)) in fields.iter().enumerate() {
                    to.push_str(if index > 0 { ", " } else { "" });
                    key.repr_into(to);
                    to.push_str(": ");
                    value.repr_into(to);
                }
                to.push_str("}");
            }
            Self::Namespace(_) => to.push_str("<Namespace>"),
            Self::Loop(_) => to.push_str("<LoopContext>"),
            Self::Macro(_) | Self::Function(_) => to.push_str("<function>"),
        }
    }
}

impl Loop {
    fn field(&self, name: &str) -> Option<Value> {
        let number = |number: usize| Some(Value::Int(number as i128));
        match name {
            "index" => number(self.index + 1),
            "index0" => number(self.index),
            "revindex" => number(self.length - self.index),
            "revindex0" => number(self.length - self.index - 1),
            "first" => Some(Value::Bool(self.index == 0)),
            "last" => Some(Value::Bool(self.index + 1 == self.length)),
            "length" => number(self.length),
            "depth" => number(self.depth),
            "depth0" => number(self.depth - 1),
            "previtem" => Some(self.previous.clone()),
            "nextitem" => Some(self.next.clone()),
            _ => None,
        }
    }
}

fn text_of(text: &str, source: &mut impl FnMut() -> Option<u32>) -> Text {
    match source() {
        Some(source) => Text::of_source(text, source),
        None => Text::plain(text),
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent from
/// 1e16 on and below 1e-4.
pub(super) fn python_float(number: f64) -> String {
    if !number.is_finite() {
        let text = if number.is_nan() { "nan" } else { "inf" };
        return if number.is_sign_negative() && !number.is_nan() { format!("-{text}") } else { text.into() };
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(rest) => ('-', rest),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// A string as Python's `repr` quotes it: in single quotes, unless it holds those and no double
/// ones.
fn quote_into(text: &Text, to: &mut TextBuilder) {
    let held = text.as_str();
    let quote = if held.contains('\'') && !held.contains('"') { '"' } else { '\'' };
    to.push_str(quote.encode_utf8(&mut [0; 4]));
    text.map_into(to, &mut |_, character, to: &mut String| match character {
        '\\' => to.push_str("\\\\"),
        '\n' => to.push_str("\\n"),
        '\r' => to.push_str("\\r"),
        '\t' => to.push_str("\\t"),
        _ if character == quote => to.extend(['\\', character]),
        _ if is_printable(character) => to.push(character),
        _ => to.push_str(&match u32::from(character) {
            code @ 0..=0xff => format!("\\x{code:02x}"),
            code @ 0x100..=0xffff => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        }),
    });
    to.push_str(quote.encode_utf8(&mut [0; 4]));
}

/// What Python's `repr` writes as it is: all but controls, separators other than the space, and
/// private or unassigned characters (of which the private ones are known here).
pub(super) fn is_printable(character: char) -> bool {
    let hidden = matches!(character,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}');
    character == ' ' || !(character.is_control() || is_space(character) || hidden)
}

/// White space by Python's `str.isspace`.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// How `json.dumps` was asked to write.
#[derive(Debug)]
pub(super) struct JsonStyle {
    pub indent: Option<String>,
    pub comma: String,
    pub colon: String,
    pub ascii: bool,
    pub sorted: bool,
}

impl JsonStyle {
    /// A value as JSON. Characters keep their origin, also where they are escaped.
    pub fn write(&self, value: &Value, depth: usize, to: &mut TextBuilder) -> Outcome<()> {
        match value {
            Value::None => to.push_str("null"),
            Value::Bool(held) => to.push_str(if *held { "true" } else { "false" }),
            Value::Int(number) => to.push_str(&number.to_string()),
            Value::Float(number) => to.push_str(&match python_float(*number).as_str() {
                "nan" => "NaN".to_owned(),
                "inf" => "Infinity".to_owned(),
                "-inf" => "-Infinity".to_owned(),
                text => text.to_owned(),
            }),
            Value::Text(text) => self.write_text(text, to),
            Value::List(items) if items.is_empty() => to.push_str("[]"),
            Value::List(items) => {
                to.push_str("[");
                for (index, item) in items.iter().enumerate() {
                    self.separate(index, depth + 1, to);
                    self.write(item, depth + 1, to)?;
                }
                self.new_line(depth, to);
                to.push_str("]");
            }
            Value::Map(fields) if fields.is_empty() => to.push_str("{}"),
            Value::Map(fields) => {
                let mut fields: Vec<&(Value, Value)> = fields.iter().collect();
                if self.sorted {
                    fields.sort_by(|(a, _), (b, _)| a.order(b).unwrap_or(Ordering::Equal));
                }
                to.push_str("{");
                for (index, (key, held)) in fields.into_iter().enumerate() {
                    self.separate(index, depth + 1, to);
                    match key {
                        Value::Text(key) => self.write_text(key, to),
                        other => {
                            let mut name = TextBuilder::default();
                            self.write(other, 0, &mut name)?;
                            self.write_text(&name.finish(), to);
                        }
                    }
                    to.push_str(&self.colon);
                    self.write(held, depth + 1, to)?;
                }
                self.new_line(depth, to);
                to.push_str("}");
            }
            other => return Err(format!("Object of type {} is not JSON serializable", other.kind())),
        }
        Ok(())
    }

    fn write_text(&self, text: &Text, to: &mut TextBuilder) {
        to.push_str("\"");
        text.map_into(to, &mut |_, character, to: &mut String| match character {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            '\u{8}' => to.push_str("\\b"),
            '\u{c}' => to.push_str("\\f"),
            control @ '\0'..='\u{1f}' => to.push_str(&format!("\\u{:04x}", u32::from(control))),
            other if self.ascii && !other.is_ascii() => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    to.push_str(&format!("\\u{unit:04x}"));
                }
            }
            other => to.push(other),
        });
        to.push_str("\"");
    }

    fn separate(&self, index: usize, depth: usize, to: &mut TextBuilder) {
        if index > 0 {
            to.push_str(&self.comma);
        }
        self.new_line(depth, to);
    }

    fn new_line(&self, depth: usize, to: &mut TextBuilder) {
        if let Some(indent) = &self.indent {
            to.push_str("\n");
            to.push_str(&indent.repeat(depth));
        }
    }
}
