//! Why a model's files could not be had: each error one sentence that says what was looked for, where,
//! and what to do.

use std::{io, path::PathBuf};

use crate::{job::FailureKind, model::reference::RepoId};

/// Why a model's files could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocateError {
    /// Not in the cache, and the network is switched off.
    #[error(
        "{repo}@{revision} is not in the hub cache {cache:?} ({missing}) and the network is switched off \
         (HF_HUB_OFFLINE or hub.offline); on a machine with network run `{prefetch}`{elsewhere}"
    )]
    NotCached {
        /// The repo.
        repo: RepoId,
        /// The revision.
        revision: String,
        /// The cache directory.
        cache: PathBuf,
        /// What was looked for and is not there.
        missing: String,
        /// The command that fetches it.
        prefetch: String,
        /// Where something similar lies, if anywhere.
        elsewhere: String,
    },
    /// The hub does not answer.
    #[error(
        "could not fetch {file} of {repo}@{revision} from {endpoint}: {cause}; it is not in the hub cache {cache:?} \
         either, so check the network, or on a machine with network run `{prefetch}`"
    )]
    Unreachable {
        /// The file.
        file: String,
        /// The repo.
        repo: RepoId,
        /// The revision.
        revision: String,
        /// The hub's address.
        endpoint: String,
        /// The cache directory.
        cache: PathBuf,
        /// What went wrong.
        cause: String,
        /// The command that fetches it.
        prefetch: String,
    },
    /// 401 or 403.
    #[error("{endpoint} refused {repo}@{revision} ({status}{detail}): {advice}")]
    Denied {
        /// The repo.
        repo: RepoId,
        /// The revision.
        revision: String,
        /// The hub's address.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What the hub said.
        detail: String,
        /// What to do.
        advice: String,
    },
    /// The hub knows no such repo.
    #[error(
        "{endpoint} has no model {repo}; check the spelling (`worker models` lists the short names), or give a \
         directory as ./{repo}"
    )]
    NoSuchRepo {
        /// The repo.
        repo: RepoId,
        /// The hub's address.
        endpoint: String,
    },
    /// The repo has no such revision.
    #[error("{repo} on {endpoint} has no revision {revision:?}; give a branch, a tag or a full commit hash")]
    NoSuchRevision {
        /// The repo.
        repo: RepoId,
        /// The revision.
        revision: String,
        /// The hub's address.
        endpoint: String,
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
    /// Weights only as a Python pickle, which can run code when it is read.
    #[error(
        "{place} has its weights only as {found}, which lenspool does not read (unpickling can run code); convert \
         them with `{command}` and run with --model ./{directory}"
    )]
    PickledWeights {
        /// Repo or directory.
        place: String,
        /// The pickle's file name.
        found: String,
        /// The command that converts.
        command: String,
        /// The directory that command makes.
        directory: String,
    },
    /// The hub failed, or what it sent is not what it announced.
    #[error("fetching {file} of {repo}@{revision} from {endpoint} failed: {cause}; run again to retry")]
    Download {
        /// The file.
        file: String,
        /// The repo.
        repo: RepoId,
        /// The revision.
        revision: String,
        /// The hub's address.
        endpoint: String,
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
    /// What to do about it, as policy: a model that is not there now may be there later or elsewhere.
    pub fn kind(&self) -> FailureKind {
        match self {
            LocateError::NotCached { .. }
            | LocateError::Unreachable { .. }
            | LocateError::Download { .. }
            | LocateError::Io { .. } => FailureKind::Retryable,
            LocateError::Denied { .. }
            | LocateError::NoSuchRepo { .. }
            | LocateError::NoSuchRevision { .. }
            | LocateError::NoSuchFile { .. }
            | LocateError::PickledWeights { .. }
            | LocateError::Damaged { .. } => FailureKind::Permanent,
        }
    }
}
