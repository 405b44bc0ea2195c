//! Replacing a file that several processes replace, without a file lock, so that no one's lines are lost.
//!
//! Each writer reads the file, builds its successor beside it, and renames that into place only if the
//! file is still the one it read. Between that look and the rename another writer could come in; so a
//! writer first takes away every rival's finished successor:
//!
//! 1. the successor is written, made durable, and given a *ready* name;
//! 2. every other ready file for the same target is unlinked: its writer's rename will fail;
//! 3. is the target still the file that was read? If not, begin again;
//! 4. the ready file is renamed into place; if it is gone, a rival took it away: begin again.
//!
//! Were A's rename to undo B's, B's would have come after A's step 3. Whichever of the two ready files
//! was made first was seen and unlinked by the other's step 2, so that one of the renames had nothing to
//! rename. Two rivals may both have to begin again; random pauses part them.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use super::{
    commit::Store,
    durable::{self, TempFile},
    error::{Context, Op, StoreError},
    writer::READY_PREFIX,
};

/// Beginning again this often, with pauses, takes most of a minute.
const TRIES: u32 = 200;

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// A successor took its place.
    Yes,
    /// It already said what it should.
    Unneeded,
}

/// The file a successor is built from, held open so that its inode number cannot be given to another.
#[derive(Debug)]
pub(crate) struct Base {
    file: Option<File>,
    version: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Base {
    /// Opens the file: on NFS that makes the client ask the server, which a mere stat does not.
    fn open(path: &Path) -> Result<Self, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Base { file: None, version: None });
            }
            Err(error) => return Err(error).on(Op::Read, path),
        };
        let meta = file.metadata().on(Op::Stat, path)?;
        let version = Version {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        };
        Ok(Base { file: Some(file), version: Some(version) })
    }

    /// The file, or none where there is none yet.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// When it was last written (for a successor of ours: when its writer began to look), seconds and nanoseconds.
    pub(crate) fn modified(&self) -> Option<(i64, i64)> {
        self.version.map(|version| version.modified)
    }
}

/// Replaces `target` by what `build` writes, given the file as it is. `build` returns
/// [`Replaced::Unneeded`] where it is right already, and is called again whenever another writer came
/// in between.
pub(crate) fn replace(
    store: &Store,
    target: &Path,
    mut build: impl FnMut(&Base, &mut BufWriter<&mut File>) -> Result<Replaced, StoreError>,
) -> Result<Replaced, StoreError> {
    let dir = durable::parent(target).unwrap_or(Path::new("."));
    durable::ensure_dir(dir)?;
    for attempt in 0..TRIES {
        let base = Base::open(target)?;
        let mut temp = TempFile::create(store.temp_path(dir))?;
        // By the clock of the file server, like the times it is compared with.
        let began = temp.modified()?;
        let mut built = Replaced::Unneeded;
        let outcome = temp.fill(|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            built = match build(&base, &mut out) {
                Ok(built) => built,
                Err(error) => return Ok(Err(error)),
            };
            out.flush().map(Ok)
        })?;
        outcome?;
        if built == Replaced::Unneeded {
            return Ok(built);
        }
        // Whatever changes from here on is newer than the successor says it is.
        temp.set_modified(began);
        let ready = store.ready_path(target);
        temp.move_to(ready.clone())?;
        disarm_rivals(dir, target, &ready)?;
        if Base::open(target)?.version == base.version {
            match temp.rename(target) {
                Ok(()) => return durable::sync_dir(dir).map(|()| built),
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        pause(attempt);
    }
    let told = "other processes kept replacing it at the same time";
    Err(StoreError::new(Op::Rename, target, io::Error::new(io::ErrorKind::WouldBlock, told)))
}

/// Unlinks every other finished successor of `target`.
fn disarm_rivals(dir: &Path, target: &Path, own: &Path) -> Result<(), StoreError> {
    let prefix = format!("{READY_PREFIX}{}.", target.file_name().unwrap_or_default().to_string_lossy());
    for entry in fs::read_dir(dir).on(Op::List, dir)? {
        let entry = entry.on(Op::List, dir)?;
        if !entry.file_name().to_string_lossy().starts_with(&prefix) || entry.path() == own {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).on(Op::Remove, entry.path());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Waits a random time, longer after more attempts.
fn pause(attempt: u32) {
    let longest = 1000 * u64::from(attempt.min(200) + 1);
    std::thread::sleep(Duration::from_micros(rand::random::<u64>() % longest));
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::job::RunId;

    fn store(root: &Path) -> Store {
        Store::new(root, &RunId("r".to_owned()))
    }

    /// Adds a line to those that are there.
    fn add(store: &Store, target: &Path, line: &str) -> Result<Replaced, StoreError> {
        replace(store, target, |base, out| {
            let mut text = String::new();
            if let Some(mut file) = base.file() {
                file.read_to_string(&mut text).on(Op::Read, target)?;
            }
            if text.lines().any(|there| there == line) {
                return Ok(Replaced::Unneeded);
            }
            writeln!(out, "{text}{line}").on(Op::Write, target)?;
            Ok(Replaced::Yes)
        })
    }

    #[test]
    fn the_first_writer_makes_the_file_and_a_needless_one_leaves_it() {
        let tmp = tempfile::tempdir().unwrap();
        let (store, target) = (store(tmp.path()), tmp.path().join("d/f.jsonl"));
        assert_eq!(add(&store, &target, "a").unwrap(), Replaced::Yes);
        let inode = fs::metadata(&target).unwrap().ino();
        assert_eq!(add(&store, &target, "a").unwrap(), Replaced::Unneeded);
        assert_eq!(fs::metadata(&target).unwrap().ino(), inode);
        assert_eq!(fs::read_dir(tmp.path().join("d")).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_failing_build_leaves_the_file_as_it_was() {
        let tmp = tempfile::tempdir().unwrap();
        let (store, target) = (store(tmp.path()), tmp.path().join("f.jsonl"));
        add(&store, &target, "a").unwrap();
        let failed = replace(&store, &target, |_, out| {
            out.write_all(b"half").on(Op::Write, &target)?;
            Err(StoreError::new(Op::Read, "elsewhere", io::ErrorKind::PermissionDenied.into()))
        });
        assert!(failed.unwrap_err().to_string().contains("elsewhere"));
        assert_eq!(fs::read_to_string(&target).unwrap().trim(), "a");
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_writers_line_is_ever_lost_and_no_reader_sees_fewer() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("f.jsonl");
        let (writers, lines) = (6, 25);
        std::thread::scope(|scope| {
            let working: Vec<_> = (0..writers)
                .map(|writer| {
                    let (root, target) = (tmp.path(), &target);
                    scope.spawn(move || {
                        let store = store(root);
                        for line in 0..lines {
                            add(&store, target, &format!("{writer}.{line}")).unwrap();
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            while !working.iter().all(|writer| writer.is_finished()) {
                let now =
                    fs::read_to_string(&target).unwrap_or_default().lines().filter(|l| !l.is_empty()).count();
                assert!(now >= seen, "shrank from {seen} to {now}");
                seen = now;
            }
        });
        let text = fs::read_to_string(&target).unwrap();
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), writers * lines);
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
