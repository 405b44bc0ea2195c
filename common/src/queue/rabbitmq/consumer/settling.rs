//! What is said of a delivery: at once, but where its job failed, which is moved first.

use lapin::{
    Acker,
    options::{BasicAckOptions, BasicNackOptions},
};
use tokio::{sync::oneshot, task::JoinSet};

use super::super::{Broker, error::BrokerError, moving::Mover, publisher::Message, successor::Original};
use crate::queue::Settled;

/// The queue's handle on a delivery.
#[derive(Debug)]
pub struct Tag {
    pub(super) link: u64,
    pub(super) acker: Acker,
    pub(super) original: Original,
}

impl Tag {
    /// Whether the delivery came by `link`, the one there is now, and can be settled.
    pub(super) fn stands(&self, link: u64) -> bool {
        self.link == link && self.acker.usable()
    }

    /// The job leaves its queue.
    pub(super) async fn ack(&self) -> Settled {
        accepted(self.acker.ack(BasicAckOptions::default()).await)
    }

    /// The job goes back to its queue.
    pub(super) async fn give_back(&self) -> Settled {
        accepted(self.acker.nack(requeue()).await)
    }
}

/// Only a yes of the broker's channel is one: what is said of a lost delivery is no error.
fn accepted(said: lapin::Result<bool>) -> Settled {
    if matches!(said, Ok(true)) { Settled::Accepted } else { Settled::Lost }
}

pub(super) fn requeue() -> BasicNackOptions {
    BasicNackOptions { requeue: true, multiple: false }
}

/// Where the one who settled a delivery hears the answer; nobody did with a message that is no job.
pub(super) type Reply = Option<oneshot::Sender<Settled>>;

pub(super) fn answer(reply: Reply, settled: Settled) {
    if let Some(reply) = reply {
        // Whoever does not wait for the answer is gone.
        let _ = reply.send(settled);
    }
}

/// Failed jobs that are being moved; their deliveries stand until they have arrived.
pub(super) struct Moves {
    mover: Mover,
    under_way: JoinSet<Moved>,
}

/// A failed job that was moved, or could not be.
pub(super) struct Moved {
    pub(super) tag: Tag,
    pub(super) reply: Reply,
    pub(super) put: Result<(), BrokerError>,
}

impl Moves {
    pub(super) fn new(broker: &Broker) -> Moves {
        Moves { mover: Mover::new(broker), under_way: JoinSet::new() }
    }

    /// Begins to put `messages` in the place of a delivery.
    pub(super) fn begin(&mut self, tag: Tag, messages: Vec<Message>, reply: Reply) {
        let mover = self.mover.clone();
        self.under_way.spawn(async move {
            let put = mover.put(&messages, || tag.acker.usable()).await;
            Moved { tag, reply, put }
        });
    }

    /// The next one that has come to its end; none where none is under way. May be dropped at any point.
    pub(super) async fn next(&mut self) -> Option<Moved> {
        let moved = self.under_way.join_next().await?;
        Some(moved.expect("moving a failed job neither panics nor is aborted"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// From now on there is no time to wait for long.
    pub(super) fn hurry(&self) {
        self.mover.hurry();
    }

    /// Says goodbye; nothing must be under way.
    pub(super) async fn close(self) {
        self.mover.close().await;
    }
}
