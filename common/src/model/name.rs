//! Names that become parts of paths: a model's directory, a repo of the hub.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

/// The name of a model's directory under the save path: one path component that is safe to create.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// A name that cannot be a model's directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a model's directory: it must be 1 to 200 of A-Z a-z 0-9 - _ ., not start with a dot, and not be \
     one of the files of a data directory"
)]
pub struct InvalidModelName(pub String);

impl ModelName {
    /// The contract's rule for anything without a TransformerLens alias: `/` becomes `-`, what is outside
    /// `[A-Za-z0-9-_.]` becomes `_`. A result that could not be a directory of its own gets a `_` in front.
    pub fn sanitize(text: &str) -> ModelName {
        let safe = |c: char| match c {
            '/' => '-',
            c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => c,
            _ => '_',
        };
        let mut name: String = text.chars().map(safe).take(199).collect();
        if !is_directory_name(&name) {
            name.insert(0, '_');
        }
        ModelName(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names at the top of a data directory that are files there, ours or upstream's.
const TAKEN: [&str; 7] = [
    "index.html",
    "single.html",
    "models.jsonl",
    "figures.jsonl",
    "prompts.jsonl",
    "sg_cfg.json",
    "pl_cfg.json",
];

/// Whether `name` is a plain component that is none of the data directory's own files.
fn is_directory_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(allowed)
        && !TAKEN.contains(&name)
}

impl TryFrom<String> for ModelName {
    type Error = InvalidModelName;

    fn try_from(text: String) -> Result<Self, InvalidModelName> {
        if is_directory_name(&text) { Ok(ModelName(text)) } else { Err(InvalidModelName(text)) }
    }
}

impl TryFrom<&str> for ModelName {
    type Error = InvalidModelName;

    fn try_from(text: &str) -> Result<Self, InvalidModelName> {
        ModelName::try_from(text.to_owned())
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0
    }
}

impl AsRef<Path> for ModelName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repo on the hub: `owner/name`, or `name` alone for the oldest ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoId(String);

impl RepoId {
    /// Reads a repo id by the hub's own rules, which also make it safe as part of a path.
    pub fn parse(text: &str) -> Option<RepoId> {
        let component = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !part.is_empty()
                && part.bytes().all(allowed)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        let good = text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(component);
        good.then(|| RepoId(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
