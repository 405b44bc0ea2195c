//! What this worker does for a run, noted for those who watch and for the index.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{
    job::{Job, Outcome, RunId},
    queue::Attempt,
    store::{Event, Journal, Store, layout::ModelLayout},
};

use crate::serve::JobEnd;

/// How long notes may stay in memory before they are made durable and, on network storage, visible to others.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// The journal of this worker for one model of a run. A note that fails costs the record, never the work: what is
/// committed is found by looking.
#[derive(Debug)]
pub struct RunJournal {
    journal: Journal,
    synced: Mutex<Instant>,
}

impl RunJournal {
    /// A journal in the data directory of `store`; made with its first line.
    pub fn new(store: &Store, model: &ModelLayout, run: &RunId) -> Self {
        RunJournal { journal: Journal::new(store, model, run), synced: Mutex::new(Instant::now()) }
    }

    /// Notes an event.
    pub fn note(&self, event: Event) {
        if let Err(error) = self.journal.note(event) {
            tracing::warn!("the journal misses a line: {error}");
        }
    }

    /// Notes how a job ended.
    pub fn settling(&self, job: &Job, attempt: Attempt, outcome: &Outcome, how: JobEnd) {
        for failure in &outcome.failures {
            let (job, failure) = (job.id.clone(), failure.clone());
            self.note(Event::Failed { job, failure, last: attempt.is_last() });
        }
        if how == JobEnd::Over {
            let Outcome { done, cached, failures, millis } = outcome;
            let (done, cached, failed, millis) = (*done, *cached, failures.len(), *millis);
            self.note(Event::Finished { job: job.id.clone(), done, cached, failed, millis });
        }
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if synced.elapsed() >= SYNC_EVERY {
            *synced = Instant::now();
            if let Err(error) = self.journal.sync() {
                tracing::warn!("the journal is not durable yet: {error}");
            }
        }
    }
}

impl Drop for RunJournal {
    fn drop(&mut self) {
        let _ = self.journal.sync();
    }
}
