//! Removing what dead runs left behind: temporary files, and prompt directories made but never filled.
//!
//! The cost is that of the leftovers, not of the data directory: prompts are looked at only where the
//! intents file of a dead writer ([`super::intents`]) says that it may have been writing; besides, only
//! the save path and each model's directory are listed, which hold a handful of files each.
//!
//! Nothing of a live writer is touched. A writer on this machine is dead when its process is gone (the
//! process id and start time both count). One elsewhere cannot be asked: it is taken for dead when it
//! has announced nothing for [`GENEROUS`], and even then only files as old as that are removed. Ages are
//! by the clock of the file server: the time a freshly made file gets there.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use rayon::prelude::*;
use rustix::io::Errno;

use super::{
    commit::Store,
    durable::TempFile,
    error::{Context, Op, StoreError},
    intents::{self, Intent},
    layout::ModelName,
    writer::{Liveness, WriterId},
};

/// How long a writer elsewhere may be silent before it is taken for dead. A temporary file lives for
/// seconds; this leaves room for machines that were suspended.
pub const GENEROUS: Duration = Duration::from_secs(24 * 60 * 60);

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Temporary files removed.
    pub files: usize,
    /// Empty prompt directories removed.
    pub directories: usize,
    /// Dead writers whose traces are gone now.
    pub writers: usize,
    /// What could not be looked at or removed; the next sweep tries again.
    pub failures: Vec<StoreError>,
}

impl Swept {
    fn add(mut self, other: Swept) -> Swept {
        self.files += other.files;
        self.directories += other.directories;
        self.writers += other.writers;
        self.failures.extend(other.failures);
        self
    }

    fn failed(failure: StoreError) -> Swept {
        Swept { failures: vec![failure], ..Swept::default() }
    }
}

impl Store {
    /// Removes what dead runs left behind. Call it once when a run starts; nothing depends on it.
    pub fn sweep(&self) -> Swept {
        Sweep { store: self, oldest: OnceLock::new() }.run()
    }
}

struct Sweep<'a> {
    store: &'a Store,
    /// Files of writers elsewhere are removed when they are older than this, in seconds by the file
    /// server's clock. Asked for only when there is such a writer.
    oldest: OnceLock<Option<i64>>,
}

impl Sweep<'_> {
    fn run(self) -> Swept {
        if !self.store.layout().root().is_dir() {
            return Swept::default();
        }
        let announced = names(&self.store.layout().intents());
        let writers: Vec<(WriterId, PathBuf)> = announced
            .iter()
            .filter_map(|path| Some((WriterId::parse(name(path)?.strip_suffix(".jsonl")?)?, path.clone())))
            .collect();
        let swept = writers
            .into_iter()
            .filter(|(writer, path)| self.is_over(writer, path))
            .map(|(_, path)| self.writer(&path).unwrap_or_else(Swept::failed))
            .fold(Swept::default(), Swept::add);
        self.shared_places().iter().map(|dir| self.directory(dir).0).fold(swept, Swept::add)
    }

    /// Whether a file of `writer` at `path` is nobody's any more.
    fn is_over(&self, writer: &WriterId, path: &Path) -> bool {
        match writer.liveness() {
            Liveness::Alive => false,
            Liveness::Dead => true,
            Liveness::Elsewhere => match (self.oldest(), fs::symlink_metadata(path)) {
                (Some(oldest), Ok(meta)) => meta.mtime() < oldest,
                _ => false,
            },
        }
    }

    fn oldest(&self) -> Option<i64> {
        *self.oldest.get_or_init(|| {
            let root = self.store.layout().root();
            let file = TempFile::create(self.store.temp_path(root)).ok()?;
            let (now, _) = file.modified().ok()?;
            Some(now - GENEROUS.as_secs() as i64)
        })
    }

    /// Sweeps where a dead writer may have been writing, then forgets the writer.
    fn writer(&self, path: &Path) -> Result<Swept, StoreError> {
        let intents: Vec<Intent> = match intents::read(path) {
            Ok(intents) => intents,
            // Somebody else swept it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Swept::default()),
            Err(error) => return Err(error).on(Op::Read, path),
        };
        let layouts = intents.into_iter().flat_map(|Intent { model, hashes }| {
            let model = self.store.layout().model(&model);
            hashes.into_iter().map(move |hash| model.prompt(&hash))
        });
        let (mut swept, spared) = layouts
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|dir| {
                let (mut swept, spared) = self.directory(&dir);
                match fs::remove_dir(&dir) {
                    Ok(()) => swept.directories += 1,
                    Err(error) if is_expected(&error) => {}
                    Err(error) => swept.failures.push(StoreError::new(Op::Remove, dir, error)),
                }
                (swept, spared)
            })
            .reduce(Default::default, |(a, x), (b, y)| (a.add(b), x || y));
        if swept.failures.is_empty() && !spared {
            swept.writers += remove(path)?;
        }
        Ok(swept)
    }

    /// Removes the temporary files in `dir` that are nobody's; also says whether some were spared.
    fn directory(&self, dir: &Path) -> (Swept, bool) {
        let mut swept = Swept::default();
        let mut spared = false;
        for path in names(dir) {
            let Some(writer) = name(&path).and_then(WriterId::of_temp_name) else { continue };
            if !self.is_over(&writer, &path) {
                spared = true;
                continue;
            }
            match remove(&path) {
                Ok(removed) => swept.files += removed,
                Err(error) => swept.failures.push(error),
            }
        }
        (swept, spared)
    }

    /// The directories, few and small, in which files are replaced that many write.
    fn shared_places(&self) -> Vec<PathBuf> {
        let layout = self.store.layout();
        let mut places = vec![layout.root().to_owned(), layout.intents()];
        for path in names(layout.root()) {
            let model = name(&path).and_then(|name| ModelName::try_from(name).ok());
            places.extend(model.map(|model| layout.model(&model).dir()));
        }
        places
    }
}

/// What lies in a directory. One that is missing or no directory holds nothing.
fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Removes a file; 0 where somebody else did.
fn remove(path: &Path) -> Result<usize, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).on(Op::Remove, path),
    }
}

/// A directory that holds something, or that somebody else removed.
fn is_expected(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR))
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
