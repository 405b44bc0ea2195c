//! Files and directories that survive a power cut: the few primitives everything else is built on.
//!
//! Knows no prompt and no model. A file is written under a temporary name, made durable, renamed, and
//! then its directory is made durable; directories are made with their parents made durable.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{Timespec, Timestamps, futimens},
    io::Errno,
};

use super::error::{Context, Op, StoreError};

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let dir = File::open(path).on(Op::Sync, path)?;
    match dir.sync_all() {
        // Some network file systems have no fsync of directories: their renames are durable or nothing is.
        Err(error)
            if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NOTSUP | Errno::BADF)) =>
        {
            Ok(())
        }
        result => result.on(Op::Sync, path),
    }
}

/// Makes `path` and the directories above it where they are missing, each durable in its parent.
pub(crate) fn ensure_dir(path: &Path) -> Result<(), StoreError> {
    match fs::create_dir(path) {
        Ok(()) => parent(path).map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(above) = parent(path) else { return Err(error).on(Op::CreateDir, path) };
            ensure_dir(above)?;
            match fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => result.on(Op::CreateDir, path).and_then(|()| sync_dir(above)),
            }
        }
        Err(error) => Err(error).on(Op::CreateDir, path),
    }
}

/// The directory `path` lies in; "." for a bare name.
pub(crate) fn parent(path: &Path) -> Option<&Path> {
    path.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above })
}

/// A file under its temporary name; removed when it is dropped before [`TempFile::rename`].
#[derive(Debug)]
pub(crate) struct TempFile {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl TempFile {
    /// Makes the file; one of that name must not exist.
    pub(crate) fn create(path: PathBuf) -> Result<Self, StoreError> {
        let file =
            OpenOptions::new().write(true).read(true).create_new(true).open(&path).on(Op::Create, &path)?;
        Ok(TempFile { file, path, renamed: false })
    }

    /// Fills the file and makes its contents durable: NFS reports a full disk only here.
    pub(crate) fn fill<T>(
        &mut self,
        write: impl FnOnce(&mut File) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let value = write(&mut self.file).on(Op::Write, &self.path)?;
        self.file.sync_all().on(Op::Sync, &self.path)?;
        Ok(value)
    }

    /// When the file was last written, by the clock of the machine that keeps it.
    pub(crate) fn modified(&self) -> Result<(i64, i64), StoreError> {
        self.file.metadata().map(|meta| (meta.mtime(), meta.mtime_nsec())).on(Op::Stat, &self.path)
    }

    /// Sets that time. Best effort: a file system that refuses costs its readers some needless reading.
    pub(crate) fn set_modified(&self, (tv_sec, tv_nsec): (i64, i64)) {
        let now = Timespec { tv_sec, tv_nsec: tv_nsec as _ };
        let _ = futimens(&self.file, &Timestamps { last_access: now, last_modification: now });
    }

    /// Gives the file another temporary name in the same directory.
    pub(crate) fn move_to(&mut self, path: PathBuf) -> Result<(), StoreError> {
        self.rename_to(&path)?;
        self.path = path;
        Ok(())
    }

    /// Gives the file its final name in the same directory, replacing what is there.
    pub(crate) fn rename(mut self, target: &Path) -> Result<(), StoreError> {
        self.rename_to(target)?;
        self.renamed = true;
        Ok(())
    }

    fn rename_to(&self, target: &Path) -> Result<(), StoreError> {
        match fs::rename(&self.path, target) {
            // A retransmitted NFS rename finds its own work done and answers "no such file".
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_at(target) => Ok(()),
            result => result.on(Op::Rename, target),
        }
    }

    /// Whether `path` names this very file.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), fs::symlink_metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.renamed {
            // Best effort: the sweep of a later run finds what stays behind.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes one directory durable for many threads at once: those that ask while an fsync runs share the next one.
#[derive(Debug)]
pub(crate) struct SharedSync {
    path: PathBuf,
    state: Mutex<Rounds>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    finished: u64,
    running: bool,
}

impl SharedSync {
    pub(crate) fn new(path: PathBuf) -> Self {
        SharedSync { path, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Returns once an fsync that began after this call has succeeded.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let mut rounds = self.lock();
        // One that runs already may have missed what the caller just did.
        let wanted = rounds.started + 1;
        while rounds.finished < wanted {
            if rounds.running {
                rounds = self.changed.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            let this = rounds.started;
            drop(rounds);
            let result = sync_dir(&self.path);
            rounds = self.lock();
            rounds.running = false;
            if result.is_ok() {
                rounds.finished = this;
            }
            self.changed.notify_all();
            // The others that waited run their own, so that each reports its own failure.
            result?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn directories_are_made_all_the_way_and_twice_is_fine() {
        let tmp = tempfile::tempdir().unwrap();
        let deep = tmp.path().join("a/b/c");
        ensure_dir(&deep).unwrap();
        ensure_dir(&deep).unwrap();
        assert!(deep.is_dir());
    }

    #[test]
    fn a_file_in_the_way_of_a_directory_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("a"), "").unwrap();
        let error = ensure_dir(&tmp.path().join("a/b")).unwrap_err();
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("a file stands where a directory must be"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_renamed_leaves_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let mut file = TempFile::create(tmp.path().join("t")).unwrap();
        let error = file.fill(|_| Err::<(), _>(Errno::NOSPC.into())).unwrap_err();
        assert!(error.is_retryable());
        drop(file);
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_rename_that_was_done_already_counts_and_one_whose_file_vanished_does_not() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("t"), tmp.path().join("final"));
        let mut file = TempFile::create(from.clone()).unwrap();
        file.fill(|file| file.write_all(b"x")).unwrap();
        fs::rename(&from, &to).unwrap();
        file.rename(&to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"x");

        let other = TempFile::create(from.clone()).unwrap();
        fs::remove_file(&from).unwrap();
        let error = other.rename(&to).unwrap_err();
        assert_eq!((error.op, error.is_retryable()), (Op::Rename, true));
        assert_eq!(fs::read(&to).unwrap(), b"x");
    }

    #[test]
    fn a_shared_sync_serves_many_threads() {
        let tmp = tempfile::tempdir().unwrap();
        let shared = SharedSync::new(tmp.path().to_owned());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..20).for_each(|_| shared.sync().unwrap()));
            }
        });
        assert!(shared.lock().started <= 160);
        let gone = SharedSync::new(tmp.path().join("gone"));
        assert_eq!(gone.sync().unwrap_err().op, Op::Sync);
    }
}
