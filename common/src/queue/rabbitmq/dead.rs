//! Dead letters: jobs, mostly of one prompt, that failed for good, with why, where and when.
//!
//! A queue shows its messages only by handing them out. To look, all are taken and none is settled: closing the
//! channel gives them back, in order. Meanwhile somebody else who looks sees none.

use lapin::{
    Channel,
    message::Delivery,
    options::{BasicAckOptions, BasicGetOptions},
};

use super::{
    error::{BrokerError, during},
    look::Observer,
    message::{self, Envelope},
    publisher::{Message, Publisher},
};
use crate::job::{Failure, FailureKind, Job};

/// A dead letter.
#[derive(Debug)]
pub struct DeadLetter {
    /// What its headers say.
    pub envelope: Envelope,
    /// Its body.
    pub body: Vec<u8>,
}

impl DeadLetter {
    /// The job it holds, or why it is none.
    pub fn job(&self) -> Result<Job, Failure> {
        message::parse(&self.body)
    }

    /// What kind of failure it died of; none where the broker decided.
    pub fn kind(&self) -> Option<FailureKind> {
        self.envelope.history.last().filter(|_| self.envelope.broker_reason.is_none()).map(|last| last.kind)
    }
}

/// What becomes of a dead letter that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// It goes to its model's queue again, as if it had never been tried.
    Requeue,
    /// It is removed for good.
    Remove,
}

/// What was done with dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Kept.
    pub kept: u64,
    /// Sent again.
    pub requeued: u64,
    /// Removed.
    pub removed: u64,
}

impl Observer {
    /// Shows every dead letter there is now to `judge`, oldest first, and does as it says. Letters are handed out
    /// one by one, so memory does not grow with their number; only those kept stay taken until the end.
    pub async fn judge_dead(
        &self,
        mut judge: impl FnMut(&DeadLetter) -> Verdict,
    ) -> Result<Judged, BrokerError> {
        let queue = self.broker.names.dead();
        let mut judged = Judged::default();
        let Some(counts) = self.counts(&queue).await? else { return Ok(judged) };
        let channel = self.link.side_channel().await?;
        let mut publisher: Option<Publisher> = None;
        for _ in 0..counts.ready {
            let Some(delivery) = get(&channel, &queue).await? else { break };
            let Delivery { properties, data, acker, .. } = delivery;
            let letter = DeadLetter { envelope: Envelope::read(&properties), body: data };
            match judge(&letter) {
                Verdict::Keep => {
                    judged.kept += 1;
                    continue;
                }
                Verdict::Remove => judged.removed += 1,
                Verdict::Requeue => {
                    let job = letter.job().map_err(|failure| BrokerError::NotTaken {
                        what: format!("the dead letter {}", letter.envelope.id),
                        reason: failure.reason,
                    })?;
                    let publisher = match &mut publisher {
                        Some(publisher) => publisher,
                        none => none.insert(Publisher::connect(&self.broker).await?),
                    };
                    let envelope = Envelope::of(&job);
                    let model = job.model.name.clone().try_into().map_err(|error| BrokerError::NotTaken {
                        what: format!("the dead letter {}", letter.envelope.id),
                        reason: format!("{error}"),
                    })?;
                    publisher.declare(&model).await?;
                    publisher.send(Message::job(&self.broker, &envelope, letter.body)).await?;
                    // It must be in its queue before it leaves this one.
                    publisher.confirm_all().await?;
                    judged.requeued += 1;
                }
            }
            acker
                .ack(BasicAckOptions::default())
                .await
                .map_err(|error| during(format!("take a dead letter from {queue}"), &error))?;
        }
        // Gives back what was kept.
        let _ = channel.close(200, "done".into()).await;
        if let Some(publisher) = publisher {
            publisher.close().await;
        }
        Ok(judged)
    }
}

async fn get(channel: &Channel, queue: &str) -> Result<Option<Delivery>, BrokerError> {
    let got = channel
        .basic_get(queue.into(), BasicGetOptions::default())
        .await
        .map_err(|error| during(format!("look into the queue {queue}"), &error))?;
    Ok(got.map(|message| message.delivery))
}
