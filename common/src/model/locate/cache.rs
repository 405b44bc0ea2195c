//! The hub cache on disk: `models--owner--name/{refs/<revision>, snapshots/<commit>/<file>, blobs}`.
//!
//! Owns reading it. hf-hub writes it (see [`super::download`]).

use std::path::{Path, PathBuf};

use crate::model::reference::{RepoId, is_commit};

/// A repo's folder in a cache, which may not exist.
pub(super) struct CachedRepo {
    folder: PathBuf,
}

/// One commit of a repo in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The full commit hash.
    pub(super) commit: String,
    /// The directory with the commit's files, those that were fetched.
    pub(super) dir: PathBuf,
}

impl CachedRepo {
    pub(super) fn of(cache: &Path, repo: &RepoId) -> CachedRepo {
        CachedRepo { folder: cache.join(format!("models--{}", repo.as_str().replace('/', "--"))) }
    }

    /// The folder's own name.
    pub(super) fn folder_name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The snapshot of `revision`, if the cache has one.
    pub(super) fn snapshot(&self, revision: &str) -> Option<Snapshot> {
        let commit = if is_commit(revision) {
            revision.to_ascii_lowercase()
        } else {
            std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_owned()
        };
        // A ref file is a file like any other: only a plain name may become a path.
        if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let dir = self.folder.join("snapshots").join(&commit);
        dir.is_dir().then_some(Snapshot { commit, dir })
    }

    /// Revisions and commits the cache does have, for an error's sake.
    pub(super) fn revisions(&self) -> Vec<String> {
        let mut found = names_in(&self.folder.join("refs"));
        found.extend(names_in(&self.folder.join("snapshots")));
        found
    }
}

/// Repo ids in the cache whose tail is `name`, any case: what a user may have meant.
pub(super) fn repos_called(cache: &Path, name: &str) -> Vec<String> {
    let mut found: Vec<String> = names_in(cache)
        .iter()
        .filter_map(|folder| Some(folder.strip_prefix("models--")?.replacen("--", "/", 1)))
        .filter(|repo| repo.rsplit('/').next().is_some_and(|tail| tail.eq_ignore_ascii_case(name)))
        .collect();
    found.sort();
    found
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
