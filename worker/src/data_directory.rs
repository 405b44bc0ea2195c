//! The data directory as the pipeline's store: which files a prompt's arrays become, and when.
//!
//! How a file comes to be whole under its final name is `common::store`'s business.

use std::{
    collections::HashMap,
    io::{self, IoSlice, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use common::{
    capture::{ArrayLayout, Capture},
    job::{FailureKind, Job, JobPrompt, RunId},
    model::reference::ModelName,
    npz::{NpyHeader, write_npz},
    store::{CacheCheck, ModelStore, Store, StoreError, entries_to_keep},
};

use crate::serve::{Commit, CommitError, Hold, Part};

/// The data directories this process writes to, opened as jobs name them.
#[derive(Debug, Default)]
pub struct DataDirectory {
    opened: Mutex<HashMap<Key, Arc<Opened>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    save_path: PathBuf,
    run: RunId,
    model: String,
    capture: Capture,
}

#[derive(Debug)]
struct Opened {
    store: ModelStore,
    check: CacheCheck,
}

impl DataDirectory {
    /// The store of a job's model. Made at the first job that names it.
    fn of(&self, job: &Job) -> Result<Arc<Opened>, CommitError> {
        let key = Key {
            save_path: job.save_path.clone(),
            run: job.run.clone(),
            model: job.model.name.clone(),
            capture: job.capture.clone(),
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = opened.get(&key) {
            return Ok(Arc::clone(opened));
        }
        let name = ModelName::try_from(job.model.name.clone())
            .map_err(|error| CommitError { kind: FailureKind::Permanent, reason: error.to_string() })?;
        let n_layers = job.shape.n_layers;
        let store = Store::new(&job.save_path, &job.run).model(&name, &job.capture, n_layers)?;
        let check = CacheCheck::new(store.layout().clone(), &job.capture, n_layers);
        let new = Arc::new(Opened { store, check });
        opened.insert(key, Arc::clone(&new));
        Ok(new)
    }
}

impl Commit for DataDirectory {
    fn begin(&self, job: &Job, todo: &[usize]) -> Result<Hold, CommitError> {
        let hashes = todo.iter().map(|&index| job.prompts[index].hash.clone()).collect();
        Ok(Box::new(self.of(job)?.store.announce(hashes)?))
    }

    fn is_committed(&self, job: &Job, prompt: &JobPrompt) -> bool {
        self.of(job).is_ok_and(|opened| opened.check.is_cached(&prompt.hash).unwrap_or(false))
    }

    fn commit(
        &self,
        job: &Job,
        prompt: &JobPrompt,
        layers: &[usize],
        parts: Vec<Part>,
    ) -> Result<u64, CommitError> {
        let opened = self.of(job)?;
        let json = prompt.record.to_python_json();
        let committed = match job.capture.layout {
            ArrayLayout::PerLayer => {
                let mut entries: Vec<_> =
                    layers.iter().copied().zip(parts.into_iter().map(Part::entry)).collect();
                if layers.len() < job.shape.n_layers {
                    // Layers that an earlier run kept stay in the file.
                    let path = opened.store.layout().activations(&prompt.hash, ArrayLayout::PerLayer);
                    entries.extend(entries_to_keep(&path, layers)?);
                    entries.sort_by_key(|&(layer, _)| layer);
                }
                let entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
                opened.store.commit(&prompt.hash, json.as_bytes(), |file| write_npz(&entries, file))?
            }
            ArrayLayout::Stacked => {
                let n = prompt.ids.len();
                let shape = vec![1, layers.len(), job.shape.n_heads, n, n];
                let header = NpyHeader { dtype: job.capture.dtype, shape }.to_bytes();
                let values: Vec<_> = parts.into_iter().map(Part::values).collect();
                opened
                    .store
                    .commit(&prompt.hash, json.as_bytes(), |file| write_stacked(&header, &values, file))?
            }
        };
        Ok(committed.array_bytes)
    }
}

/// Writes an npy file from its header and its layers' bytes, without copying them together.
fn write_stacked(header: &[u8], values: &[Vec<u8>], out: &mut impl Write) -> io::Result<u64> {
    let mut slices: Vec<_> =
        std::iter::once(header).chain(values.iter().map(Vec::as_slice)).map(IoSlice::new).collect();
    let total = slices.iter().map(|slice| slice.len() as u64).sum();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match out.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        CommitError { kind: error.kind(), reason: error.to_string() }
    }
}
