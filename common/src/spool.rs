//! Bytes that are written once and read back in any order, in memory while few, on disk once many.
//!
//! A million prompts are sorted longest first before the first one is run; what waits meanwhile
//! waits here, so that memory does not grow with the number of prompts. The file has no name:
//! nothing is left behind by a killed run.

use std::{
    env,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
};

/// How much a spool keeps in memory, and where it goes on beyond that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    /// Bytes kept in memory before a file is made.
    pub memory: usize,
    /// The file's directory; `None` for the system's directory for temporary files.
    pub dir: Option<PathBuf>,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        SpoolOptions { memory: 256 << 20, dir: None }
    }
}

/// The spool's file could not be made, written or read.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not {action} temporary data in {}: {source}; set TMPDIR to a directory on a disk with room for it",
    dir.display()
)]
pub struct SpoolError {
    action: &'static str,
    dir: PathBuf,
    source: io::Error,
}

/// Where a piece lies in its spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    offset: u64,
    len: u32,
}

#[derive(Debug)]
enum Storage {
    Memory(Vec<u8>),
    File(File),
}

/// A spool being filled.
#[derive(Debug)]
pub struct SpoolWriter {
    options: SpoolOptions,
    storage: Storage,
    /// What the file does not hold yet.
    pending: Vec<u8>,
    len: u64,
}

/// Bytes are handed to the file in pieces of about this size.
const WRITE_SIZE: usize = 1 << 20;

impl SpoolWriter {
    /// An empty spool.
    pub fn new(options: SpoolOptions) -> Self {
        SpoolWriter { options, storage: Storage::Memory(Vec::new()), pending: Vec::new(), len: 0 }
    }

    /// Takes a copy of `bytes` (at most 4 GiB).
    pub fn append(&mut self, bytes: &[u8]) -> Result<Span, SpoolError> {
        let len = u32::try_from(bytes.len())
            .map_err(|_| self.error("write", io::Error::other("a piece of more than 4 GiB")))?;
        let span = Span { offset: self.len, len };
        self.len += u64::from(len);
        if let Storage::Memory(kept) = &mut self.storage {
            if kept.len() + bytes.len() <= self.options.memory {
                kept.extend_from_slice(bytes);
                return Ok(span);
            }
            let kept = std::mem::take(kept);
            let mut file = tempfile::tempfile_in(self.dir()).map_err(|error| self.error("make", error))?;
            file.write_all(&kept).map_err(|error| self.error("write", error))?;
            self.storage = Storage::File(file);
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= WRITE_SIZE {
            self.flush()?;
        }
        Ok(span)
    }

    /// Ends the filling.
    pub fn finish(mut self) -> Result<Spool, SpoolError> {
        self.flush()?;
        let dir = self.dir();
        if let Storage::Memory(kept) = &mut self.storage {
            kept.shrink_to_fit();
        }
        Ok(Spool { storage: self.storage, dir })
    }

    fn flush(&mut self) -> Result<(), SpoolError> {
        if let Storage::File(file) = &mut self.storage {
            let written = file.write_all(&self.pending);
            self.pending.clear();
            return written.map_err(|error| self.error("write", error));
        }
        Ok(())
    }

    fn dir(&self) -> PathBuf {
        self.options.dir.clone().unwrap_or_else(env::temp_dir)
    }

    fn error(&self, action: &'static str, source: io::Error) -> SpoolError {
        SpoolError { action, dir: self.dir(), source }
    }
}

/// A filled spool; any number of threads may read.
#[derive(Debug)]
pub struct Spool {
    storage: Storage,
    dir: PathBuf,
}

impl Spool {
    /// The bytes that [`SpoolWriter::append`] gave `span` for.
    pub fn read(&self, span: Span) -> Result<Vec<u8>, SpoolError> {
        let len = span.len as usize;
        match &self.storage {
            Storage::Memory(kept) => {
                let from = span.offset as usize;
                Ok(kept[from..from + len].to_vec())
            }
            Storage::File(file) => {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, span.offset).map_err(|source| SpoolError {
                    action: "read back",
                    dir: self.dir.clone(),
                    source,
                })?;
                Ok(bytes)
            }
        }
    }

    /// Whether it outgrew memory.
    pub fn is_on_disk(&self) -> bool {
        matches!(self.storage, Storage::File(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_from_memory_and_from_disk() {
        let pieces: Vec<Vec<u8>> = (0..200u8).map(|i| vec![i; usize::from(i) * 37]).collect();
        for (memory, on_disk) in [(usize::MAX, false), (10_000, true), (0, true)] {
            let mut writer = SpoolWriter::new(SpoolOptions { memory, dir: None });
            let spans: Vec<Span> = pieces.iter().map(|piece| writer.append(piece).unwrap()).collect();
            let spool = writer.finish().unwrap();
            assert_eq!(spool.is_on_disk(), on_disk, "with {memory} bytes of memory");
            for (piece, span) in pieces.iter().zip(spans).rev() {
                assert_eq!(&spool.read(span).unwrap(), piece);
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap().path().join("gone");
        let mut writer = SpoolWriter::new(SpoolOptions { memory: 0, dir: Some(dir.clone()) });
        let error = writer.append(b"x").unwrap_err().to_string();
        assert!(error.contains(dir.to_str().unwrap()) && error.contains("TMPDIR"), "{error}");
    }
}
