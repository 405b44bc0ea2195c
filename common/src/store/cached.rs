//! Which prompts are committed already: those whose prompt.json and file of arrays both exist.
//!
//! Names are all that is looked at, as upstream does, unless files of this model may differ in what
//! they hold. That is so when a run asked for some of the layers or for half precision before (a mark
//! in the bookkeeping says so, made before the first such file) or when this one asks for some of the
//! layers. Then the npz's directory is read too: a small read at its end.
//!
//! The answer is advice. A file may appear at any time, and an NFS client may not see for a minute
//! what another one wrote; so a worker asks [`CacheCheck::is_cached`] again just before it computes.

use std::{
    collections::HashSet,
    ffi::CStr,
    fmt::Write as _,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rayon::prelude::*;
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use super::{
    error::{Context, Op, StoreError},
    held,
    layout::{self, ModelLayout, PROMPT_JSON},
};
use crate::{
    capture::{ArrayLayout, Capture, Dtype},
    prompt::PromptHash,
};

/// Fewer prompts than this are looked up one by one, whatever the directory's size.
const FEW: u64 = 64;
/// A listing reads about this many entries in the time of one lookup.
const ENTRIES_A_LOOKUP: u64 = 16;
/// What an entry takes in a directory, about, on the file systems that tell (ext4, XFS).
const BYTES_AN_ENTRY: u64 = 32;

/// Tells the committed prompts of one model from the others, for one capture.
#[derive(Debug)]
pub struct CacheCheck {
    model: ModelLayout,
    arrays: ArrayLayout,
    /// The layers asked for, ascending.
    layers: Vec<usize>,
    /// Whether these are all the model has.
    whole: bool,
    dtype: Dtype,
    /// How many prompts were asked for so far.
    asked: AtomicU64,
    listing: Mutex<Option<Listing>>,
}

/// Fingerprints of the names in the directory of prompts. A name taken for listed by accident is
/// looked up and found missing, so fingerprints do.
#[derive(Clone, Debug, Default)]
struct Listing {
    names: std::sync::Arc<HashSet<u64>>,
    hasher: RandomState,
}

impl Listing {
    fn may_hold(&self, hash: &PromptHash) -> bool {
        self.names.contains(&self.hasher.hash_one(hash.as_str().as_bytes()))
    }
}

/// What has to be read inside a file of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    layers: bool,
    dtype: bool,
}

impl CacheCheck {
    /// A check for what `capture` keeps of the model in `model`, which has `n_layers` layers.
    pub fn new(model: ModelLayout, capture: &Capture, n_layers: usize) -> Self {
        let layers = capture.layers.indices(n_layers);
        CacheCheck {
            model,
            arrays: capture.layout,
            whole: layers.len() == n_layers,
            layers,
            dtype: capture.dtype,
            asked: AtomicU64::new(0),
            listing: Mutex::default(),
        }
    }

    /// For each prompt, whether it is committed. May be called for one part of the prompts after the
    /// other; the directory is listed at most once.
    pub fn check(&self, hashes: &[PromptHash]) -> Result<Vec<bool>, StoreError> {
        let path = self.model.prompts();
        let Some(dir) = open_dir(CWD, &path)? else { return Ok(vec![false; hashes.len()]) };
        let look = self.look()?;
        let listing = self.listing(&dir, &path, hashes.len())?;
        hashes
            .par_iter()
            .with_min_len(64)
            .map_init(String::new, |name, hash| {
                if listing.as_ref().is_some_and(|listing| !listing.may_hold(hash)) {
                    return Ok(false);
                }
                self.is_there(&dir, hash, name, look)
            })
            .collect()
    }

    /// Splits `items` into committed ones and ones to do, each in the order they came.
    pub fn partition<T>(
        &self,
        items: Vec<T>,
        hash: impl Fn(&T) -> &PromptHash,
    ) -> Result<(Vec<T>, Vec<T>), StoreError> {
        let hashes: Vec<PromptHash> = items.iter().map(|item| hash(item).clone()).collect();
        let cached = self.check(&hashes)?;
        let mut done = Vec::new();
        let mut todo = Vec::new();
        for (item, cached) in items.into_iter().zip(cached) {
            if cached { done.push(item) } else { todo.push(item) }
        }
        Ok((done, todo))
    }

    /// Whether one prompt is committed now. The directories on the way are opened anew, which makes an
    /// NFS client ask the server instead of its cache of missing names.
    pub fn is_cached(&self, hash: &PromptHash) -> Result<bool, StoreError> {
        let Some(prompts) = open_dir(CWD, &self.model.prompts())? else { return Ok(false) };
        if open_dir(&prompts, Path::new(hash.as_str()))?.is_none() {
            return Ok(false);
        }
        self.is_there(&prompts, hash, &mut String::new(), self.look()?)
    }

    fn is_there(
        &self,
        dir: &OwnedFd,
        hash: &PromptHash,
        name: &mut String,
        look: Look,
    ) -> Result<bool, StoreError> {
        for file in [PROMPT_JSON, layout::activations_name(self.arrays)] {
            name.clear();
            let _ = write!(name, "{hash}/{file}");
            let stat = match rustix::fs::statat(dir, name.as_str(), AtFlags::empty()) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
                Err(errno) => return Err(errno).on(Op::Stat, self.model.prompts().join(name.as_str())),
            };
            // An empty file is nobody's whole file: a program that writes in place was killed there.
            if !FileType::from_raw_mode(stat.st_mode).is_file() || stat.st_size == 0 {
                return Ok(false);
            }
        }
        let dtype = look.dtype.then_some(self.dtype);
        let path = || self.model.activations(hash, self.arrays);
        match self.arrays {
            ArrayLayout::PerLayer if look.layers || look.dtype => held::holds(&path(), &self.layers, dtype),
            ArrayLayout::Stacked if look.dtype => held::array_is(&path(), self.dtype),
            _ => Ok(true),
        }
    }

    /// What the marks and the request say must be read. Looked up each time: another run may have made
    /// a mark since.
    fn look(&self) -> Result<Look, StoreError> {
        let marked = |path: &Path| match fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(error) => Err(error).on(Op::Stat, path),
        };
        Ok(Look {
            layers: !self.whole || marked(&self.model.partial_mark())?,
            // Half precision is satisfied by either type.
            dtype: self.dtype == Dtype::Float32 && marked(&self.model.float16_mark())?,
        })
    }

    /// The listing, made once it pays: a lookup of a missing name is a round trip on NFS, a listing is
    /// a round trip for many names.
    fn listing(&self, dir: &OwnedFd, path: &Path, wanted: usize) -> Result<Option<Listing>, StoreError> {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = self.asked.fetch_add(wanted as u64, Ordering::Relaxed) + wanted as u64;
        if listing.is_none() {
            let size = rustix::fs::fstat(dir).on(Op::Stat, path)?.st_size;
            let entries = u64::try_from(size).unwrap_or(0) / BYTES_AN_ENTRY;
            if asked >= FEW && asked * ENTRIES_A_LOOKUP >= entries {
                *listing = Some(list(dir, path)?);
            }
        }
        Ok(listing.clone())
    }
}

fn list(dir: &OwnedFd, path: &Path) -> Result<Listing, StoreError> {
    let hasher = RandomState::new();
    let mut names = HashSet::new();
    for entry in Dir::read_from(dir).on(Op::List, path)? {
        let entry = entry.on(Op::List, path)?;
        names.insert(hasher.hash_one(CStr::to_bytes(entry.file_name())));
    }
    Ok(Listing { names: std::sync::Arc::new(names), hasher })
}

/// Opens a directory; none where it is missing.
fn open_dir(at: impl std::os::fd::AsFd, path: &Path) -> Result<Option<OwnedFd>, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(at, path, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).on(Op::List, path),
    }
}

#[cfg(test)]
#[path = "cached_tests.rs"]
mod tests;
