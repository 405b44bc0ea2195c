//! What a user typed for a model, read once: which repo or directory it means, which revision, and the
//! name of its directory under the save path.
//!
//! Owns names only. Nothing here looks into a hub cache or at the network: that is
//! [`crate::model::locate`]'s. The one question asked of the file system is whether the text is a directory.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::alias;
pub use super::name::{InvalidModelName, ModelName, RepoId};
use crate::job::ModelPin;

/// The revision of a repo when none is asked for.
pub const DEFAULT_REVISION: &str = "main";

/// Where a model's files are to be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A directory on this machine, absolute.
    Directory(PathBuf),
    /// A repo on the hub, at a revision.
    Hub {
        /// The repo.
        repo: RepoId,
        /// Other ids under which a hub cache may hold the same repo.
        former_repos: Vec<RepoId>,
        /// Branch, tag or full commit hash.
        revision: String,
    },
}

/// A model as the user named it, resolved as far as names go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelRef {
    /// The name of its directory under the save path. It does not depend on the revision.
    pub name: ModelName,
    /// Where its files are.
    pub source: Source,
}

/// Why a model's name means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelRefError {
    /// Nothing was typed.
    #[error("no model was named; give an alias (gpt2), a hub id (EleutherAI/pythia-70m) or a directory")]
    Empty,
    /// It reads as a path and there is nothing.
    #[error(
        "{path:?} is not a directory; a model on the hub is named OWNER/NAME, without ./ or further slashes"
    )]
    NoSuchDirectory {
        /// As typed.
        path: String,
    },
    /// There is a directory, but no model in it.
    #[error("the directory {path:?} holds no config.json, so it is not a model as transformers saves it")]
    NotAModel {
        /// As typed.
        path: String,
    },
    /// A path that cannot be written into a job or a card.
    #[error("the path {path:?} is not valid UTF-8 or cannot be resolved; move or link the model elsewhere")]
    UnusablePath {
        /// As typed.
        path: String,
    },
    /// Neither a path nor a possible repo id.
    #[error(
        "{text:?} is neither a directory nor a possible hub id (OWNER/NAME of A-Z a-z 0-9 - _ ., at most 96 characters)"
    )]
    NotARepo {
        /// As typed.
        text: String,
    },
    /// A revision that could not be one.
    #[error("{text:?} cannot be a revision: give a branch, a tag or a full commit hash")]
    BadRevision {
        /// As typed.
        text: String,
    },
    /// Two revisions.
    #[error("{text:?} names a revision, and --revision {other:?} another; give one of them")]
    TwoRevisions {
        /// The model as typed.
        text: String,
        /// The other revision.
        other: String,
    },
    /// A revision of something that has none.
    #[error("{path:?} is a local directory, which has no revision {revision:?}; leave the revision out")]
    DirectoryRevision {
        /// As typed.
        path: String,
        /// The revision asked for.
        revision: String,
    },
}

impl ModelRef {
    /// Reads what a user typed: an alias, a hub id or the tail of one (each with an optional `@revision`),
    /// or a directory. `revision` is the separate setting, for hub models named without one.
    ///
    /// A directory comes first, as in transformers: `gpt2` means `./gpt2` where that holds a config.json.
    pub fn parse(text: &str, revision: Option<&str>) -> Result<ModelRef, ModelRefError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ModelRefError::Empty);
        }
        if let Some(directory) = Directory::find(text)? {
            return directory.into_ref(revision);
        }
        if Path::new(text).is_dir() {
            tracing::warn!(
                "{text}: the directory of that name holds no config.json; looking for it on the hub"
            );
        }
        let (id, own) = match text.rsplit_once('@') {
            Some((id, own)) => (id, Some(own)),
            None => (text, None),
        };
        let revision = match (own, revision) {
            (Some(own), Some(other)) if own != other => {
                return Err(ModelRefError::TwoRevisions { text: text.to_owned(), other: other.to_owned() });
            }
            (own, other) => own.or(other).unwrap_or(DEFAULT_REVISION),
        };
        ModelRef::hub(id, revision)
    }

    /// The exact model of a job.
    pub fn pinned(pin: &ModelPin) -> Result<ModelRef, ModelRefError> {
        if Path::new(&pin.source).is_absolute() {
            ModelRef::parse(&pin.source, None)
        } else {
            ModelRef::hub(&pin.source, &pin.commit)
        }
    }

    /// What the user may type to mean this model again.
    pub fn spelling(&self) -> &str {
        match &self.source {
            Source::Directory(path) => path.to_str().unwrap_or_default(),
            Source::Hub { repo, .. } => repo.as_str(),
        }
    }

    fn hub(id: &str, revision: &str) -> Result<ModelRef, ModelRefError> {
        let known = alias::find(id);
        let repo = known.map_or(id, |model| model.repo);
        let repo = RepoId::parse(repo).ok_or_else(|| ModelRefError::NotARepo { text: id.to_owned() })?;
        if !is_revision(revision) {
            return Err(ModelRefError::BadRevision { text: revision.to_owned() });
        }
        let former = known.map_or(&[][..], |model| &model.former_repos);
        Ok(ModelRef {
            name: match known.and_then(|model| model.alias) {
                Some(alias) => ModelName::sanitize(alias),
                None => ModelName::sanitize(repo.as_str()),
            },
            source: Source::Hub {
                former_repos: former.iter().filter_map(|id| RepoId::parse(id)).collect(),
                repo,
                revision: revision.to_owned(),
            },
        })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Directory(path) => write!(f, "{} ({})", self.name, path.display()),
            Source::Hub { repo, revision, .. } => write!(f, "{} ({repo}@{revision})", self.name),
        }
    }
}

/// A revision becomes part of a path in the cache, so it may not climb out of it.
fn is_revision(text: &str) -> bool {
    let component = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.ends_with(".lock");
    let plain =
        |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '\\' | '~' | '^' | ':' | '?' | '*');
    text.len() <= 255 && !text.starts_with('-') && text.chars().all(plain) && text.split('/').all(component)
}

/// Whether `text` is a full commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A directory the user named.
struct Directory<'a> {
    typed: &'a str,
    path: PathBuf,
}

impl<'a> Directory<'a> {
    /// The directory `text` means, if it means one: always where it is written like a path, else only where
    /// a model lies there.
    fn find(text: &'a str) -> Result<Option<Directory<'a>>, ModelRefError> {
        let written_like_a_path = text.starts_with(['/', '.', '~'])
            || text.ends_with('/')
            || text.split('@').next().unwrap_or(text).matches('/').count() > 1;
        let path = match text.strip_prefix("~/").zip(std::env::home_dir()) {
            Some((rest, home)) => home.join(rest),
            None => PathBuf::from(text),
        };
        let is_model = path.join("config.json").is_file();
        if !is_model && !written_like_a_path {
            return Ok(None);
        }
        let typed = text.to_owned();
        if !path.is_dir() {
            return Err(ModelRefError::NoSuchDirectory { path: typed });
        }
        if !is_model {
            return Err(ModelRefError::NotAModel { path: typed });
        }
        let path = path.canonicalize().map_err(|_| ModelRefError::UnusablePath { path: typed })?;
        Ok(Some(Directory { typed: text, path }))
    }

    fn into_ref(self, revision: Option<&str>) -> Result<ModelRef, ModelRefError> {
        if let Some(revision) = revision {
            return Err(ModelRefError::DirectoryRevision {
                path: self.typed.to_owned(),
                revision: revision.to_owned(),
            });
        }
        let unusable = || ModelRefError::UnusablePath { path: self.typed.to_owned() };
        let tail = self.path.file_name().and_then(|name| name.to_str()).ok_or_else(unusable)?;
        self.path.to_str().ok_or_else(unusable)?;
        // `hf download` prints a snapshot's path, whose last component says nothing: name it by its repo.
        let name = match snapshot_repo(&self.path) {
            Some(repo) => ModelRef::hub(repo.as_str(), DEFAULT_REVISION)?.name,
            None => ModelName::sanitize(tail),
        };
        Ok(ModelRef { name, source: Source::Directory(self.path) })
    }
}

/// The repo of a snapshot directory in a hub cache (`models--owner--name/snapshots/<commit>`).
fn snapshot_repo(path: &Path) -> Option<RepoId> {
    let mut parents = path.ancestors();
    let mut component = || parents.next().and_then(Path::file_name).and_then(|name| name.to_str());
    let (commit, snapshots, folder) = (component()?, component()?, component()?);
    if !is_commit(commit) || snapshots != "snapshots" {
        return None;
    }
    RepoId::parse(&folder.strip_prefix("models--")?.replace("--", "/"))
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
