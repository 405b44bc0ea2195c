//! Finds a model's files: a local directory, else the hub cache, else the hub (into the same cache).
//!
//! Two stages, so that a run whose prompts are all cached never fetches weights: [`locate_config`] gives
//! config and tokenizer and fixes the commit; [`fetch_weights`] gives the weights of that very commit.
//! A revision that is cached is used as it is: nobody asks the hub whether its branch has moved.

mod cache;
mod download;
mod error;
mod files;
mod transfer;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::{
    cache::{CachedRepo, Snapshot},
    files::{Weights, weights_in},
};
pub use self::{
    download::FetchEvent,
    error::{LocateError, Wanted},
    files::TokenizerFiles,
};
use super::{
    hub::HubOptions,
    reference::{ModelName, ModelRef, RepoId, Source},
};
use crate::job::ModelPin;

/// Takes note of downloads as they go on; `&mut |_| {}` for those who do not care.
pub type Progress<'a> = dyn FnMut(FetchEvent<'_>) + Send + 'a;

/// Where a model's files were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory the user named.
    Directory,
    /// The hub cache; the network was not used.
    Cache,
    /// The hub, into the cache, just now.
    Hub,
}

/// A model whose config and tokenizer are on this machine, at a known commit.
#[derive(Clone, Debug)]
pub struct LocatedModel {
    /// The name of its directory under the save path.
    pub name: ModelName,
    /// The repo id, or the directory's absolute path.
    pub source: String,
    /// The full commit hash; of a directory, "sha256:" and the digest of its config.json and of each weight
    /// file's name, length, header and last 64 KiB.
    pub commit: String,
    /// The directory of config and tokenizer.
    pub dir: PathBuf,
    /// Where that was found.
    pub origin: Origin,
    reference: ModelRef,
}

impl LocatedModel {
    /// The model as a job names it.
    pub fn pin(&self) -> ModelPin {
        ModelPin { name: self.name.to_string(), source: self.source.clone(), commit: self.commit.clone() }
    }

    /// config.json, parsed.
    pub fn config(&self) -> Result<Map<String, Value>, LocateError> {
        files::read_json(&self.dir.join("config.json"))
    }

    /// The tokenizer's files.
    pub fn tokenizer(&self) -> Result<TokenizerFiles, LocateError> {
        TokenizerFiles::find(&self.dir).ok_or_else(|| no_tokenizer(&self.source, &self.source))
    }

    /// A further file beside config.json, such as `tokenizer_config.json`, if there is one.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.join(name)).filter(|path| path.is_file())
    }
}

/// Stage one: finds config and tokenizer, and fixes the commit.
pub fn locate_config(
    model: &ModelRef,
    hub: &HubOptions,
    progress: &mut Progress<'_>,
) -> Result<LocatedModel, LocateError> {
    let found = |source: &str, commit: String, dir: PathBuf, origin: Origin| LocatedModel {
        name: model.name.clone(),
        source: source.to_owned(),
        commit,
        dir,
        origin,
        reference: model.clone(),
    };
    match &model.source {
        Source::Directory(dir) => {
            let place = dir.display().to_string();
            if TokenizerFiles::find(dir).is_none() {
                return Err(no_tokenizer(&place, &place));
            }
            Ok(found(&place, files::fingerprint(dir)?, dir.clone(), Origin::Directory))
        }
        Source::Hub { repo, former_repos, revision } => {
            let repos = || std::iter::once(repo).chain(former_repos);
            let cached = || fullest_snapshot(repos(), revision, hub);
            let is_usable = |snapshot: &Snapshot| completeness(&snapshot.dir) >= Completeness::Tokenizer;
            let (Snapshot { commit, dir }, origin) = match cached() {
                Some(snapshot) if is_usable(&snapshot) => (snapshot, Origin::Cache),
                partial if hub.offline => return Err(not_cached(repos(), revision, hub, partial.as_ref())),
                _ => download::on_own_thread(|| {
                    let _lock = download::lock(repo, hub, progress)?;
                    // Whoever held the lock may have fetched it meanwhile.
                    match cached().filter(is_usable) {
                        Some(snapshot) => Ok((snapshot, Origin::Cache)),
                        None => Ok((download::config(repo, revision, hub, progress)?, Origin::Hub)),
                    }
                })?,
            };
            Ok(found(repo.as_str(), commit, dir, origin))
        }
    }
}

/// Stage two: the files of a located model's weights, each checked to be whole as far as its ends tell.
pub fn fetch_weights(
    model: &LocatedModel,
    hub: &HubOptions,
    progress: &mut Progress<'_>,
) -> Result<Vec<PathBuf>, LocateError> {
    let weights = match find_weights(model, hub)? {
        Found::Here(files) => files,
        Found::OnTheHub(repo) => download::on_own_thread(|| {
            let _lock = download::lock(repo, hub, progress)?;
            download::weights(repo, &model.commit, hub, progress)
        })?,
    };
    weights.iter().try_for_each(|path| files::check_weights_file(path))?;
    Ok(weights)
}

/// Whether [`fetch_weights`] would find weights that can be read, without fetching any.
pub fn check_weights(model: &LocatedModel, hub: &HubOptions) -> Result<(), LocateError> {
    match find_weights(model, hub)? {
        Found::Here(_) => Ok(()),
        Found::OnTheHub(repo) => {
            download::on_own_thread(|| download::weights_exist(repo, &model.commit, hub))
        }
    }
}

/// Where a located model's weights are.
enum Found<'a> {
    Here(Vec<PathBuf>),
    OnTheHub(&'a RepoId),
}

fn find_weights<'a>(model: &'a LocatedModel, hub: &HubOptions) -> Result<Found<'a>, LocateError> {
    let here = weights_in(&model.dir)?;
    if let Weights::Files(files) = here {
        return Ok(Found::Here(files));
    }
    let Source::Hub { repo, former_repos, .. } = &model.reference.source else {
        return Err(match here {
            Weights::ShardsMissing(names) => no_weights(&model.source, &names.join(", ")),
            Weights::Files(_) | Weights::None => no_weights(&model.source, files::NO_WEIGHTS),
        });
    };
    let repos = || std::iter::once(repo).chain(former_repos);
    for snapshot in repos().filter_map(|repo| CachedRepo::of(&hub.cache, repo).snapshot(&model.commit)) {
        if let Weights::Files(files) = weights_in(&snapshot.dir)? {
            return Ok(Found::Here(files));
        }
    }
    if !hub.offline {
        return Ok(Found::OnTheHub(repo));
    }
    let snapshot = Snapshot { commit: model.commit.clone(), dir: model.dir.clone() };
    Err(not_cached(repos(), &model.commit, hub, Some(&snapshot)))
}

/// The snapshot of `revision` that holds most: a cache may have the repo under its id of today and an older one.
fn fullest_snapshot<'a>(
    repos: impl Iterator<Item = &'a RepoId>,
    revision: &str,
    hub: &HubOptions,
) -> Option<Snapshot> {
    let snapshots = repos.filter_map(|repo| CachedRepo::of(&hub.cache, repo).snapshot(revision));
    snapshots.reduce(|best, next| if completeness(&next.dir) > completeness(&best.dir) { next } else { best })
}

/// How much of a model a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Completeness {
    Nothing,
    Config,
    Tokenizer,
    Weights,
}

fn completeness(dir: &Path) -> Completeness {
    if !dir.join("config.json").is_file() {
        Completeness::Nothing
    } else if TokenizerFiles::find(dir).is_none() {
        Completeness::Config
    } else if matches!(weights_in(dir), Ok(Weights::Files(_))) {
        Completeness::Weights
    } else {
        Completeness::Tokenizer
    }
}

fn not_cached<'a>(
    mut repos: impl Iterator<Item = &'a RepoId> + Clone,
    revision: &str,
    hub: &HubOptions,
    snapshot: Option<&Snapshot>,
) -> LocateError {
    let missing = match snapshot {
        Some(Snapshot { commit, dir }) => {
            let file = match completeness(dir) {
                Completeness::Nothing => "config.json",
                Completeness::Config => "tokenizer.json",
                Completeness::Tokenizer | Completeness::Weights => match weights_in(dir) {
                    Ok(Weights::ShardsMissing(names)) => &names.join(", "),
                    _ => files::NO_WEIGHTS,
                },
            };
            format!("snapshot {commit} has no {file}")
        }
        None => {
            let folders = repos.clone().map(|repo| CachedRepo::of(&hub.cache, repo).folder_name());
            format!("looked for {revision} in {}", folders.collect::<Vec<_>>().join(" and "))
        }
    };
    let others: Vec<String> =
        repos.clone().flat_map(|repo| CachedRepo::of(&hub.cache, repo).revisions()).collect();
    let repo = repos.next().expect("a model has a repo");
    let elsewhere = if snapshot.is_none() && !others.is_empty() {
        format!("; the cache has these revisions of it: {}", others.join(", "))
    } else {
        match &cache::repos_called(&hub.cache, repo.as_str())[..] {
            [] => String::new(),
            similar => format!("; the cache has {}, if you meant that", similar.join(" and ")),
        }
    };
    LocateError::NotCached { wanted: Wanted::new(repo, revision, hub), missing, elsewhere }
}

fn no_weights(place: &str, file: &str) -> LocateError {
    LocateError::NoSuchFile {
        place: place.to_owned(),
        file: file.to_owned(),
        advice: "save the model with transformers' save_pretrained, or finish its download".to_owned(),
    }
}

fn no_tokenizer(place: &str, python_source: &str) -> LocateError {
    LocateError::NoSuchFile {
        place: place.to_owned(),
        file: "tokenizer.json (nor vocab.json with merges.txt)".to_owned(),
        advice: format!(
            "make one with `python3 -c \"from transformers import AutoTokenizer as T; \
             T.from_pretrained('{python_source}').save_pretrained('with-tokenizer')\"`"
        ),
    }
}

#[cfg(test)]
mod tests;
