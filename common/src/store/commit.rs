//! One prompt's files: there whole, or not there.
//!
//! Each file is written under a temporary name in the prompt's directory, made durable, renamed, and
//! the directory made durable; the arrays first, prompt.json last. So a file under its final name is
//! always whole, prompt.json is never durable before the arrays are, and a kill or a power cut at any
//! moment leaves at most temporary files, which a later run sweeps ([`super::sweep`]).
//!
//! An fsync mostly waits: commit from several threads (four to eight reach the disk's own rate).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    durable::{self, SharedSync, TempFile},
    error::{Context, Op, StoreError},
    intents::{Announcement, Intents},
    layout::{self, ModelLayout, ModelName, PROMPT_JSON, SaveLayout},
    writer::WriterId,
};
use crate::{
    capture::{ArrayLayout, Capture, Dtype},
    job::RunId,
    prompt::PromptHash,
};

/// A data directory, opened by one run for writing. Nothing is written until there is something to write.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: SaveLayout,
    writer: WriterId,
    serial: AtomicU64,
    intents: Arc<Intents>,
}

impl Store {
    /// The data directory at `save_path`, written on behalf of `run`.
    pub fn new(save_path: impl Into<PathBuf>, run: &RunId) -> Self {
        let layout = SaveLayout::new(save_path);
        let writer = WriterId::this_process(run);
        let intents = Arc::new(Intents::new(&layout, &writer));
        Store { inner: Arc::new(Inner { layout, writer, serial: AtomicU64::new(0), intents }) }
    }

    /// Where things lie.
    pub fn layout(&self) -> &SaveLayout {
        &self.inner.layout
    }

    /// Who writes.
    pub fn writer(&self) -> &WriterId {
        &self.inner.writer
    }

    /// Makes ready to commit what `capture` keeps of a model with `n_layers` layers: its directories,
    /// and the marks that tell every later check to look into files rather than only at their names.
    pub fn model(
        &self,
        name: &ModelName,
        capture: &Capture,
        n_layers: usize,
    ) -> Result<ModelStore, StoreError> {
        let layout = self.inner.layout.model(name);
        let whole = capture.layers.indices(n_layers).len() == n_layers;
        if capture.layout == ArrayLayout::Stacked && !whole {
            let refusal = "a stacked array holds every layer, for its readers find a layer by its place; \
                           ask for all layers or do without --stacked-heads";
            let source = io::Error::new(io::ErrorKind::InvalidInput, refusal);
            return Err(StoreError::new(
                Op::Create,
                layout.prompts().join("*").join(layout::STACKED),
                source,
            ));
        }
        durable::ensure_dir(&layout.prompts())?;
        durable::ensure_dir(&layout.bookkeeping())?;
        if !whole {
            ensure_mark(&layout.partial_mark())?;
        }
        if capture.dtype == Dtype::Float16 {
            ensure_mark(&layout.float16_mark())?;
        }
        let parent = Arc::new(SharedSync::new(layout.prompts()));
        let array_name = layout::activations_name(capture.layout);
        Ok(ModelStore { store: self.clone(), layout, array_name, parent })
    }

    /// A name for a temporary file in `dir` that no other file has.
    pub(crate) fn temp_path(&self, dir: &Path) -> PathBuf {
        dir.join(self.inner.writer.temp_name(self.inner.serial.fetch_add(1, Ordering::Relaxed)))
    }

    /// A name under which a finished successor of `target` waits.
    pub(crate) fn ready_path(&self, target: &Path) -> PathBuf {
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        target.with_file_name(self.inner.writer.ready_name(&name, serial))
    }

    /// Replaces `target` by `contents`, whole or not at all, making its directory where it is missing.
    pub fn replace(&self, target: &Path, contents: &[u8]) -> Result<(), StoreError> {
        let dir = durable::parent(target).unwrap_or(Path::new("."));
        durable::ensure_dir(dir)?;
        let mut temp = TempFile::create(self.temp_path(dir))?;
        temp.fill(|file| file.write_all(contents))?;
        temp.rename(target)?;
        durable::sync_dir(dir)
    }
}

/// One model of a data directory, ready for commits from any number of threads.
#[derive(Clone, Debug)]
pub struct ModelStore {
    store: Store,
    layout: ModelLayout,
    array_name: &'static str,
    parent: Arc<SharedSync>,
}

/// What a commit wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Bytes of the file of arrays.
    pub array_bytes: u64,
    /// Bytes of prompt.json.
    pub json_bytes: u64,
}

impl ModelStore {
    /// Where things lie.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// Says, durably and before the first of them is committed, which prompts this process works on.
    /// One announcement a job costs one fsync; a commit without one makes its own. Keep it until the
    /// job is settled.
    pub fn announce(&self, hashes: Vec<PromptHash>) -> Result<Announcement, StoreError> {
        self.store.inner.intents.announce(self.layout.name(), hashes)
    }

    /// Commits one prompt. `arrays` writes the file of arrays and returns its length; `prompt_json` is
    /// prompt.json's text. When this returns `Ok`, both files are durable; when not, nothing new stands
    /// under a final name unless the arrays do already, which does not make the prompt count as cached.
    pub fn commit(
        &self,
        hash: &PromptHash,
        prompt_json: &[u8],
        arrays: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> Result<Committed, StoreError> {
        let intents = &self.store.inner.intents;
        let name = self.layout.name();
        let _own = if intents.covers(name, hash) { None } else { Some(self.announce(vec![hash.clone()])?) };

        let dir = self.layout.prompt(hash);
        let temps = [self.store.temp_path(&dir), self.store.temp_path(&dir)];
        let committed = self.put_both(&dir, &temps, prompt_json, arrays);
        if committed.is_err() && !temps.iter().all(|temp| is_missing(temp)) {
            intents.soil(name, hash);
        }
        committed
    }

    fn put_both(
        &self,
        dir: &Path,
        [array_temp, json_temp]: &[PathBuf; 2],
        prompt_json: &[u8],
        arrays: impl FnOnce(&mut File) -> io::Result<u64>,
    ) -> Result<Committed, StoreError> {
        let mut temp = create_in(dir, array_temp)?;
        let array_bytes = temp.fill(arrays)?;
        temp.rename(&dir.join(self.array_name))?;
        durable::sync_dir(dir)?;

        let mut temp = TempFile::create(json_temp.clone())?;
        temp.fill(|file| file.write_all(prompt_json))?;
        temp.rename(&dir.join(PROMPT_JSON))?;
        durable::sync_dir(dir)?;

        self.parent.sync()?;
        Ok(Committed { array_bytes, json_bytes: prompt_json.len() as u64 })
    }
}

/// Makes a temporary file in a prompt's directory, and the directory. A sweep elsewhere may remove the
/// directory while it is still empty: then it is made again.
fn create_in(dir: &Path, temp: &Path) -> Result<TempFile, StoreError> {
    const TRIES: usize = 10;
    for _ in 1..TRIES {
        match fs::create_dir(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => durable::ensure_dir(dir)?,
            Err(error) => return Err(error).on(Op::CreateDir, dir),
        }
        match TempFile::create(temp.to_owned()) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
    }
    TempFile::create(temp.to_owned())
}

/// Durably makes an empty file that only has to exist.
fn ensure_mark(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file.sync_all().on(Op::Sync, path)?,
        // Whoever made it may not have come to the fsync below yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).on(Op::Create, path),
    }
    durable::sync_dir(durable::parent(path).unwrap_or(Path::new(".")))
}

fn is_missing(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
