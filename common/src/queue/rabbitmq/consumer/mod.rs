//! Taking jobs: a task that owns the connections, and a handle that implements the queue contract.
//!
//! The task stays with one model's queue while that has work and then goes to the next, so that a worker opens a
//! model once. Its awaits are never cancelled: the handle talks to it through channels, which may be dropped at any
//! point. A delivery knows the link it came by; what is said of it after that link broke is lost, and the broker
//! gives the job out again.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    Broker,
    error::BrokerError,
    link::{Link, Purpose},
    look::Waiting,
};
use crate::{
    model::reference::ModelName,
    queue::{Consume, Delivery, Settled, Settlement},
};

mod rounds;
mod settling;
mod taking;
mod task;

pub use settling::Tag;
use task::Task;

/// Which queues to take from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those of these models.
    Models(Vec<ModelName>),
    /// Those of every model anybody enqueued in the namespace.
    All,
}

/// When to leave by oneself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leave {
    /// After so long with nothing in hand and every queue empty; never, where none.
    pub idle: Option<Duration>,
    /// But not while jobs are in a wait of at most so long; where none, whatever waits.
    pub retries: Option<Duration>,
}

/// How a consumer takes jobs.
#[derive(Clone, Debug)]
pub struct ConsumeOptions {
    /// From where.
    pub wanted: Wanted,
    /// Jobs unsettled at once.
    pub prefetch: u16,
    /// Until when.
    pub leave: Leave,
}

/// What the task gives: a delivery, or the end of all; or an error that ends everything.
type Given = Result<Option<Delivery<Tag>>, BrokerError>;

enum Command {
    Settle { tag: Box<Tag>, settlement: Settlement, reply: oneshot::Sender<Settled> },
    Waiting { reply: oneshot::Sender<Option<Vec<Waiting>>> },
    Stop { reply: oneshot::Sender<()> },
}

/// Takes jobs from RabbitMQ.
#[derive(Debug)]
pub struct Consumer {
    deliveries: mpsc::UnboundedReceiver<Given>,
    commands: mpsc::UnboundedSender<Command>,
    link: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Consumer {
    /// Connects, and begins to take jobs.
    pub async fn connect(broker: &Broker, options: ConsumeOptions) -> Result<Consumer, BrokerError> {
        let link = Link::open(broker, Purpose::Consume { prefetch: options.prefetch }).await?;
        let (give, deliveries) = mpsc::unbounded_channel();
        let (commands, heard) = mpsc::unbounded_channel();
        let serial = Arc::new(AtomicU64::new(0));
        let task = Task::new(broker, options, link, Arc::clone(&serial), give);
        Ok(Consumer { deliveries, commands, link: serial, task: tokio::spawn(task.run(heard)) })
    }

    /// What waits for another try now; none where the broker cannot be asked.
    pub async fn waiting(&self) -> Option<Vec<Waiting>> {
        let (reply, waiting) = oneshot::channel();
        let _ = self.commands.send(Command::Waiting { reply });
        waiting.await.ok().flatten()
    }

    /// Says goodbye to the broker, so that everything settled has arrived when this returns.
    pub async fn close(self) {
        drop(self.commands);
        let _ = self.task.await;
    }
}

/// Ends when a settlement is over.
#[derive(Debug)]
pub struct Settling(oneshot::Receiver<Settled>);

impl Future for Settling {
    type Output = Result<Settled, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A task that has ended has lost its link.
        Pin::new(&mut self.0).poll(context).map(|settled| Ok(settled.unwrap_or(Settled::Lost)))
    }
}

impl Consume for Consumer {
    type Tag = Tag;
    type Error = BrokerError;
    type Settling = Settling;

    async fn next(&mut self) -> Result<Option<Delivery<Tag>>, BrokerError> {
        loop {
            let given = self.deliveries.recv().await.unwrap_or_else(|| {
                // A panic must not look like an empty queue.
                let (what, reason) = ("take jobs".to_owned(), "the task that does so is gone".to_owned());
                Err(BrokerError::Lost { what, reason })
            });
            match given? {
                // Its link broke while it waited here: it comes again.
                Some(delivery) if delivery.tag.link != self.link.load(Ordering::Acquire) => {
                    drop(self.settle(delivery.tag, Settlement::HandBack));
                }
                delivery => return Ok(delivery),
            }
        }
    }

    fn settle(&mut self, tag: Tag, settlement: Settlement) -> Settling {
        let (reply, settled) = oneshot::channel();
        let _ = self.commands.send(Command::Settle { tag: Box::new(tag), settlement, reply });
        Settling(settled)
    }

    async fn stop(&mut self) {
        let (reply, stopped) = oneshot::channel();
        let _ = self.commands.send(Command::Stop { reply });
        let _ = stopped.await;
        self.deliveries.close();
        while let Ok(delivery) = self.deliveries.try_recv() {
            if let Ok(Some(delivery)) = delivery {
                drop(self.settle(delivery.tag, Settlement::HandBack));
            }
        }
    }
}
