//! Downloads into the hub cache, through hf-hub.
//!
//! hf-hub 1.0 does the talking, the cache's layout and its locks. What it leaves to its caller is here:
//! it waits for ever on a silent server, stores whatever body a failed GET sends, does not check what
//! arrived, and removes and remakes links and refs under the eyes of others. So every transfer has a
//! deadline that each new byte puts off, is compared with the announced length and, where the hub gives
//! one, the SHA-256, is tried again when the connection breaks, and runs under a lock per repo.
//! A broken transfer starts from the beginning of its file; files that are there are not fetched again.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel, split_id};
use tokio::{runtime::Runtime, sync::mpsc::unbounded_channel};

use super::{
    Progress,
    cache::{CachedRepo, Snapshot},
    error::{LocateError, Wanted},
    files::{self, FORMATS, NO_WEIGHTS, TOKENIZER_EXTRAS},
    no_tokenizer, no_weights,
    transfer::{Failure, Forward, verify, watch},
};
use crate::model::{hub::HubOptions, reference::RepoId};

/// How often a transfer that broke is tried in all.
const TRIES: u32 = 4;

/// What a download reports as it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchEvent<'a> {
    /// Bytes of a file have arrived.
    Bytes {
        /// The file.
        file: &'a str,
        /// So far.
        done: u64,
        /// In all; 0 if the hub did not say.
        total: u64,
    },
    /// Another process downloads into the same place of the cache.
    Waiting {
        /// The file, or the repo.
        file: &'a str,
    },
    /// The transfer broke and starts again.
    Retry {
        /// The file.
        file: &'a str,
        /// Why.
        cause: &'a str,
    },
    /// All bytes have arrived and are compared with what the hub announced.
    Verifying {
        /// The file.
        file: &'a str,
    },
    /// A file is in the cache.
    Done {
        /// The file.
        file: &'a str,
    },
}

impl FetchEvent<'_> {
    /// Says it in the log, where a user should hear of it.
    pub fn tell(&self) {
        match self {
            FetchEvent::Waiting { file } => {
                tracing::info!("waiting for {file}: another process is fetching it");
            }
            FetchEvent::Retry { file, cause } => tracing::warn!("fetching {file} again: {cause}"),
            FetchEvent::Done { file } => tracing::info!("fetched {file}"),
            _ => {}
        }
    }
}

/// Runs `work` where it may block on a runtime of its own, which a thread of an async runtime may not.
pub(super) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("model-download".to_owned());
        let thread = thread.spawn_scoped(scope, work).expect("a thread can be started");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes the lock that keeps lenspool's processes from writing one repo's cache folder at once. It ends with
/// the file's closing, so with the process at the latest.
pub(super) fn lock(
    repo: &RepoId,
    hub: &HubOptions,
    progress: &mut Progress<'_>,
) -> Result<Option<File>, LocateError> {
    let dir = hub.cache.join(".locks").join(CachedRepo::of(&hub.cache, repo).folder_name());
    let path = dir.join("lenspool.lock");
    let file = std::fs::create_dir_all(&dir).and_then(|()| File::create(&path));
    let file = file.map_err(files::io_error(&path))?;
    let mut waited = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut waited, true) {
                    (progress)(FetchEvent::Waiting { file: repo.as_str() });
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            // Some cluster file systems have no locks; one process at a time is then the user's care.
            Err(TryLockError::Error(error)) => {
                tracing::warn!("cannot lock {}: {error}; fetching {repo} without a lock", path.display());
                return Ok(None);
            }
        }
    }
}

/// Fetches config and tokenizer of `revision`, as far as they are not in the cache.
pub(super) fn config(
    repo: &RepoId,
    revision: &str,
    hub: &HubOptions,
    progress: &mut Progress<'_>,
) -> Result<Snapshot, LocateError> {
    let mut session = Session::open(repo, revision, hub, progress)?;
    let Some(config) = session.fetch(revision, "config.json")? else {
        return Err(session.why_nothing(revision));
    };
    let dir = config.parent().unwrap_or(Path::new("")).to_owned();
    let commit = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if session.fetch(&commit, "tokenizer.json")?.is_none() {
        let vocab = session.fetch(&commit, "vocab.json")?;
        if vocab.is_none() || session.fetch(&commit, "merges.txt")?.is_none() {
            return Err(no_tokenizer(repo.as_str(), repo.as_str()));
        }
    }
    for file in TOKENIZER_EXTRAS {
        session.fetch(&commit, file)?;
    }
    Ok(Snapshot { commit, dir })
}

/// Fetches the weights of `commit`, as far as they are not in the cache.
pub(super) fn weights(
    repo: &RepoId,
    commit: &str,
    hub: &HubOptions,
    progress: &mut Progress<'_>,
) -> Result<Vec<PathBuf>, LocateError> {
    let mut session = Session::open(repo, commit, hub, progress)?;
    for format in &FORMATS {
        if let Some(file) = session.fetch(commit, format.single)? {
            return Ok(vec![file]);
        }
        let Some(index) = session.fetch(commit, format.index)? else { continue };
        let mut shards = Vec::new();
        for name in files::shards_in(&index, format)? {
            shards.push(session.fetch(commit, &name)?.ok_or_else(|| no_weights(repo.as_str(), &name))?);
        }
        return Ok(shards);
    }
    Err(no_weights(repo.as_str(), NO_WEIGHTS))
}

/// Whether `commit` has weights that can be read.
pub(super) fn weights_exist(repo: &RepoId, commit: &str, hub: &HubOptions) -> Result<(), LocateError> {
    let mut silent = |_: FetchEvent<'_>| {};
    let session = Session::open(repo, commit, hub, &mut silent)?;
    let files = session.list(commit)?;
    let names = FORMATS.map(|format| [format.single, format.index]).concat();
    let weights = files.iter().any(|file| names.contains(&file.as_str()));
    if weights { Ok(()) } else { Err(no_weights(repo.as_str(), NO_WEIGHTS)) }
}

/// A conversation with the hub about one repo.
struct Session<'a, 'p> {
    repo: &'a RepoId,
    /// As asked for, for errors.
    revision: &'a str,
    hub: &'a HubOptions,
    progress: &'a mut Progress<'p>,
    remote: HFRepository<RepoTypeModel>,
    /// In an Option so that drop can leave without waiting for a thread that hangs on a lock.
    runtime: Option<Runtime>,
}

impl Drop for Session<'_, '_> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl<'a, 'p> Session<'a, 'p> {
    fn open(
        repo: &'a RepoId,
        revision: &'a str,
        hub: &'a HubOptions,
        progress: &'a mut Progress<'p>,
    ) -> Result<Self, LocateError> {
        let failed = |cause: String| LocateError::Download {
            file: "anything".to_owned(),
            wanted: Wanted::new(repo, revision, hub),
            cause,
        };
        let mut client = HFClient::builder()
            .endpoint(&hub.endpoint)
            .cache_dir(&hub.cache)
            .user_agent(concat!("lenspool/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(2)
            .retry_base_delay(Duration::from_millis(200));
        if let Some(token) = &hub.token {
            client = client.token(token.reveal());
        }
        let client = client.build().map_err(|error| failed(error.to_string()))?;
        let (owner, name) = split_id(repo.as_str());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        let remote = client.model(owner, name);
        Ok(Session { repo, revision, hub, progress, remote, runtime: Some(runtime) })
    }

    /// Fetches a file into the cache, unless it is there; none if the repo has no such file.
    fn fetch(&mut self, revision: &str, file: &str) -> Result<Option<PathBuf>, LocateError> {
        let mut tried = 0;
        loop {
            let (error, again) = match self.try_once(revision, file) {
                Ok(path) => {
                    (self.progress)(FetchEvent::Done { file });
                    return Ok(Some(path));
                }
                Err(Failure::Hub(HFError::EntryNotFound { .. })) => return Ok(None),
                // Its holder is at work: the kernel drops the lock of a process that ended.
                Err(Failure::Hub(HFError::CacheLockTimeout { .. })) => {
                    (self.progress)(FetchEvent::Waiting { file });
                    continue;
                }
                Err(Failure::Hub(error)) => {
                    let again = breaks_off(&error);
                    (self.explain(file, error), again)
                }
                Err(Failure::Silent) => {
                    let cause = format!("no answer for {} seconds", self.hub.patience.as_secs());
                    (self.unreachable(file, cause), false)
                }
                Err(Failure::Torn(cause)) => (self.broken(file, cause), true),
            };
            tried += 1;
            if !again || tried == TRIES {
                return Err(error);
            }
            (self.progress)(FetchEvent::Retry { file, cause: &error.to_string() });
        }
    }

    fn try_once(&mut self, revision: &str, file: &str) -> Result<PathBuf, Failure> {
        let (sender, events) = unbounded_channel();
        let transfer = self.remote.download_file().filename(file).revision(revision);
        let transfer = transfer.progress(Forward(sender)).send();
        let runtime = self.runtime.as_ref().expect("it is taken on drop only");
        let (path, announced) =
            runtime.block_on(watch(transfer, events, self.hub.patience, |done, total| {
                (self.progress)(FetchEvent::Bytes { file, done, total });
            }))?;
        match announced {
            Some(bytes) => {
                (self.progress)(FetchEvent::Verifying { file });
                verify(&path, bytes).map(|()| path)
            }
            None => Ok(path),
        }
    }

    /// The names of a commit's files.
    fn list(&self, commit: &str) -> Result<Vec<String>, LocateError> {
        let runtime = self.runtime.as_ref().expect("it is taken on drop only");
        let request = self.remote.info().revision(commit).send();
        let answer = runtime.block_on(async { tokio::time::timeout(self.hub.patience, request).await });
        match answer {
            Ok(Ok(info)) => {
                Ok(info.siblings.into_iter().flatten().map(|sibling| sibling.rfilename).collect())
            }
            Ok(Err(error)) => Err(self.explain("the list of files", error)),
            Err(_) => {
                let cause = format!("no answer for {} seconds", self.hub.patience.as_secs());
                Err(self.unreachable("the list of files", cause))
            }
        }
    }

    /// Why config.json is not to be had: no repo, no revision, or really no such file.
    fn why_nothing(&self, revision: &str) -> LocateError {
        match self.list(revision) {
            Ok(_) => LocateError::NoSuchFile {
                place: self.repo.to_string(),
                file: "config.json".to_owned(),
                advice: "it is not a model as transformers saves it".to_owned(),
            },
            Err(error) => error,
        }
    }

    fn wanted(&self) -> Box<Wanted> {
        Wanted::new(self.repo, self.revision, self.hub)
    }

    fn unreachable(&self, file: &str, cause: String) -> LocateError {
        LocateError::Unreachable { file: file.to_owned(), wanted: self.wanted(), cause }
    }

    fn broken(&self, file: &str, cause: String) -> LocateError {
        LocateError::Download { file: file.to_owned(), wanted: self.wanted(), cause }
    }

    fn explain(&self, file: &str, error: HFError) -> LocateError {
        let (endpoint, repo, wanted) = (&self.hub.endpoint, self.repo, self.wanted());
        match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                let said = context.server_message.as_deref().map(|text| format!(": {text}"));
                let advice = match &self.hub.token {
                    // The hub answers so for a repo that does not exist, too.
                    None => format!(
                        "check the spelling, accept the model's terms at {endpoint}/{repo} if it has any, and set \
                         HF_TOKEN or run `hf auth login`"
                    ),
                    Some(_) => format!(
                        "check the spelling, and that the token in use (HF_TOKEN or `hf auth login`) belongs to an \
                         account that accepted the model's terms at {endpoint}/{repo}"
                    ),
                };
                let (status, detail) = (context.status.as_u16(), said.unwrap_or_default());
                LocateError::Denied { wanted, status, detail, advice }
            }
            HFError::RepoNotFound { .. } => LocateError::NoSuchRepo { wanted },
            HFError::RevisionNotFound { context, .. } => {
                let code = context.and_then(|context| context.error_code);
                if code.as_deref() == Some("RepoNotFound") {
                    LocateError::NoSuchRepo { wanted }
                } else {
                    LocateError::NoSuchRevision { wanted }
                }
            }
            HFError::Request { source, .. } if source.is_connect() || source.is_timeout() => {
                self.unreachable(file, root_cause(&source))
            }
            HFError::Request { source, .. } => self.broken(file, root_cause(&source)),
            other => self.broken(file, other.to_string()),
        }
    }
}

/// Whether the same request may well succeed if made again at once.
fn breaks_off(error: &HFError) -> bool {
    match error {
        HFError::Request { source, .. } => !source.is_connect() && !source.is_builder(),
        HFError::Xet { .. } => true,
        _ => false,
    }
}

/// The innermost error: the outer ones repeat the address.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
