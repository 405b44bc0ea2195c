//! The commit threads: a whole prompt in, its files under their final names, the loop told.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use common::{
    job::{Failure, FailureKind, Job, JobPrompt, Outcome},
    npz::Entry,
    queue::Attempt,
};
use tokio::sync::mpsc;

use super::{JobEnd, Note, Written, compute::panic_text, encoding::Whole, hand::PromptEnd};

/// What a store keeps for a job from its beginning until it is settled.
pub type Hold = Box<dyn std::any::Any + Send>;

/// One layer of one prompt, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// An entry of an npz file.
    Entry(Entry),
    /// Bare values, a part of a stacked array.
    Values(Vec<u8>),
}

impl Part {
    /// Bytes it holds.
    pub fn len(&self) -> usize {
        match self {
            Part::Entry(entry) => entry.payload.len(),
            Part::Values(bytes) => bytes.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry of a job whose layout is one array a layer.
    pub fn entry(self) -> Entry {
        match self {
            Part::Entry(entry) => entry,
            Part::Values(_) => unreachable!("the encoders make what the job's layout says"),
        }
    }

    /// The values of a job whose layout is stacked.
    pub fn values(self) -> Vec<u8> {
        match self {
            Part::Values(bytes) => bytes,
            Part::Entry(_) => unreachable!("the encoders make what the job's layout says"),
        }
    }
}

/// Whether a job is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Welcome,
    /// Nobody wants it any more.
    Cancelled,
}

/// Where finished prompts go. The data directory is one; tests have others.
pub trait Commit: Send + Sync + 'static {
    /// The first look at a job, before anything is read or written for it. An error fails the whole job.
    fn admit(&self, _job: &Job) -> Result<Admission, CommitError> {
        Ok(Admission::Welcome)
    }

    /// Told what became of a job just before the queue is.
    fn settling(&self, _job: &Job, _attempt: Attempt, _outcome: &Outcome, _how: JobEnd) {}

    /// Makes ready for the prompts of `job` that `todo` points to, before any of them is committed.
    fn begin(&self, job: &Job, todo: &[usize]) -> Result<Hold, CommitError>;

    /// Whether all that the job wants of `prompt` is committed. A look that fails says no: computing
    /// again is harmless.
    fn is_committed(&self, job: &Job, prompt: &JobPrompt) -> bool;

    /// Commits `prompt`: its arrays first, then its record. `parts` are in the order of `layers`; they are
    /// left in place, for their buffers serve again. Returns the bytes of the file of arrays.
    fn commit(
        &self,
        job: &Job,
        prompt: &JobPrompt,
        layers: &[usize],
        parts: &mut Vec<Part>,
    ) -> Result<u64, CommitError>;
}

/// Why a prompt could not be committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CommitError {
    /// Whether another try may succeed.
    pub kind: FailureKind,
    /// What was attempted, on which path, and what to do.
    pub reason: String,
}

/// One commit thread.
pub(super) struct Stage<C> {
    pub(super) whole: crossbeam_channel::Receiver<Whole>,
    pub(super) store: Arc<C>,
    /// Buffers on their way back to the encoders.
    pub(super) spare: crossbeam_channel::Sender<Entry>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
}

impl<C: Commit> Stage<C> {
    pub(super) fn run(self) {
        for whole in &self.whole {
            let begin = Instant::now();
            let Whole { serial, job, index, layers, mut parts, raw_bytes, encode, leases } = whole;
            let prompt = &job.prompts[index];
            let done =
                catch_unwind(AssertUnwindSafe(|| self.store.commit(&job, prompt, &layers, &mut parts)));
            drop(leases);
            for part in parts {
                if let Part::Entry(entry) = part {
                    // Full: the encoders have all the buffers they need.
                    let _ = self.spare.try_send(entry);
                }
            }
            let done = done.unwrap_or_else(|panic| {
                Err(CommitError {
                    kind: FailureKind::Bug,
                    reason: format!("a bug in lenspool: {}", panic_text(&*panic)),
                })
            });
            let note = match done {
                Ok(npz_bytes) => {
                    let (tokens, commit) = (prompt.ids.len(), begin.elapsed());
                    let written = Written { tokens, npz_bytes, raw_bytes, encode, commit };
                    Note::Ended { serial, end: PromptEnd::Committed, written: Some(written), storage: false }
                }
                Err(CommitError { kind, reason }) => {
                    let reason = format!("committing prompt {}: {reason}", prompt.hash);
                    let end = PromptEnd::Failed(Failure { hash: Some(prompt.hash.clone()), kind, reason });
                    Note::Ended { serial, end, written: None, storage: true }
                }
            };
            let _ = self.notes.send(note);
        }
    }
}
