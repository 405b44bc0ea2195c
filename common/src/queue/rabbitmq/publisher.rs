//! Publishing with confirms: many messages under way at once, none forgotten.
//!
//! A message counts once the broker confirmed it, that is, once a majority of its queue's replicas has it on disk.
//! Until then a copy is kept; after a broken connection everything unconfirmed is sent again, in order.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use lapin::{BasicProperties, Confirmation, PublisherConfirm, options::BasicPublishOptions};

use super::{
    Broker,
    error::{BrokerError, during},
    link::{Link, Purpose},
    message::{self, Envelope},
    topology::{self, DEAD_KEY},
};
use crate::{job::Job, model::reference::ModelName, queue::Publish};

/// Unconfirmed messages, and their bytes, beyond which publishing waits.
const WINDOW: usize = 1000;
const WINDOW_BYTES: usize = 64 << 20;
/// The wait before a message that the broker refused is sent again.
const REFUSED_WAIT: Duration = Duration::from_secs(1);

/// A message and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    /// What it is, for errors.
    pub(super) what: String,
}

impl Message {
    /// A job on its way to its model's queue.
    pub(super) fn job(broker: &Broker, envelope: &Envelope, body: Vec<u8>) -> Message {
        Message {
            exchange: broker.names.jobs(),
            routing_key: envelope.model.clone(),
            properties: envelope.properties(),
            body,
            what: format!("job {}", envelope.id),
        }
    }

    /// A job that goes on after a failed try: into a wait, or to the dead letters. `routing_key` leads home.
    pub(super) fn failed(
        broker: &Broker,
        envelope: &Envelope,
        routing_key: &str,
        body: Vec<u8>,
        later: bool,
    ) -> Message {
        let wait = later.then(|| broker.names.retry_after(envelope.attempts)).flatten();
        let (exchange, routing_key) = match wait {
            Some(exchange) => (exchange, routing_key.to_owned()),
            None => (broker.names.dead_exchange(), DEAD_KEY.to_owned()),
        };
        let what = format!("the failed job {}", envelope.id);
        Message { exchange, routing_key, properties: envelope.properties(), body, what }
    }
}

struct InFlight {
    message: Message,
    /// None until it is sent, and after its link broke.
    confirm: Option<PublisherConfirm>,
}

/// A message the broker has taken responsibility for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The job's id.
    pub id: String,
    /// Bytes of its body.
    pub bytes: usize,
}

/// Publishes jobs of any number of models.
pub struct Publisher {
    broker: Broker,
    link: Option<Link>,
    window: VecDeque<InFlight>,
    bytes: usize,
    declared: HashSet<String>,
    /// Messages confirmed and not asked for yet, in the order they were published.
    confirmed: Vec<Confirmed>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("broker", &self.broker)
            .field("in_flight", &self.window.len())
            .finish()
    }
}

impl Publisher {
    /// Connects, and sees to it that the namespace is there.
    pub async fn connect(broker: &Broker) -> Result<Publisher, BrokerError> {
        Ok(Publisher {
            broker: broker.clone(),
            link: Some(Link::open(broker, Purpose::Publish).await?),
            window: VecDeque::new(),
            bytes: 0,
            declared: HashSet::new(),
            confirmed: Vec::new(),
        })
    }

    /// Sees to it that a model's queue is there.
    pub async fn declare(&mut self, model: &ModelName) -> Result<(), BrokerError> {
        if self.declared.contains(model.as_str()) {
            return Ok(());
        }
        let (names, extent) = (self.broker.names.clone(), self.broker.extent());
        let link = self.link().await?;
        // A refusal closes the channel, so not the one that publishes.
        let channel = link.side_channel().await?;
        topology::declare_model(&channel, &names, model, extent).await?;
        let _ = channel.close(200, "done".into()).await;
        self.declared.insert(model.to_string());
        Ok(())
    }

    /// The messages that were confirmed since the last call, in order.
    pub fn take_confirmed(&mut self) -> Vec<Confirmed> {
        std::mem::take(&mut self.confirmed)
    }

    /// Puts a message under way; waits while too many are.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), BrokerError> {
        while !self.window.is_empty()
            && (self.window.len() >= WINDOW || self.bytes + message.body.len() > WINDOW_BYTES)
        {
            self.confirm_oldest().await?;
        }
        self.bytes += message.body.len();
        self.window.push_back(InFlight { message, confirm: None });
        self.send_unsent().await?;
        // What came back meanwhile, without waiting.
        while let Some(confirm) = self.window.front_mut().and_then(|front| front.confirm.as_mut()) {
            let Some(answer) = confirm.now_or_never() else { break };
            self.hear(answer).await?;
        }
        Ok(())
    }

    /// Waits until every message is confirmed.
    pub async fn confirm_all(&mut self) -> Result<(), BrokerError> {
        while !self.window.is_empty() {
            self.confirm_oldest().await?;
        }
        Ok(())
    }

    /// Says goodbye; everything must be confirmed before.
    pub async fn close(mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    async fn link(&mut self) -> Result<&Link, BrokerError> {
        if !self.link.as_ref().is_some_and(Link::is_alive) {
            self.lose();
            let again = Link::open_again(&self.broker, Purpose::Publish).await?;
            self.link = Some(again);
        }
        Ok(self.link.as_ref().expect("just opened"))
    }

    /// Forgets the link, and that anything was sent over it.
    fn lose(&mut self) {
        self.link = None;
        for in_flight in &mut self.window {
            in_flight.confirm = None;
        }
    }

    /// Sends whatever is not under way, in order.
    async fn send_unsent(&mut self) -> Result<(), BrokerError> {
        'again: loop {
            self.link().await?;
            let link = self.link.as_ref().expect("just opened");
            for in_flight in self.window.iter_mut().filter(|in_flight| in_flight.confirm.is_none()) {
                match publish(link, &in_flight.message).await {
                    Ok(confirm) => in_flight.confirm = Some(confirm),
                    Err(error) if error.is_retryable() => {
                        tracing::warn!("{error}");
                        self.lose();
                        continue 'again;
                    }
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        }
    }

    async fn confirm_oldest(&mut self) -> Result<(), BrokerError> {
        self.send_unsent().await?;
        let Some(confirm) = self.window.front_mut().and_then(|front| front.confirm.as_mut()) else {
            return Ok(());
        };
        let answer = confirm.await;
        self.hear(answer).await
    }

    /// Takes the broker's answer to the oldest message.
    async fn hear(&mut self, answer: lapin::Result<Confirmation>) -> Result<(), BrokerError> {
        let Some(front) = self.window.front_mut() else { return Ok(()) };
        front.confirm = None;
        match answer {
            Ok(Confirmation::Nack(_)) => {
                // As when too few nodes of a cluster are up.
                tracing::warn!("the broker refused {} for now; sending it again", front.message.what);
                tokio::time::sleep(REFUSED_WAIT).await;
                self.send_unsent().await
            }
            Ok(answer) => {
                let InFlight { message, .. } = self.window.pop_front().expect("looked at above");
                self.bytes -= message.body.len();
                // What comes back is no longer under way: those behind it still are.
                taken(answer, &message)?;
                let id = message.properties.message_id().as_ref().map(ToString::to_string);
                self.confirmed.push(Confirmed { id: id.unwrap_or_default(), bytes: message.body.len() });
                Ok(())
            }
            Err(error) => {
                let error = during(format!("publish {}", front.message.what), &error);
                if !error.is_retryable() {
                    return Err(error);
                }
                tracing::warn!("{error}");
                self.lose();
                Ok(())
            }
        }
    }
}

/// Sends one message, as persistent as its properties say, and mandatory: without a queue it comes back.
pub(super) async fn publish(link: &Link, message: &Message) -> Result<PublisherConfirm, BrokerError> {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let begin = Instant::now();
    let sent = link
        .channel
        .basic_publish(
            message.exchange.as_str().into(),
            message.routing_key.as_str().into(),
            options,
            &message.body,
            message.properties.clone(),
        )
        .await;
    tracing::trace!("{} sent in {:?}", message.what, begin.elapsed());
    sent.map_err(|error| during(format!("publish {}", message.what), &error))
}

/// An answer that the message was taken, or why it was not.
pub(super) fn taken(answer: Confirmation, message: &Message) -> Result<(), BrokerError> {
    let not_taken = |reason: String| BrokerError::NotTaken { what: message.what.clone(), reason };
    match answer {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) => Err(not_taken(format!(
            "no queue of {} takes the key {:?} ({}); run `dispatcher enqueue` again, which binds it, or where \
             queue.passive is set have an administrator bind what `dispatcher topology` prints",
            message.exchange, message.routing_key, returned.reply_text
        ))),
        Confirmation::Nack(_) => {
            Err(not_taken("it was refused; too few nodes of its queue may be up".to_owned()))
        }
        Confirmation::NotRequested => Err(not_taken("confirms are not on".to_owned())),
    }
}

impl Publish for Publisher {
    type Error = BrokerError;

    async fn publish(&mut self, job: Job) -> Result<(), BrokerError> {
        let model = ModelName::try_from(job.model.name.clone()).map_err(|error| BrokerError::Setting {
            setting: "the model's name",
            reason: error.to_string(),
        })?;
        let body = message::body(&job)?;
        self.declare(&model).await?;
        self.send(Message::job(&self.broker, &Envelope::of(&job), body)).await
    }

    async fn flush(&mut self) -> Result<(), BrokerError> {
        self.confirm_all().await
    }
}
