//! Why a model's files could not be had: each error one sentence that says what was looked for, where,
//! and what to do.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{
    job::FailureKind,
    model::{
        alias,
        hub::HubOptions,
        reference::{RepoId, is_commit},
    },
};

/// What was wanted of the hub, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The repo.
    pub repo: RepoId,
    /// Branch, tag or commit.
    pub revision: String,
    /// The hub's address.
    pub endpoint: String,
    /// The cache directory.
    pub cache: PathBuf,
}

impl Wanted {
    pub(super) fn new(repo: &RepoId, revision: &str, hub: &HubOptions) -> Box<Wanted> {
        let (revision, endpoint) = (revision.to_owned(), hub.endpoint.clone());
        Box::new(Wanted { repo: repo.clone(), revision, endpoint, cache: hub.cache.clone() })
    }

    /// The command that fills the cache. One pattern for .json, .txt and .safetensors, because versions of
    /// `hf` disagree on how to give several. Not for .bin: most repositories have the same weights in both.
    pub fn prefetch(&self) -> String {
        let Wanted { repo, revision, cache, .. } = self;
        let cache = cache.display();
        format!("HF_HUB_CACHE={cache} hf download {repo} --revision {revision} --include '*.[jst][sax]*'")
    }

    /// For a name that may as well be a mistyped directory's, as a job's, with its commit, is not: that there is none.
    fn no_directory(&self) -> String {
        let repo = self.repo.as_str();
        if is_commit(&self.revision) || alias::find(repo).is_some() || Path::new(repo).is_dir() {
            return String::new();
        }
        format!("; if a directory was meant, there is none at {repo:?}")
    }
}

/// As in `EleutherAI/pythia-70m@main`.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.revision)
    }
}

/// Why a model's files could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocateError {
    /// Not in the cache, and the network is switched off.
    #[error(
        "{wanted} is not in the hub cache {:?} ({missing}) and the network is switched off (HF_HUB_OFFLINE or \
         hub.offline); on a machine with network run `{}`{elsewhere}{}",
        wanted.cache, wanted.prefetch(), wanted.no_directory()
    )]
    NotCached {
        /// What was wanted.
        wanted: Box<Wanted>,
        /// What was looked for and is not there.
        missing: String,
        /// Where something similar lies, if anywhere.
        elsewhere: String,
    },
    /// The hub does not answer.
    #[error(
        "could not fetch {file} of {wanted} from {}: {cause}; it is not in the hub cache {:?} either, so check the \
         network, or on a machine with network run `{}`{}",
        wanted.endpoint, wanted.cache, wanted.prefetch(), wanted.no_directory()
    )]
    Unreachable {
        /// The file.
        file: String,
        /// Of what.
        wanted: Box<Wanted>,
        /// What went wrong.
        cause: String,
    },
    /// 401 or 403.
    #[error("{} refused {wanted} ({status}{detail}): {advice}", wanted.endpoint)]
    Denied {
        /// What was wanted.
        wanted: Box<Wanted>,
        /// The HTTP status.
        status: u16,
        /// What the hub said.
        detail: String,
        /// What to do.
        advice: String,
    },
    /// The hub knows no such repo.
    #[error(
        "{} has no model {}; check the spelling (`worker models` lists the short names), or give a directory as ./{}",
        wanted.endpoint, wanted.repo, wanted.repo
    )]
    NoSuchRepo {
        /// What was wanted.
        wanted: Box<Wanted>,
    },
    /// The repo has no such revision.
    #[error(
        "{} on {} has no revision {:?}; give a branch, a tag or a full commit hash",
        wanted.repo, wanted.endpoint, wanted.revision
    )]
    NoSuchRevision {
        /// What was wanted.
        wanted: Box<Wanted>,
    },
    /// The repo or directory lacks a file that every model needs.
    #[error("{place} has no {file}; {advice}")]
    NoSuchFile {
        /// Repo or directory.
        place: String,
        /// The file or files.
        file: String,
        /// What to do.
        advice: String,
    },
    /// The hub failed, or what it sent is not what it announced.
    #[error("fetching {file} of {wanted} from {} failed: {cause}; run again to retry", wanted.endpoint)]
    Download {
        /// The file.
        file: String,
        /// Of what.
        wanted: Box<Wanted>,
        /// What went wrong.
        cause: String,
    },
    /// A file that is there and is not what it must be.
    #[error("{path:?} {problem}; remove it and fetch the model again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file system failed.
    #[error("could not read {path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LocateError {
    /// What to do about it, as policy: what the hub or the disk does not give now it may give later.
    pub fn kind(&self) -> FailureKind {
        match self {
            LocateError::Unreachable { .. } | LocateError::Download { .. } | LocateError::Io { .. } => {
                FailureKind::Retryable
            }
            // Somebody must fetch it first.
            LocateError::NotCached { .. }
            | LocateError::Denied { .. }
            | LocateError::NoSuchRepo { .. }
            | LocateError::NoSuchRevision { .. }
            | LocateError::NoSuchFile { .. }
            | LocateError::Damaged { .. } => FailureKind::Permanent,
        }
    }
}
