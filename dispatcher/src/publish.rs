//! Publishing a planned run and noting what the broker confirmed, for an enqueue and for a repair alike.
//!
//! A run is announced on disk before its first job is published, and each confirmed job is noted there, so that
//! whoever goes on after an interruption knows what the broker has.

use std::{collections::HashMap, fs, time::Duration};

use common::{
    intake::{KnownModel, Planned, Request},
    job::{Failure, FailureKind, Job, JobId, RunId},
    prompt::PromptHash,
    queue::{
        Publish,
        rabbitmq::{BrokerError, Confirmed, Names, Publisher, RunEntry},
    },
    store::{
        StoreError, WriterId,
        layout::ModelLayout,
        runs::{self, LEDGER_VERSION, RunCard, RunLedger, RunRecord},
    },
    talk::View,
};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{Error, bar::bar};

/// Jobs between two looks at whether the run was called off meanwhile.
const LOOK_EVERY: usize = 200;
/// How long a record of another machine must have been silent before its writer counts as gone.
const SILENT: Duration = Duration::from_secs(120);

/// How the digest of a repair begins: nobody's request, so no enqueue goes on with it.
pub const REPAIR: &str = "repair ";

/// Where and how a run is published.
pub struct Publishing<'a> {
    /// What everything is called at the broker.
    pub names: &'a Names,
    /// The broker.
    pub publisher: &'a mut Publisher,
    /// Ends publishing before the next job.
    pub stop: &'a CancellationToken,
    /// The model's part of the data directory.
    pub layout: &'a ModelLayout,
    /// Who looks.
    pub view: View,
}

/// A run's record while it is published.
pub struct Ledger {
    record: RunLedger,
    card: RunCard,
    /// Jobs under way, with their prompts.
    under_way: HashMap<String, Vec<PromptHash>>,
}

impl Ledger {
    /// Notes what was confirmed since the last time.
    fn note(&mut self, confirmed: Vec<Confirmed>, published: &mut Published) -> Result<(), StoreError> {
        for Confirmed { id, bytes } in confirmed {
            if let Some(hashes) = self.under_way.remove(&id) {
                published.prompts += hashes.len();
                published.bytes += bytes as u64;
                self.record.published(&JobId(id), hashes)?;
            }
        }
        published.jobs = self.record.jobs();
        Ok(())
    }
}

/// What was published.
#[derive(Debug, Default)]
pub struct Published {
    /// Prompts published now and confirmed.
    pub prompts: usize,
    /// Bytes of their messages.
    pub bytes: u64,
    /// Jobs of the run that the broker confirmed, earlier ones included.
    pub jobs: usize,
    /// Prompts that no message can carry.
    pub failures: Vec<Failure>,
    /// Whether that was all; false where it was stopped, or called off.
    pub whole: bool,
}

impl Publishing<'_> {
    /// Announces a run. `digest` is what the same request has again.
    pub fn announce(
        &self,
        request: &Request,
        known: &KnownModel,
        planned: &Planned,
        digest: &str,
    ) -> Result<Ledger, StoreError> {
        let card = RunCard {
            version: LEDGER_VERSION,
            run: request.run.clone(),
            namespace: self.names.namespace().to_owned(),
            model: known.located.pin(),
            shape: known.shape(),
            capture: known.capture.clone(),
            force: request.force,
            request: digest.to_owned(),
            prompts: planned.prompts,
            cached: planned.cached,
            todo: planned.todo() + planned.published,
            at: Timestamp::now(),
            writer: WriterId::this_process(&request.run).to_string(),
        };
        let record = RunLedger::announce(self.layout, &card)?;
        Ok(Ledger { record, card, under_way: HashMap::new() })
    }

    /// Goes on with the record of a run whose publishing was interrupted.
    pub fn resume(&self, card: RunCard) -> Result<Ledger, StoreError> {
        let writer = WriterId::this_process(&card.run);
        let record = RunLedger::resume(self.layout, &card.run, &writer)?;
        Ok(Ledger { record, card, under_way: HashMap::new() })
    }

    /// Publishes every batch; `prepare` is called with each job just before it. Stopped or failed, everything
    /// confirmed by then is on record.
    pub async fn publish(
        mut self,
        planned: &Planned,
        mut ledger: Ledger,
        prepare: impl FnMut(&mut Job) -> Result<(), Error>,
    ) -> Result<Published, Error> {
        let card = &ledger.card;
        let entry = RunEntry {
            run: card.run.clone(),
            model: card.model.clone(),
            save_path: self.layout.save().root().to_owned(),
            prompts: card.todo,
            jobs: ledger.record.jobs() + planned.batches().len(),
            at: card.at,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        self.publisher.register(self.names, &entry).await?;
        // The entry is no job.
        self.publisher.take_confirmed();
        let bar = bar(self.view, &card.model.name, "publishing", planned.todo());
        let mut published = Published::default();
        let ended = self.batches(planned, &mut ledger, prepare, &mut published, &bar).await;
        // However that ended, what the broker has is on record.
        let flushed = if ended.is_ok() { self.publisher.flush().await } else { Ok(()) };
        ledger.note(self.publisher.take_confirmed(), &mut published)?;
        bar.finish_and_clear();
        published.whole = ended?;
        flushed?;
        if published.whole {
            ledger.record.complete()?;
        }
        Ok(published)
    }

    /// Publishes batch by batch; false where it was stopped before the last.
    async fn batches(
        &mut self,
        planned: &Planned,
        ledger: &mut Ledger,
        mut prepare: impl FnMut(&mut Job) -> Result<(), Error>,
        published: &mut Published,
        bar: &ProgressBar,
    ) -> Result<bool, Error> {
        for (at, batch) in planned.batches().iter().enumerate() {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            if at % LOOK_EVERY == 0 && runs::is_cancelled(self.layout, &ledger.card.run)? {
                tracing::warn!("run {} was called off: publishing no more of it", ledger.card.run);
                return Ok(false);
            }
            let mut job = planned.job(batch)?;
            let hashes: Vec<_> = job.prompts.iter().map(|prompt| prompt.hash.clone()).collect();
            let id = job.id.0.clone();
            let sent = match prepare(&mut job) {
                Ok(()) => self.publisher.publish(job).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            match sent {
                Ok(()) => {
                    ledger.under_way.insert(id, hashes);
                }
                Err(Error::Broker(error @ BrokerError::TooLarge { .. })) => {
                    let failure = |hash| Failure {
                        hash: Some(hash),
                        kind: FailureKind::Permanent,
                        reason: error.to_string(),
                    };
                    published.failures.extend(hashes.into_iter().map(failure));
                }
                Err(error) => return Err(error),
            }
            ledger.note(self.publisher.take_confirmed(), published)?;
            bar.set_position(published.prompts as u64);
        }
        Ok(true)
    }
}

/// Whether somebody publishes a run now, as far as can be told from here.
pub fn is_published_now(model: &ModelLayout, record: &RunRecord) -> bool {
    record.is_being_published().unwrap_or_else(|| is_young(model, &record.card.run))
}

/// Whether a ledger grew a moment ago.
fn is_young(model: &ModelLayout, run: &RunId) -> bool {
    fs::metadata(model.run(run))
        .and_then(|ledger| ledger.modified())
        .is_ok_and(|changed| changed.elapsed().is_ok_and(|silent| silent < SILENT))
}
