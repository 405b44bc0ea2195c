//! A prompt: one text with its JSON record and its hash, which is also its directory name.
//!
//! Owns what a prompt *is*. Reading prompt files is [`load`]'s, tokens are [`crate::tokenize`]'s.

mod blocks;
mod line;
pub mod load;
pub mod python_json;
mod set;
mod shuffle;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

pub use python_json::{Json, Record};
pub use set::{PromptSet, PromptSetWriter};

/// A prompt's identity and the name of its directory: `base64url(md5(utf8(text)))` without padding,
/// or the "hash" its input line carried.
///
/// MD5 is here because pattern_lens's files are named by it; nothing relies on it being hard to forge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptHash(String);

/// A hash that cannot be a directory name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be a prompt's hash: it names a directory, so it must be 1 to 128 of A-Z a-z 0-9 - _ = ., \
     not starting with a dot; remove the \"hash\" key to have it computed"
)]
pub struct InvalidHash(pub String);

impl PromptHash {
    /// The hash pattern_lens gives `text`.
    pub fn of(text: &str) -> Self {
        PromptHash(URL_SAFE_NO_PAD.encode(Md5::digest(text.as_bytes())))
    }

    /// The hash as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PromptHash {
    type Error = InvalidHash;

    fn try_from(text: String) -> Result<Self, InvalidHash> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=' | b'.');
        if (1..=128).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed) {
            Ok(PromptHash(text))
        } else {
            Err(InvalidHash(text))
        }
    }
}

impl From<PromptHash> for String {
    fn from(hash: PromptHash) -> String {
        hash.0
    }
}

impl fmt::Display for PromptHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One prompt: an input record that is sure to have a "text" string, a "hash" that can name a
/// directory, and a "meta" object.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    record: Record,
    hash: PromptHash,
}

/// Why a record is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// It has no "text".
    #[error("the object has no \"text\"; add it, or remove the line")]
    NoText,
    /// Its "text" is something else than a string.
    #[error("\"text\" is {0}; it must be a string")]
    TextKind(&'static str),
    /// Its "hash" is something else than a string.
    #[error("\"hash\" is {0}; it must be a string; remove the key to have it computed")]
    HashKind(&'static str),
    /// Its "hash" cannot name a directory.
    #[error(transparent)]
    Hash(#[from] InvalidHash),
}

impl PromptError {
    /// The key whose value is wrong.
    pub fn key(&self) -> &'static str {
        match self {
            PromptError::NoText | PromptError::TextKind(_) => "text",
            PromptError::HashKind(_) | PromptError::Hash(_) => "hash",
        }
    }
}

impl Prompt {
    /// A prompt with nothing but a text.
    pub fn from_text(text: &str) -> Self {
        let mut record = Record::new();
        record.insert("text", text);
        Prompt::from_record(record).expect("the record has a text")
    }

    /// Makes `record` a prompt: a missing or null "meta" becomes `{}`, one that is no object becomes
    /// `{"value": it}` (the upstream page needs an object), a missing "hash" is computed and added last.
    pub fn from_record(mut record: Record) -> Result<Self, PromptError> {
        let text = record.get("text").ok_or(PromptError::NoText)?;
        let text = text.as_str().ok_or(PromptError::TextKind(text.kind()))?;
        let carried = match record.get("hash") {
            None => None,
            Some(Json::String(hash)) => Some(PromptHash::try_from(hash.clone())?),
            Some(other) => return Err(PromptError::HashKind(other.kind())),
        };
        let hash = carried.unwrap_or_else(|| PromptHash::of(text));
        match record.get_mut("meta") {
            Some(Json::Object(_)) => {}
            Some(meta) => {
                let mut object = Record::new();
                if !matches!(meta, Json::Null) {
                    object.insert("value", std::mem::replace(meta, Json::Null));
                }
                *meta = Json::Object(object);
            }
            None => record.insert("meta", Json::Object(Record::new())),
        }
        record.insert("hash", hash.as_str());
        Ok(Prompt { record, hash })
    }

    /// What the model reads.
    pub fn text(&self) -> &str {
        self.record.get("text").and_then(Json::as_str).unwrap_or_default()
    }

    /// The prompt's identity.
    pub fn hash(&self) -> &PromptHash {
        &self.hash
    }

    /// The input object's keys in order.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The record and the hash.
    pub fn into_parts(self) -> (Record, PromptHash) {
        (self.record, self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_pattern_lens() {
        for (text, hash) in [
            ("test prompt", "C7p4x9-iwFxWSKCb8kbLfQ"),
            ("Hello, world!", "bNNVbesNpUvKBgtMOUeYOQ"),
            ("héllo ☃ 😀", "RDFNBbCbdNr9om1Sc9kaFw"),
            ("", "1B2M2Y8AsgTpgAmY7PhCfg"),
        ] {
            assert_eq!(PromptHash::of(text).as_str(), hash);
        }
    }

    #[test]
    fn a_hash_is_one_safe_path_component() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0b", "é", ".lenspool"] {
            assert!(PromptHash::try_from(bad.to_owned()).is_err(), "{bad:?} was accepted");
        }
        assert!(PromptHash::try_from("-begins-with-a-dash".to_owned()).is_ok());
    }

    #[test]
    fn a_record_becomes_a_prompt_with_an_object_for_meta_and_a_hash() {
        for (line, record) in [
            (
                r#"{"text": "test prompt"}"#,
                r#"{"text": "test prompt", "meta": {}, "hash": "C7p4x9-iwFxWSKCb8kbLfQ"}"#,
            ),
            (r#"{"meta": null, "text": "", "hash": "-x"}"#, r#"{"meta": {}, "text": "", "hash": "-x"}"#),
            (
                r#"{"meta": [1, NaN], "text": "", "hash": "x"}"#,
                r#"{"meta": {"value": [1, NaN]}, "text": "", "hash": "x"}"#,
            ),
            (
                r#"{"meta": "web", "hash": "x", "text": ""}"#,
                r#"{"meta": {"value": "web"}, "hash": "x", "text": ""}"#,
            ),
            (
                r#"{"hash": "x", "meta": {"a": 1}, "text": ""}"#,
                r#"{"hash": "x", "meta": {"a": 1}, "text": ""}"#,
            ),
        ] {
            let prompt = Prompt::from_record(Record::parse(line).unwrap()).unwrap();
            assert_eq!(prompt.record().to_python_json(), record);
            assert_eq!(prompt.record().get("hash").and_then(Json::as_str), Some(prompt.hash().as_str()));
        }
        assert_eq!(Prompt::from_text("Hello, world!").hash().as_str(), "bNNVbesNpUvKBgtMOUeYOQ");
    }
}
