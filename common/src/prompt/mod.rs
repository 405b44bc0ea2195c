//! A prompt: one text with its JSON record and its hash, which is also its directory name.
//!
//! Owns what a prompt *is*. Reading prompt files is [`load`]'s, tokens are [`crate::tokenize`]'s.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

/// The keys and values of one prompt's JSON object, in their order in the input.
pub type Record = serde_json::Map<String, serde_json::Value>;

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

/// One prompt as loaded: its text, its hash and the input record it came with.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The input object's keys in order, without "text" changed and with "meta" always an object.
    pub record: Record,
    /// What the model reads; equal to `record["text"]`.
    pub text: String,
    /// The prompt's identity.
    pub hash: PromptHash,
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
}
