//! What was enqueued in a namespace: a stream on the broker, an entry a model of a run. AMQP cannot list queues;
//! from here a worker knows which models there are, and an operator which runs, and where their files lie.

use std::{path::PathBuf, time::Duration};

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::{
    BasicProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};

use super::{
    error::{BrokerError, during},
    link::Link,
    look::Observer,
    publisher::{Message, Publisher},
    topology::{self, Names},
};
use crate::job::{ModelPin, RunId};

/// How long nothing may come before the stream counts as read. A stream has no end, and the count it gives of
/// itself lags by seconds.
const SILENCE: Duration = Duration::from_millis(500);
/// How long the first entry of a stream that is known to hold some may take.
const FIRST: Duration = Duration::from_secs(10);
/// Entries under way at once.
const AHEAD: u16 = 500;

/// One model of a run, as it was enqueued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEntry {
    /// The run.
    pub run: RunId,
    /// The model.
    pub model: ModelPin,
    /// The data directory.
    pub save_path: PathBuf,
    /// Prompts that are to be computed.
    pub prompts: usize,
    /// Messages they make.
    pub jobs: usize,
    /// When.
    pub at: Timestamp,
    /// From which host.
    pub host: String,
}

impl Publisher {
    /// Enters a model of a run. Entering it again is harmless: the last entry holds.
    pub async fn register(&mut self, names: &Names, entry: &RunEntry) -> Result<(), BrokerError> {
        let body = serde_json::to_vec(entry).expect("an entry is plain data");
        self.confirm_all().await?;
        self.send(Message {
            exchange: names.runs(),
            routing_key: String::new(),
            properties: BasicProperties::default().with_content_type("application/json".into()),
            body,
            what: format!("the entry of run {}", entry.run),
        })
        .await?;
        self.confirm_all().await
    }
}

impl Observer {
    /// Everything enqueued in the namespace, oldest first, each model of a run once.
    pub async fn runs(&self) -> Result<Vec<RunEntry>, BrokerError> {
        read(&self.link, &self.broker.names).await
    }
}

/// See [`Observer::runs`].
pub(super) async fn read(link: &Link, names: &Names) -> Result<Vec<RunEntry>, BrokerError> {
    let stream = names.runs();
    let channel = link.side_channel().await?;
    let entered = match topology::passive(&channel, &stream).await {
        Ok(declared) => declared.message_count() > 0,
        // Nobody has enqueued anything yet.
        Err(BrokerError::Missing { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let failed = |error: &lapin::Error| during(format!("read the stream {stream}"), error);
    channel.basic_qos(AHEAD, BasicQosOptions::default()).await.map_err(|error| failed(&error))?;
    let mut from = FieldTable::default();
    from.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(stream.as_str().into(), "".into(), options, from).await;
    let mut consumer = consumer.map_err(|error| failed(&error))?;
    let mut entries: Vec<RunEntry> = Vec::new();
    let mut patience = if entered { FIRST } else { SILENCE };
    while let Ok(delivery) = tokio::time::timeout(patience, consumer.next()).await {
        let Some(delivery) = delivery else {
            let (what, reason) = (format!("read the stream {stream}"), "the broker ended it".to_owned());
            return Err(BrokerError::Lost { what, reason });
        };
        patience = SILENCE;
        let delivery = delivery.map_err(|error| failed(&error))?;
        if let Ok(entry) = serde_json::from_slice::<RunEntry>(&delivery.data) {
            entries.retain(|known| known.run != entry.run || known.model.name != entry.model.name);
            entries.push(entry);
        }
        delivery.acker.ack(BasicAckOptions::default()).await.map_err(|error| failed(&error))?;
    }
    let _ = channel.close(200, "done".into()).await;
    Ok(entries)
}
