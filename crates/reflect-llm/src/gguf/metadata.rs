//! The key-value section of a GGUF file.

use std::collections::BTreeMap;

use crate::config::ConfigError;

/// A metadata value. Integers and floats are widened: nothing here depends on the stored width.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array of metadata values, all of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    Unsigned(Vec<u64>),
    Signed(Vec<i64>),
    Float(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Nested(Vec<Array>),
}

impl Array {
    fn len(&self) -> usize {
        match self {
            Array::Unsigned(values) => values.len(),
            Array::Signed(values) => values.len(),
            Array::Float(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::Nested(values) => values.len(),
        }
    }
}

/// The key-value section of a GGUF file. Getters give `None` for an absent key and an error for a
/// key of another type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufMetadata(BTreeMap<String, Value>);

impl GgufMetadata {
    pub(super) fn new(values: BTreeMap<String, Value>) -> Self {
        Self(values)
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(key, "a string")),
        }
    }

    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(&Value::Unsigned(value)) => Ok(Some(value)),
            Some(&Value::Signed(value)) if value >= 0 => Ok(Some(value as u64)),
            // Some converters write per-layer sizes even where all layers agree.
            Some(Value::Array(Array::Unsigned(values)))
                if !values.is_empty() && values.iter().all(|v| *v == values[0]) =>
            {
                Ok(Some(values[0]))
            }
            Some(_) => Err(wrong_type(key, "one non-negative whole number for all layers")),
        }
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let fits = |value| usize::try_from(value).map_err(|_| wrong_type(key, "a smaller number"));
        self.unsigned(key)?.map(fits).transpose()
    }

    pub fn token_id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        // Old converters wrote -1, as u32, for "none".
        let id = |value| match u32::try_from(value) {
            Ok(u32::MAX) => Ok(None),
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(wrong_type(key, "a token id")),
        };
        self.unsigned(key)?.map_or(Ok(None), id)
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(&Value::Float(value)) => Ok(Some(value)),
            Some(&Value::Unsigned(value)) => Ok(Some(value as f64)),
            Some(&Value::Signed(value)) => Ok(Some(value as f64)),
            Some(_) => Err(wrong_type(key, "a number")),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(wrong_type(key, "true or false")),
        }
    }

    /// Length of an array, or `None` if the key is absent or no array.
    pub fn array_len(&self, key: &str) -> Option<usize> {
        match self.0.get(key) {
            Some(Value::Array(array)) => Some(array.len()),
            _ => None,
        }
    }

    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.0.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(Array::String(values))) => Ok(values.clone()),
            Some(_) => Err(wrong_type(key, "a list of strings")),
        }
    }
}

pub(super) fn wrong_type(key: &str, must: &str) -> ConfigError {
    ConfigError::Invalid { key: key.into(), found: "something else".into(), must: must.into() }
}
