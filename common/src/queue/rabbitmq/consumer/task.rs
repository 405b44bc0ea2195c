//! The consumer's task: one turn after the other, whatever happens first, until nobody holds the handle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lapin::message;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        Broker,
        error::BrokerError,
        link::{Link, Purpose},
        look,
        message::{self as job_message, Envelope},
        successor::{Original, successors},
    },
    Command, ConsumeOptions, Given, Leave,
    rounds::Rounds,
    settling::{Moved, Moves, Reply, Tag, answer},
    taking::Taking,
};
use crate::{
    model::reference::ModelName,
    queue::{Delivery, Settled, Settlement},
};

/// How often an idle consumer looks at its queues, unless it is to leave sooner.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The wait before a lost link is opened again, so that a fault that stays does not spin.
const FAULT_WAIT: Duration = Duration::from_millis(300);

/// What owns the connections.
pub(super) struct Task {
    broker: Broker,
    prefetch: u16,
    leave: Leave,
    link: Option<Link>,
    /// The next link, where the last one broke.
    opening: Option<AbortOnDropHandle<Result<Link, BrokerError>>>,
    /// Numbers the links.
    serial: Arc<AtomicU64>,
    taking: Option<Taking>,
    rounds: Rounds,
    moves: Moves,
    give: mpsc::UnboundedSender<Given>,
    /// Deliveries given out and not settled yet.
    in_hand: usize,
    idle_since: Instant,
    stopping: bool,
}

/// What the task's loop does next.
enum Turn {
    Delivery(Box<message::Delivery>),
    Fault(String),
    Opened(Result<Link, BrokerError>),
    Command(Option<Command>),
    Moved(Box<Moved>),
    Look,
}

impl Task {
    pub(super) fn new(
        broker: &Broker,
        options: ConsumeOptions,
        link: Link,
        serial: Arc<AtomicU64>,
        give: mpsc::UnboundedSender<Given>,
    ) -> Task {
        let ConsumeOptions { wanted, prefetch, leave } = options;
        Task {
            broker: broker.clone(),
            prefetch,
            leave,
            link: Some(link),
            opening: None,
            serial,
            taking: None,
            rounds: Rounds::new(wanted),
            moves: Moves::new(broker),
            give,
            in_hand: 0,
            idle_since: Instant::now(),
            stopping: false,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            if !self.stopping
                && let Err(error) = self.ready().await
            {
                self.fail(error);
                continue;
            }
            let look = self.can_look().then(|| self.look_every());
            let turn = tokio::select! {
                biased;
                command = commands.recv() => Turn::Command(command),
                Some(moved) = self.moves.next() => Turn::Moved(Box::new(moved)),
                link = opened(self.opening.as_mut()) => Turn::Opened(link),
                delivery = next_of(self.taking.as_mut()), if !self.stopping => match delivery {
                    Some(Ok(delivery)) => Turn::Delivery(Box::new(delivery)),
                    Some(Err(error)) => Turn::Fault(error.to_string()),
                    None => Turn::Fault("the broker ended the deliveries".to_owned()),
                },
                () = tokio::time::sleep(look.unwrap_or_default()), if look.is_some() => Turn::Look,
            };
            match turn {
                Turn::Delivery(delivery) => self.receive(*delivery).await,
                Turn::Fault(reason) => self.lose(&reason),
                Turn::Opened(Ok(link)) => {
                    self.opening = None;
                    tracing::warn!("connected to {} again", self.broker.shown());
                    self.link = Some(link);
                }
                Turn::Opened(Err(error)) => {
                    self.opening = None;
                    self.fail(error);
                }
                Turn::Command(Some(Command::Settle { tag, settlement, reply })) => {
                    self.in_hand = self.in_hand.saturating_sub(1);
                    self.settle(*tag, settlement, Some(reply)).await;
                }
                Turn::Moved(moved) => self.moved(*moved).await,
                Turn::Command(Some(Command::Waiting { reply })) => {
                    let waiting = match &self.link {
                        Some(link) => look::waiting(link, &self.broker.names).await.ok(),
                        None => None,
                    };
                    let _ = reply.send(waiting);
                }
                Turn::Command(Some(Command::Stop { reply })) => {
                    self.stopping = true;
                    self.opening = None;
                    self.moves.hurry();
                    self.leave_queue().await;
                    let _ = reply.send(());
                }
                Turn::Command(None) => break,
                Turn::Look => match self.look().await {
                    Ok(true) => {
                        self.stopping = true;
                        self.leave_queue().await;
                        let _ = self.give.send(Ok(None));
                    }
                    Ok(false) => {}
                    Err(error) => self.lose(&error.to_string()),
                },
            }
        }
        self.leave_queue().await;
        self.moves.hurry();
        while let Some(moved) = self.moves.next().await {
            self.moved(moved).await;
        }
        self.moves.close().await;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// An error that ends everything is told; any other one costs the link.
    fn fail(&mut self, error: BrokerError) {
        if error.is_retryable() && !matches!(error, BrokerError::GaveUp { .. }) {
            self.lose(&error.to_string());
        } else {
            self.stopping = true;
            let _ = self.give.send(Err(error));
        }
    }

    fn can_look(&self) -> bool {
        !self.stopping && self.link.is_some() && self.in_hand == 0 && self.moves.is_empty()
    }

    /// Sees to it that a link is there or on its way, and with it a queue to take from where one is known.
    async fn ready(&mut self) -> Result<(), BrokerError> {
        if self.opening.is_some() {
            return Ok(());
        }
        if !self.link.as_ref().is_some_and(Link::is_alive) {
            self.lose("it was closed");
            let (broker, prefetch) = (self.broker.clone(), self.prefetch);
            // Not awaited here: what is in hand is settled meanwhile, and a signal is heard.
            self.opening = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(FAULT_WAIT).await;
                Link::open_again(&broker, Purpose::Consume { prefetch }).await
            })));
            return Ok(());
        }
        if self.taking.is_none()
            && let Some(link) = &self.link
        {
            let names = &self.broker.names;
            self.rounds.search(link, names).await?;
            let model = self.rounds.with_work(link, names, None).await?;
            if let Some(model) = model.or(self.rounds.first()).cloned() {
                self.take_from(model).await?;
            }
        }
        Ok(())
    }

    async fn take_from(&mut self, model: ModelName) -> Result<(), BrokerError> {
        if let Some(link) = &self.link {
            let serial = self.serial.load(Ordering::Relaxed);
            self.taking = Some(Taking::begin(&self.broker, link, serial, model).await?);
        }
        Ok(())
    }

    async fn leave_queue(&mut self) {
        let Some(taking) = self.taking.take() else { return };
        let Some(link) = &self.link else { return };
        if !taking.end(link).await {
            // What it had sent goes back with the connection.
            self.lose("the broker does not answer");
        }
    }

    /// Forgets the link and everything that came by it.
    fn lose(&mut self, reason: &str) {
        let Some(link) = self.link.take() else { return };
        if !self.stopping {
            tracing::warn!("the broker's connection or queue is lost: {reason}; what is in hand comes again");
        }
        // Where only the channel broke, the broker must hear that nobody is behind the connection any more.
        tokio::spawn(link.close());
        self.taking = None;
        self.serial.fetch_add(1, Ordering::Release);
    }

    async fn receive(&mut self, delivery: message::Delivery) {
        let tag = Tag {
            link: self.serial.load(Ordering::Relaxed),
            acker: delivery.acker,
            original: Original {
                envelope: Envelope::read(&delivery.properties),
                routing_key: delivery.routing_key.to_string(),
                body: delivery.data,
            },
        };
        self.idle_since = Instant::now();
        match job_message::parse(&tag.original.body) {
            Ok(job) => {
                self.in_hand += 1;
                let attempt = self.broker.names.attempt(tag.original.envelope.attempts);
                // A handle that has gone settles nothing: closing the link gives the job back.
                let _ = self.give.send(Ok(Some(Delivery { job, attempt, tag })));
            }
            Err(failure) => {
                tracing::warn!(
                    "message {:?} from the queue {}: {}",
                    tag.original.envelope.id,
                    tag.original.routing_key,
                    failure.reason
                );
                self.settle(tag, Settlement::Failed(vec![failure]), None).await;
            }
        }
    }

    async fn settle(&mut self, tag: Tag, settlement: Settlement, reply: Reply) {
        self.idle_since = Instant::now();
        let settled = match settlement {
            _ if !tag.stands(self.serial.load(Ordering::Relaxed)) => Settled::Lost,
            Settlement::Done => tag.ack().await,
            Settlement::HandBack => tag.give_back().await,
            Settlement::Failed(failures) => {
                // What comes of it is heard in a later turn of the loop.
                let messages = successors(&self.broker, &tag.original, failures);
                return self.moves.begin(tag, messages, reply);
            }
        };
        answer(reply, settled);
    }

    /// A failed job leaves its queue once what takes its place is on record.
    async fn moved(&mut self, Moved { tag, reply, put }: Moved) {
        self.idle_since = Instant::now();
        let settled = match put {
            _ if !tag.stands(self.serial.load(Ordering::Relaxed)) => Settled::Lost,
            Ok(()) => tag.ack().await,
            Err(error) => {
                tracing::warn!("{error}; the job goes back to its queue");
                let _ = tag.give_back().await;
                Settled::Lost
            }
        };
        answer(reply, settled);
    }

    fn look_every(&self) -> Duration {
        let leave = self.leave.idle.map(|idle| idle / 5);
        leave.unwrap_or(LOOK_EVERY).clamp(Duration::from_millis(100), LOOK_EVERY)
    }

    /// With nothing in hand: goes where there is work. True where it is time to leave.
    async fn look(&mut self) -> Result<bool, BrokerError> {
        let Some(link) = &self.link else { return Ok(false) };
        let names = &self.broker.names;
        self.rounds.search(link, names).await?;
        let current = self.taking.as_ref().map(Taking::model);
        if let Some(model) = current {
            let queue = names.queue(model);
            let Some(counts) = look::counts(link, &queue).await? else {
                return Err(BrokerError::Lost {
                    what: format!("take jobs from {queue}"),
                    reason: "the queue was deleted".to_owned(),
                });
            };
            if counts.ready > 0 {
                self.idle_since = Instant::now();
                return Ok(false);
            }
        }
        if let Some(model) = self.rounds.with_work(link, names, current).await?.cloned() {
            self.idle_since = Instant::now();
            self.leave_queue().await;
            self.take_from(model).await?;
            return Ok(false);
        }
        if let Some(longest) = self.leave.retries {
            let waiting = look::waiting(link, names).await?;
            if waiting.iter().any(|wait| wait.delay <= longest && wait.jobs > 0) {
                // They come back to their queues, and between the two nobody sees them for a moment.
                self.idle_since = Instant::now();
                return Ok(false);
            }
        }
        Ok(self.leave.idle.is_some_and(|idle| self.idle_since.elapsed() >= idle))
    }
}

/// The next delivery; never, where no queue is taken from.
async fn next_of(taking: Option<&mut Taking>) -> Option<lapin::Result<message::Delivery>> {
    match taking {
        Some(taking) => taking.next().await,
        None => std::future::pending().await,
    }
}

/// The link being opened; never, where none is.
async fn opened(
    opening: Option<&mut AbortOnDropHandle<Result<Link, BrokerError>>>,
) -> Result<Link, BrokerError> {
    match opening {
        Some(opening) => opening.await.expect("opening a link neither panics nor is aborted"),
        None => std::future::pending().await,
    }
}
