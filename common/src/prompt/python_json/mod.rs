//! JSON as Python's `json` module reads and writes it, because Python reads our files and wrote our input.
//!
//! Owns the value tree ([`Json`], [`Record`]). Reading is [`parse`]'s, writing is [`write`]'s, number
//! texts are [`number`]'s. It differs from serde_json where Python does: integers keep every digit,
//! floats are written as `repr` does, NaN and Infinity pass, output is ASCII with `", "` and `": "`.

mod number;
mod parse;
mod write;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub use parse::{JsonError, MAX_DEPTH, ParsedRecord, parse_record};

/// A JSON value. Object keys keep their order, numbers the text Python writes for them.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as the text Python's `json.dumps` writes for it (`1e+16`, `NaN`, every digit of an integer).
    Number(Box<str>),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(Record),
}

impl Json {
    /// The string, where this is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// The object, where this is one.
    pub fn as_object(&self) -> Option<&Record> {
        match self {
            Json::Object(record) => Some(record),
            _ => None,
        }
    }

    /// What a person calls this kind of value.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }

    /// The value as `json.dumps(value)` writes it.
    pub fn to_python_json(&self) -> String {
        let mut out = String::new();
        write::value(&mut out, self, write::Charset::Ascii);
        out
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Json::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Json::String(text)
    }
}

impl From<usize> for Json {
    fn from(count: usize) -> Self {
        Json::Number(count.to_string().into())
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Number(value) => Json::Number(number::of_serde(&value).into()),
            Value::String(text) => Json::String(text),
            Value::Array(values) => Json::Array(values.into_iter().map(Json::from).collect()),
            Value::Object(map) => {
                Json::Object(Record(map.into_iter().map(|(key, value)| (key, Json::from(value))).collect()))
            }
        }
    }
}

/// A JSON object: its keys in order, each once. In a message it travels as its own JSON text, so
/// that what JSON libraries round or refuse (long integers, NaN) arrives as it left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record(Vec<(String, Json)>);

impl Record {
    /// An object without keys.
    pub fn new() -> Self {
        Record::default()
    }

    /// Reads an object that was written by this type; [`parse_record`] reads what people write.
    pub fn parse(line: &str) -> Result<Self, JsonError> {
        parse::parse_again(line).map(|parsed| parsed.record)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of `key`, to change in place.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Json> {
        self.0.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Sets `key` as a Python dict does: a new key goes last, a known one keeps its place.
    pub fn insert(&mut self, key: &str, value: impl Into<Json>) {
        let value = value.into();
        match self.get_mut(key) {
            Some(place) => *place = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    /// Takes `key` out; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Json> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(at).1)
    }

    /// The keys and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Json)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The object as `json.dump(record, f)` writes it: ASCII, `", "` and `": "`, no newline.
    pub fn to_python_json(&self) -> String {
        let mut out = String::new();
        write::record(&mut out, self, write::Charset::Ascii);
        out
    }

    /// The object as `json.dumps(record, ensure_ascii=False)` writes it; what spools and messages hold.
    pub fn to_compact_utf8(&self) -> String {
        let mut out = String::new();
        write::record(&mut out, self, write::Charset::Utf8);
        out
    }
}

impl From<serde_json::Map<String, serde_json::Value>> for Record {
    fn from(map: serde_json::Map<String, serde_json::Value>) -> Self {
        Record(map.into_iter().map(|(key, value)| (key, Json::from(value))).collect())
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_compact_utf8())
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Record::parse(&text).map_err(|error| D::Error::custom(format!("a prompt's record: {error}")))
    }
}

#[cfg(test)]
mod tests;
