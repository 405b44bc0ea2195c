//! Taking jobs: a task that owns the connections, and a handle that implements the queue contract.
//!
//! The task stays with one model's queue while that has work and then goes to the next, so that a worker opens a
//! model once. Its awaits are never cancelled: the handle talks to it through channels, which may be dropped at any
//! point. A delivery knows the link it came by; what is said of it after that link broke is lost, and the broker
//! gives the job out again.

use std::{
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    Acker, message,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions},
    types::FieldTable,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinHandle, JoinSet},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Broker,
    error::{BrokerError, during},
    link::{Link, Purpose},
    look::{self, Waiting},
    message::{self as job_message, Envelope},
    moving::Mover,
    registry,
    successor::{Original, successors},
    topology,
};
use crate::{
    job::Failure,
    model::reference::ModelName,
    queue::{Consume, Delivery, Settled, Settlement},
};

/// How often an idle consumer looks at its queues, unless it is to leave sooner.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a broker may take to end its deliveries.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
/// The wait before a lost link is opened again, so that a fault that stays does not spin.
const FAULT_WAIT: Duration = Duration::from_millis(300);
/// How often the namespace is searched for new models.
const SEARCH_EVERY: Duration = Duration::from_secs(10);

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

/// The queue's handle on a delivery.
#[derive(Debug)]
pub struct Tag {
    link: u64,
    acker: Acker,
    original: Original,
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
        let task = Task {
            broker: broker.clone(),
            options,
            link: Some(link),
            opening: None,
            serial: Arc::clone(&serial),
            taking: None,
            mover: Mover::new(broker),
            moves: JoinSet::new(),
            give,
            in_hand: 0,
            idle_since: Instant::now(),
            models: BTreeSet::new(),
            searched: None,
            stopping: false,
        };
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

/// A queue being taken from.
struct Taking {
    model: ModelName,
    consumer: lapin::Consumer,
}

struct Task {
    broker: Broker,
    options: ConsumeOptions,
    link: Option<Link>,
    /// The next link, where the last one broke.
    opening: Option<AbortOnDropHandle<Result<Link, BrokerError>>>,
    /// Numbers the links.
    serial: Arc<AtomicU64>,
    taking: Option<Taking>,
    mover: Mover,
    /// Failed jobs that are being moved; their deliveries stand until they have arrived.
    moves: JoinSet<Moved>,
    give: mpsc::UnboundedSender<Given>,
    /// Deliveries given out and not settled yet.
    in_hand: usize,
    idle_since: Instant,
    /// The models known, in the order they are visited.
    models: BTreeSet<ModelName>,
    searched: Option<Instant>,
    stopping: bool,
}

/// A failed job that was moved, or could not be.
struct Moved {
    tag: Tag,
    /// Of the one who settled it; nobody did with a message that is no job.
    reply: Option<oneshot::Sender<Settled>>,
    put: Result<(), BrokerError>,
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
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
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
                Some(moved) = self.moves.join_next() => Turn::Moved(Box::new(arrived(moved))),
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
                    self.mover.hurry();
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
        self.mover.hurry();
        while let Some(moved) = self.moves.join_next().await {
            self.moved(arrived(moved)).await;
        }
        self.mover.close().await;
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
            let (broker, prefetch) = (self.broker.clone(), self.options.prefetch);
            // Not awaited here: what is in hand is settled meanwhile, and a signal is heard.
            self.opening = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(FAULT_WAIT).await;
                Link::open_again(&broker, Purpose::Consume { prefetch }).await
            })));
            return Ok(());
        }
        if self.taking.is_none() {
            self.search().await?;
            let model = match self.with_work().await? {
                Some(model) => Some(model),
                None => self.models.first().cloned(),
            };
            if let Some(model) = model {
                self.take_from(model).await?;
            }
        }
        Ok(())
    }

    /// Learns which models there are.
    async fn search(&mut self) -> Result<(), BrokerError> {
        let (Wanted::All, Some(link)) = (&self.options.wanted, &self.link) else {
            if let Wanted::Models(models) = &self.options.wanted {
                self.models = models.iter().cloned().collect();
            }
            return Ok(());
        };
        if self.searched.is_some_and(|at| at.elapsed() < SEARCH_EVERY) {
            return Ok(());
        }
        let found = registry::read(link, &self.broker.names).await?;
        self.models = found.into_iter().filter_map(|run| ModelName::try_from(run.model.name).ok()).collect();
        self.searched = Some(Instant::now());
        Ok(())
    }

    /// The first model after the one being taken from, in turn, whose queue has jobs.
    async fn with_work(&self) -> Result<Option<ModelName>, BrokerError> {
        let Some(link) = &self.link else { return Ok(None) };
        let current = self.taking.as_ref().map(|taking| &taking.model);
        let after = self.models.iter().filter(|&model| current.is_none_or(|current| model > current));
        let before = self.models.iter().filter(|&model| current.is_some_and(|current| model < current));
        for model in after.chain(before) {
            let queue = self.broker.names.queue(model);
            if look::counts(link, &queue).await?.is_some_and(|counts| counts.ready > 0) {
                return Ok(Some(model.clone()));
            }
        }
        Ok(None)
    }

    async fn take_from(&mut self, model: ModelName) -> Result<(), BrokerError> {
        let Some(link) = &self.link else { return Ok(()) };
        let names = &self.broker.names;
        let side = link.side_channel().await?;
        topology::declare_model(&side, names, &model, self.broker.extent()).await?;
        let _ = side.close(200, "done".into()).await;
        let queue = names.queue(&model);
        let tag = format!("{}-{}", std::process::id(), self.serial.load(Ordering::Relaxed));
        let consumer = link
            .channel
            .basic_consume(
                queue.as_str().into(),
                format!("{tag}-{model}").chars().take(255).collect::<String>().as_str().into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| during(format!("take jobs from the queue {queue}"), &error))?;
        tracing::info!("taking jobs from the queue {queue}");
        self.taking = Some(Taking { model, consumer });
        Ok(())
    }

    /// Takes no more from the queue; what had been sent already goes back.
    async fn leave_queue(&mut self) {
        let Some(Taking { mut consumer, .. }) = self.taking.take() else { return };
        let Some(link) = &self.link else { return };
        let leave = async {
            if link.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await.is_ok() {
                // The broker's answer comes after the last delivery, and ends the stream.
                while let Some(Ok(delivery)) = consumer.next().await {
                    let _ = delivery.acker.nack(requeue()).await;
                }
            }
        };
        if tokio::time::timeout(LEAVE_PATIENCE, leave).await.is_err() {
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

    /// Whether a delivery came by the link there is now, and can be settled.
    fn stands(&self, tag: &Tag) -> bool {
        tag.link == self.serial.load(Ordering::Relaxed) && tag.acker.usable()
    }

    async fn settle(&mut self, tag: Tag, settlement: Settlement, reply: Option<oneshot::Sender<Settled>>) {
        self.idle_since = Instant::now();
        let settled = match settlement {
            _ if !self.stands(&tag) => Settled::Lost,
            Settlement::Done => accepted(tag.acker.ack(BasicAckOptions::default()).await),
            Settlement::HandBack => accepted(tag.acker.nack(requeue()).await),
            Settlement::Failed(failures) => return self.begin_move(tag, failures, reply),
        };
        answer(reply, settled);
    }

    /// Begins to move a failed job; what comes of it is heard in a later turn of the loop.
    fn begin_move(&mut self, tag: Tag, failures: Vec<Failure>, reply: Option<oneshot::Sender<Settled>>) {
        let messages = successors(&self.broker, &tag.original, failures);
        let mover = self.mover.clone();
        self.moves.spawn(async move {
            let put = mover.put(&messages, || tag.acker.usable()).await;
            Moved { tag, reply, put }
        });
    }

    /// A failed job leaves its queue once what takes its place is on record.
    async fn moved(&mut self, Moved { tag, reply, put }: Moved) {
        self.idle_since = Instant::now();
        let settled = match put {
            _ if !self.stands(&tag) => Settled::Lost,
            Ok(()) => accepted(tag.acker.ack(BasicAckOptions::default()).await),
            Err(error) => {
                tracing::warn!("{error}; the job goes back to its queue");
                let _ = tag.acker.nack(requeue()).await;
                Settled::Lost
            }
        };
        answer(reply, settled);
    }

    fn look_every(&self) -> Duration {
        let leave = self.options.leave.idle.map(|idle| idle / 5);
        leave.unwrap_or(LOOK_EVERY).clamp(Duration::from_millis(100), LOOK_EVERY)
    }

    /// With nothing in hand: goes where there is work. True where it is time to leave.
    async fn look(&mut self) -> Result<bool, BrokerError> {
        self.search().await?;
        let Some(link) = &self.link else { return Ok(false) };
        if let Some(taking) = &self.taking {
            let queue = self.broker.names.queue(&taking.model);
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
        if let Some(model) = self.with_work().await? {
            self.idle_since = Instant::now();
            self.leave_queue().await;
            self.take_from(model).await?;
            return Ok(false);
        }
        if let Some(longest) = self.options.leave.retries {
            let waiting = look::waiting(link, &self.broker.names).await?;
            if waiting.iter().any(|wait| wait.delay <= longest && wait.jobs > 0) {
                // They come back to their queues, and between the two nobody sees them for a moment.
                self.idle_since = Instant::now();
                return Ok(false);
            }
        }
        Ok(self.options.leave.idle.is_some_and(|idle| self.idle_since.elapsed() >= idle))
    }
}

fn arrived(moved: Result<Moved, JoinError>) -> Moved {
    moved.expect("moving a failed job neither panics nor is aborted")
}

/// Only a yes of the broker's channel is one: what is said of a lost delivery is no error.
fn accepted(said: lapin::Result<bool>) -> Settled {
    if matches!(said, Ok(true)) { Settled::Accepted } else { Settled::Lost }
}

fn answer(reply: Option<oneshot::Sender<Settled>>, settled: Settled) {
    if let Some(reply) = reply {
        // Whoever does not wait for the answer is gone.
        let _ = reply.send(settled);
    }
}

/// The next delivery; never, where no queue is taken from.
async fn next_of(taking: Option<&mut Taking>) -> Option<lapin::Result<message::Delivery>> {
    match taking {
        Some(taking) => taking.consumer.next().await,
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

fn requeue() -> BasicNackOptions {
    BasicNackOptions { requeue: true, multiple: false }
}
