//! Publishing a planned run and noting what the broker confirmed.

use std::collections::HashMap;

use common::{
    intake::{KnownModel, Planned, Request},
    job::{Failure, FailureKind, JobId},
    prompt::PromptHash,
    queue::{
        Publish,
        rabbitmq::{BrokerError, Confirmed, Names, Publisher, RunEntry},
    },
    store::{
        StoreError, WriterId,
        layout::ModelLayout,
        runs::{self, LEDGER_VERSION, RunCard, RunLedger},
    },
    talk::View,
};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::summary::{self, ModelSummary};
use crate::Error;

/// Jobs between two looks at whether the run was called off meanwhile.
const LOOK_EVERY: usize = 200;

pub(super) struct Publishing<'a> {
    pub(super) names: &'a Names,
    pub(super) publisher: &'a mut Publisher,
    pub(super) stop: &'a CancellationToken,
    pub(super) layout: &'a ModelLayout,
    pub(super) view: View,
}

/// A run's record while it is published.
pub(super) struct Ledger {
    record: RunLedger,
    card: RunCard,
    /// Jobs under way, with their prompts.
    under_way: HashMap<String, Vec<PromptHash>>,
}

impl Ledger {
    /// Notes what was confirmed since the last time.
    fn note(&mut self, confirmed: Vec<Confirmed>, summary: &mut ModelSummary) -> Result<(), StoreError> {
        for Confirmed { id, bytes } in confirmed {
            if let Some(hashes) = self.under_way.remove(&id) {
                summary.published(hashes.len(), bytes);
                self.record.published(&JobId(id), hashes)?;
            }
        }
        Ok(())
    }
}

impl Publishing<'_> {
    /// Announces a run, or goes on with its record.
    pub(super) fn announce(
        &self,
        request: &Request,
        known: &KnownModel,
        planned: &Planned,
        digest: &str,
        resumed: bool,
    ) -> Result<Ledger, StoreError> {
        let writer = WriterId::this_process(&request.run);
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
            writer: writer.to_string(),
        };
        let record = if resumed {
            RunLedger::resume(self.layout, &request.run, &writer)?
        } else {
            RunLedger::announce(self.layout, &card)?
        };
        Ok(Ledger { record, card, under_way: HashMap::new() })
    }

    /// Publishes every batch. Stopped or failed, everything confirmed by then is on record.
    pub(super) async fn publish(
        mut self,
        planned: &Planned,
        mut ledger: Ledger,
        summary: &mut ModelSummary,
    ) -> Result<(), Error> {
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
        let bar = summary::bar(self.view, &card.model.name, "publishing", planned.todo());
        let published = self.batches(planned, &mut ledger, summary, &bar).await;
        // However that ended, what the broker has is on record.
        let flushed = if published.is_ok() { self.publisher.flush().await } else { Ok(()) };
        ledger.note(self.publisher.take_confirmed(), summary)?;
        summary.jobs = ledger.record.jobs();
        bar.finish_and_clear();
        let whole = published?;
        flushed?;
        if whole {
            ledger.record.complete()?;
        }
        Ok(())
    }

    /// Publishes batch by batch; false where it was stopped before the last.
    async fn batches(
        &mut self,
        planned: &Planned,
        ledger: &mut Ledger,
        summary: &mut ModelSummary,
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
            let job = planned.job(batch)?;
            let hashes: Vec<_> = job.prompts.iter().map(|prompt| prompt.hash.clone()).collect();
            let id = job.id.0.clone();
            match self.publisher.publish(job).await {
                Ok(()) => {
                    ledger.under_way.insert(id, hashes);
                }
                Err(error @ BrokerError::TooLarge { .. }) => {
                    let failure = |hash| Failure {
                        hash: Some(hash),
                        kind: FailureKind::Permanent,
                        reason: error.to_string(),
                    };
                    hashes.into_iter().for_each(|hash| summary.fail(failure(hash)));
                }
                Err(error) => return Err(error.into()),
            }
            ledger.note(self.publisher.take_confirmed(), summary)?;
            bar.set_position(summary.published as u64);
        }
        Ok(true)
    }
}
