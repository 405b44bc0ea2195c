//! What failed in the store: the operation, the path, whether another try can help, and what to do.

use std::{fmt, io, path::PathBuf};

use rustix::io::Errno;

use crate::job::FailureKind;

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Making a directory.
    CreateDir,
    /// Making a file under a temporary name.
    Create,
    /// Filling a file.
    Write,
    /// Making a file or a directory durable.
    Sync,
    /// Giving a finished file its final name.
    Rename,
    /// Reading a file.
    Read,
    /// Listing a directory.
    List,
    /// Asking whether something exists.
    Stat,
    /// Removing a file or a directory.
    Remove,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::CreateDir => "make the directory",
            Op::Create => "make the file",
            Op::Write => "write",
            Op::Sync => "make durable (fsync)",
            Op::Rename => "put in place (rename)",
            Op::Read => "read",
            Op::List => "list",
            Op::Stat => "look at",
            Op::Remove => "remove",
        })
    }
}

/// An operation of the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {op} {}: {source}; {}", path.display(), self.advice())]
pub struct StoreError {
    /// What was attempted.
    pub op: Op,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Groups of system errors that call for the same action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Full,
    Quota,
    Stale,
    Denied,
    ReadOnly,
    Name,
    Handles,
    Gone,
    NotADirectory,
    Data,
    Request,
    Other,
}

impl StoreError {
    /// Ties `source` to what was attempted.
    pub fn new(op: Op, path: impl Into<PathBuf>, source: io::Error) -> Self {
        StoreError { op, path: path.into(), source }
    }

    /// Whether the same attempt may succeed later.
    ///
    /// Refusals (permission, a read-only or unfit file system, an impossible name) stay what they are
    /// until a person acts. Anything else, unknown errors included, is taken for a passing state: trying
    /// again costs little, and giving a prompt up costs its result.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.class(),
            Class::Denied
                | Class::ReadOnly
                | Class::Name
                | Class::NotADirectory
                | Class::Data
                | Class::Request
        )
    }

    /// Whether it is this machine or user that is refused, where another may not be: a mount that is read-only on one
    /// node, an account without the right.
    pub fn is_of_this_machine(&self) -> bool {
        matches!(self.class(), Class::Denied | Class::ReadOnly)
    }

    /// The kind of failure this is for a prompt or a job.
    pub fn kind(&self) -> FailureKind {
        if self.is_retryable() { FailureKind::Retryable } else { FailureKind::Permanent }
    }

    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self.class() {
            Class::Full => {
                "the file system is full (blocks or inodes: df -h, df -i); free space and run again, nothing is lost"
            }
            Class::Quota => {
                "the disk quota is used up; free space or ask for more and run again, nothing is lost"
            }
            Class::Stale => {
                "the storage answered with an error; check the mount and run again, nothing is lost"
            }
            Class::Denied => "check the owner and mode of the save path, or choose another with --save-path",
            Class::ReadOnly => {
                "the file system is mounted read-only; choose another --save-path or remount it"
            }
            Class::Name => "the file system does not take this name or size; choose another --save-path",
            Class::Handles => {
                "too many files are open; raise the limit (ulimit -n) or lower the commit threads"
            }
            Class::Gone => {
                "it is not there: removed meanwhile, or in a place where nothing can be made; check the save path \
                 and run again"
            }
            Class::NotADirectory => "a file stands where a directory must be (or the reverse); move it away",
            Class::Data => "the file's contents are not what they should be; move it away and run again",
            Class::Request => "change the request and run again",
            Class::Other => "check the storage and run again",
        }
    }

    fn class(&self) -> Class {
        match Errno::from_io_error(&self.source) {
            None if self.source.kind() == io::ErrorKind::InvalidData => Class::Data,
            None if self.source.kind() == io::ErrorKind::InvalidInput => Class::Request,
            Some(Errno::NOSPC) => Class::Full,
            Some(Errno::DQUOT) => Class::Quota,
            Some(
                Errno::IO | Errno::STALE | Errno::TIMEDOUT | Errno::NXIO | Errno::NODEV | Errno::NOTCONN,
            ) => Class::Stale,
            Some(Errno::ACCESS | Errno::PERM) => Class::Denied,
            Some(Errno::ROFS) => Class::ReadOnly,
            Some(Errno::NAMETOOLONG | Errno::INVAL | Errno::FBIG | Errno::LOOP | Errno::ILSEQ) => Class::Name,
            Some(Errno::NFILE | Errno::MFILE) => Class::Handles,
            Some(Errno::NOENT) => Class::Gone,
            Some(Errno::NOTDIR | Errno::ISDIR) => Class::NotADirectory,
            _ => Class::Other,
        }
    }
}

/// Ties the error of an IO result to what was attempted on which path.
pub(crate) trait Context<T> {
    fn on(self, op: Op, path: impl Into<PathBuf>) -> Result<T, StoreError>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, op: Op, path: impl Into<PathBuf>) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::new(op, path, source))
    }
}

impl<T> Context<T> for Result<T, Errno> {
    fn on(self, op: Op, path: impl Into<PathBuf>) -> Result<T, StoreError> {
        self.map_err(|errno| StoreError::new(op, path, errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(errno: Errno) -> StoreError {
        StoreError::new(Op::Write, "attn_data/x", errno.into())
    }

    #[test]
    fn passing_states_are_retried_and_refusals_are_not() {
        for errno in [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::IO,
            Errno::STALE,
            Errno::TIMEDOUT,
            Errno::MFILE,
            Errno::NOENT,
            Errno::BUSY,
        ] {
            assert!(of(errno).is_retryable(), "{errno:?}");
        }
        for errno in [Errno::ACCESS, Errno::PERM, Errno::ROFS, Errno::NAMETOOLONG, Errno::NOTDIR, Errno::FBIG]
        {
            assert!(!of(errno).is_retryable(), "{errno:?}");
            assert_eq!(of(errno).kind(), FailureKind::Permanent);
        }
        assert!(of(Errno::ROFS).is_of_this_machine() && of(Errno::ACCESS).is_of_this_machine());
        assert!(!of(Errno::NAMETOOLONG).is_of_this_machine() && !of(Errno::NOSPC).is_of_this_machine());
    }

    #[test]
    fn an_error_says_what_where_and_what_next() {
        let text = of(Errno::NOSPC).to_string();
        assert!(text.starts_with("could not write attn_data/x: No space left on device"), "{text}");
        assert!(text.ends_with("free space and run again, nothing is lost"), "{text}");
    }
}
