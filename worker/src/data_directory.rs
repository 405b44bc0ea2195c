//! The data directory as the pipeline's store: which files a prompt's arrays become, and when.
//!
//! How a file comes to be whole under its final name is `common::store`'s business.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, IoSlice, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    capture::{ArrayLayout, Capture},
    job::{FailureKind, Job, JobPrompt, Outcome, RunId},
    model::reference::ModelName,
    npz::{Entry, NpyHeader, write_all_vectored, write_npz},
    queue::Attempt,
    store::{CacheCheck, Event, ModelStore, Store, StoreError, entries_to_keep},
};

use crate::{
    consume::{Guard, RunJournal},
    serve::{Admission, Commit, CommitError, Hold, JobEnd, Part},
};

/// The data directories this process writes to, opened as jobs name them.
#[derive(Debug, Default)]
pub struct DataDirectory {
    opened: Mutex<HashMap<Key, Arc<Opened>>>,
    /// Where jobs come from others: whose are accepted.
    guard: Option<Guard>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    save_path: PathBuf,
    run: RunId,
    model: String,
    capture: Capture,
}

impl Key {
    fn of(job: &Job) -> Key {
        Key {
            save_path: job.save_path.clone(),
            run: job.run.clone(),
            model: job.model.name.clone(),
            capture: job.capture.clone(),
        }
    }
}

#[derive(Debug)]
struct Opened {
    store: ModelStore,
    check: CacheCheck,
    /// What this worker did, where others want to know.
    journal: Option<RunJournal>,
}

impl DataDirectory {
    /// Accepts jobs only as `guard` says, and keeps a journal of what becomes of them.
    pub fn guarded(guard: Guard) -> Self {
        DataDirectory { opened: Mutex::default(), guard: Some(guard) }
    }

    /// The store of a job's model, where it is open.
    fn known(&self, job: &Job) -> Option<Arc<Opened>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.get(&Key::of(job)).map(Arc::clone)
    }

    /// The store of a job's model. Made at the first job that names it.
    fn of(&self, job: &Job) -> Result<Arc<Opened>, CommitError> {
        let key = Key::of(job);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = opened.get(&key) {
            return Ok(Arc::clone(opened));
        }
        let name = ModelName::try_from(job.model.name.clone())
            .map_err(|error| CommitError { kind: FailureKind::Permanent, reason: error.to_string() })?;
        let n_layers = job.shape.n_layers;
        let directory = Store::new(&job.save_path, &job.run);
        if self.guard.is_some() {
            // Once a run and worker: what dead workers left behind costs room until somebody looks.
            for failure in directory.sweep().failures {
                tracing::warn!("what a dead worker left behind stays for now: {failure}");
            }
        }
        let store = directory.model(&name, &job.capture, n_layers)?;
        let check = CacheCheck::new(store.layout().clone(), &job.capture, n_layers);
        let journal = self.guard.as_ref().map(|_| RunJournal::new(&directory, store.layout(), &job.run));
        let new = Arc::new(Opened { store, check, journal });
        opened.insert(key, Arc::clone(&new));
        Ok(new)
    }
}

impl Commit for DataDirectory {
    fn admit(&self, job: &Job) -> Result<Admission, CommitError> {
        self.guard.as_ref().map_or(Ok(Admission::Welcome), |guard| guard.admit(job))
    }

    fn settling(&self, job: &Job, attempt: Attempt, outcome: &Outcome, how: JobEnd) {
        // A job that was refused has no place to note anything in.
        if let Some(opened) = self.known(job)
            && let Some(journal) = &opened.journal
        {
            journal.settling(job, attempt, outcome, how);
        }
    }

    fn begin(&self, job: &Job, todo: &[usize]) -> Result<Hold, CommitError> {
        let hashes = todo.iter().map(|&index| job.prompts[index].hash.clone()).collect();
        Ok(Box::new(self.of(job)?.store.announce(hashes)?))
    }

    fn is_committed(&self, job: &Job, prompt: &JobPrompt) -> bool {
        let Ok(opened) = self.of(job) else { return false };
        let cached = opened.check.is_cached(&prompt.hash).unwrap_or(false);
        if let (true, Some(journal)) = (cached, &opened.journal) {
            journal.note(Event::Cached { hash: prompt.hash.clone() });
        }
        cached
    }

    fn commit(
        &self,
        job: &Job,
        prompt: &JobPrompt,
        layers: &[usize],
        parts: &mut Vec<Part>,
    ) -> Result<u64, CommitError> {
        let opened = self.of(job)?;
        let json = prompt.record.to_python_json();
        let taken = std::mem::take(parts);
        let bytes = match job.capture.layout {
            ArrayLayout::PerLayer => {
                let mut entries: Vec<_> =
                    layers.iter().copied().zip(taken.into_iter().map(Part::entry)).collect();
                let committed = opened.commit_layers(job, prompt, &mut entries, json.as_bytes());
                parts.extend(entries.into_iter().map(|(_, entry)| Part::Entry(entry)));
                committed?
            }
            ArrayLayout::Stacked => {
                let n = prompt.ids.len();
                let shape = vec![1, layers.len(), job.shape.n_heads, n, n];
                let header = NpyHeader { dtype: job.capture.dtype, shape }.to_bytes();
                let values: Vec<_> = taken.into_iter().map(Part::values).collect();
                let write = |file: &mut File| write_stacked(&header, &values, file);
                opened.store.commit(&prompt.hash, json.as_bytes(), write)?.array_bytes
            }
        };
        if let Some(journal) = &opened.journal {
            journal.note(Event::Committed { hash: prompt.hash.clone(), bytes });
        }
        Ok(bytes)
    }
}

impl Opened {
    /// Commits one array a layer. Layers that another run keeps of the same prompt stay in the file: where
    /// some only were asked for, the file that is there is read, and read again where it was replaced meanwhile.
    fn commit_layers(
        &self,
        job: &Job,
        prompt: &JobPrompt,
        layers: &mut Vec<(usize, Entry)>,
        json: &[u8],
    ) -> Result<u64, CommitError> {
        let some_only = layers.len() < job.shape.n_layers;
        let path = self.store.layout().activations(&prompt.hash, ArrayLayout::PerLayer);
        let own: Vec<usize> = layers.iter().map(|&(layer, _)| layer).collect();
        let mut tries = 0;
        loop {
            tries += 1;
            let before = if some_only { identity(&path) } else { None };
            layers.retain(|(layer, _)| own.contains(layer));
            if some_only {
                layers.extend(entries_to_keep(&path, &own)?);
                layers.sort_by_key(|&(layer, _)| layer);
            }
            let entries: Vec<&Entry> = layers.iter().map(|(_, entry)| entry).collect();
            let mut replaced = false;
            let written = self.store.commit(&prompt.hash, json, |file| {
                let bytes = write_npz(&entries, file)?;
                // Only an fsync and the rename come after this. Who replaces the file within that time wins, and
                // the layer that is gone counts as not cached: it is computed again, never taken for there.
                replaced = some_only && tries < TRIES && identity(&path) != before;
                if replaced { Err(io::Error::other("another run replaced the file")) } else { Ok(bytes) }
            });
            match written {
                Err(_) if replaced => {}
                written => return Ok(written?.array_bytes),
            }
        }
    }
}

/// How often a file that others keep replacing is read again.
const TRIES: usize = 20;

/// Which file is under a name now; none where there is none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Writes an npy file from its header and its layers' bytes, without copying them together.
fn write_stacked(header: &[u8], values: &[Vec<u8>], out: &mut impl Write) -> io::Result<u64> {
    let mut slices: Vec<_> =
        std::iter::once(header).chain(values.iter().map(Vec::as_slice)).map(IoSlice::new).collect();
    let total = slices.iter().map(|slice| slice.len() as u64).sum();
    write_all_vectored(&mut slices, out)?;
    Ok(total)
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        // Another worker may be let in. This one leaves once its storage has failed often enough in a row.
        let kind = if error.is_of_this_machine() { FailureKind::Retryable } else { error.kind() };
        CommitError { kind, reason: error.to_string() }
    }
}
