//! How far a run is, as its journals tell: prompts counted once, whoever did them and however often.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{Event, Line};
use crate::{
    job::{Failure, JobId},
    prompt::PromptHash,
};

/// The last failure of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What and why.
    pub failure: Failure,
    /// Whether nobody tries it again.
    pub last: bool,
    at: Timestamp,
}

/// The sum of journal lines.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    committed: HashSet<PromptHash>,
    failed: HashMap<PromptHash, Failed>,
    finished: HashSet<JobId>,
    /// Bytes of arrays written, those written again included.
    pub bytes: u64,
    /// The first and the last event's time, by the writers' clocks.
    pub span: Option<(Timestamp, Timestamp)>,
}

impl Progress {
    /// Adds a line. The order in which the lines of different writers come does not matter: committed wins over
    /// failed, and of two failures the later one counts, by the writers' clocks.
    pub fn take(&mut self, line: Line) {
        self.span = Some(match self.span {
            None => (line.at, line.at),
            Some((first, last)) => (first.min(line.at), last.max(line.at)),
        });
        match line.event {
            Event::Opened { .. } => {}
            Event::Committed { hash, bytes } => {
                self.bytes += bytes;
                self.commit(hash);
            }
            Event::Cached { hash } => self.commit(hash),
            Event::Failed { failure, last, .. } => {
                let hash = failure.hash.clone().filter(|hash| !self.committed.contains(hash));
                if let Some(hash) = hash
                    && self.failed.get(&hash).is_none_or(|before| before.at <= line.at)
                {
                    self.failed.insert(hash, Failed { failure, last, at: line.at });
                }
            }
            Event::Finished { job, .. } => {
                self.finished.insert(job);
            }
        }
    }

    fn commit(&mut self, hash: PromptHash) {
        self.failed.remove(&hash);
        self.committed.insert(hash);
    }

    /// How many prompts are committed.
    pub fn committed(&self) -> usize {
        self.committed.len()
    }

    /// Whether a prompt is committed.
    pub fn is_committed(&self, hash: &PromptHash) -> bool {
        self.committed.contains(hash)
    }

    /// The prompts that failed and were not committed since, each with its last failure.
    pub fn failed(&self) -> impl ExactSizeIterator<Item = &Failed> {
        self.failed.values()
    }

    /// Whether a job is over.
    pub fn is_finished(&self, job: &JobId) -> bool {
        self.finished.contains(job)
    }

    /// How many jobs are over.
    pub fn finished(&self) -> usize {
        self.finished.len()
    }

    /// The committed prompts.
    pub fn into_committed(self) -> impl ExactSizeIterator<Item = PromptHash> {
        self.committed.into_iter()
    }
}
