//! The arguments of a call, taken by place or by name.

use super::text::Text;
use super::value::{Outcome, Value};

/// What a call was given.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    positional: Vec<Option<Value>>,
    named: Vec<(String, Value)>,
}

impl Arguments {
    pub fn push(&mut self, value: Value) {
        self.positional.push(Some(value));
    }

    pub fn push_named(&mut self, name: &str, value: Value) -> Outcome<()> {
        if self.named.iter().any(|(other, _)| other == name) {
            return Err(format!("the argument '{name}' is given twice"));
        }
        self.named.push((name.to_owned(), value));
        Ok(())
    }

    /// The argument at a place or of a name.
    pub fn take(&mut self, place: usize, name: &str) -> Option<Value> {
        let held = self.positional.get_mut(place).and_then(Option::take);
        held.or_else(|| {
            let at = self.named.iter().position(|(other, _)| other == name)?;
            Some(self.named.remove(at).1)
        })
    }

    /// As [`take`](Self::take), for one that has to be there.
    pub fn need(&mut self, place: usize, name: &str) -> Outcome<Value> {
        self.take(place, name).ok_or_else(|| format!("the argument '{name}' is missing"))
    }

    /// A text that has to be there.
    pub fn need_text(&mut self, place: usize, name: &str) -> Outcome<Text> {
        match self.need(place, name)? {
            Value::Text(text) => Ok(text),
            other => Err(format!("the argument '{name}' must be str, not {}", other.kind())),
        }
    }

    /// A text, or nothing; `None` counts as nothing.
    pub fn take_text(&mut self, place: usize, name: &str) -> Outcome<Option<Text>> {
        match self.take(place, name) {
            None | Some(Value::None | Value::Undefined) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(format!("the argument '{name}' must be str, not {}", other.kind())),
        }
    }

    /// A whole number, or nothing.
    pub fn take_int(&mut self, place: usize, name: &str) -> Outcome<Option<i128>> {
        match self.take(place, name) {
            None | Some(Value::None | Value::Undefined) => Ok(None),
            Some(value) => match value.as_int() {
                Some(number) => Ok(Some(number)),
                None => Err(format!("the argument '{name}' must be int, not {}", value.kind())),
            },
        }
    }

    /// Whether a switch is on.
    pub fn take_switch(&mut self, place: usize, name: &str) -> bool {
        self.take(place, name).is_some_and(|value| value.is_true())
    }

    /// The positional arguments from a place on.
    pub fn rest(&mut self, place: usize) -> Vec<Value> {
        self.positional.iter_mut().skip(place).filter_map(Option::take).collect()
    }

    /// The arguments with names.
    pub fn all_named(&mut self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.named)
    }

    /// Refuses arguments that nobody took.
    pub fn finish(self, what: &str) -> Outcome<()> {
        if let Some((name, _)) = self.named.first() {
            return Err(format!("{what} has no argument '{name}'"));
        }
        match self.positional.iter().any(Option::is_some) {
            true => Err(format!("{what} takes fewer arguments")),
            false => Ok(()),
        }
    }
}
