//! What a story does at a broker itself: look at a queue, take what is in it, publish what no dispatcher would.
//!
//! All of it blocks, in sync and async tests alike (the latter on a multi-threaded runtime, or their own
//! connections miss heartbeats), and panics with what was attempted.

use std::{panic::resume_unwind, thread};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    options::{
        BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    },
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

/// A message as it lay in its queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Routing key it arrived with.
    pub routing_key: String,
    /// Its headers, an object; what JSON cannot say as a string.
    pub headers: Value,
    /// Its body.
    pub body: Vec<u8>,
}

/// Messages ready and consumers of a queue, by passive declare; none where there is no such queue.
pub fn queue_counts(url: &str, queue: &str) -> Option<(u32, u32)> {
    with_channel(url, async |channel| {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
            Ok(queue) => Some((queue.message_count(), queue.consumer_count())),
            Err(error) if is_not_found(&error) => None,
            Err(error) => panic!("declaring {queue} passively: {error}"),
        }
    })
}

/// Takes and acks everything that is ready in a queue.
pub fn drain(url: &str, queue: &str) -> Vec<Message> {
    with_channel(url, async |channel| {
        let mut messages = Vec::new();
        loop {
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await;
            let Some(got) = got.unwrap_or_else(|error| panic!("getting from {queue}: {error}")) else {
                return messages;
            };
            got.ack(BasicAckOptions::default())
                .await
                .unwrap_or_else(|error| panic!("acking what came from {queue}: {error}"));
            let got = got.delivery;
            messages.push(Message {
                routing_key: got.routing_key.to_string(),
                headers: got.properties.headers().as_ref().map_or_else(|| json!({}), table_as_json),
                body: got.data,
            });
        }
    })
}

/// Publishes a persistent message and waits until the broker confirmed it; panics where it reached no queue.
pub fn publish_raw(url: &str, exchange: &str, routing_key: &str, body: &[u8], headers: FieldTable) {
    let what = format!("publishing to exchange {exchange:?} with key {routing_key:?}");
    with_channel(url, async |channel| {
        let confirm = ConfirmSelectOptions::default();
        channel.confirm_select(confirm).await.unwrap_or_else(|error| panic!("asking for confirms: {error}"));
        let confirmation = channel
            .basic_publish(
                exchange.into(),
                routing_key.into(),
                BasicPublishOptions { mandatory: true, ..Default::default() },
                body,
                BasicProperties::default().with_delivery_mode(2).with_headers(headers),
            )
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"))
            .await
            .unwrap_or_else(|error| panic!("{what}, confirm: {error}"));
        assert_eq!(confirmation, Confirmation::Ack(None), "{what}");
    });
}

/// Connects, with nothing that retries.
pub async fn connect(url: &str) -> Connection {
    Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap_or_else(|error| panic!("connecting to {url}: {error}"))
}

/// Runs `work` on a channel of its own connection, on a thread of its own: a runtime cannot wait in another.
fn with_channel<T: Send>(url: &str, work: impl AsyncFnOnce(&Channel) -> T + Send) -> T {
    let session = async || {
        let connection = connect(url).await;
        let channel = connection
            .create_channel()
            .await
            .unwrap_or_else(|error| panic!("opening a channel at {url}: {error}"));
        let result = work(&channel).await;
        // Already closed where the work's channel error closed it with the connection.
        let _ = connection.close(200, "done".into()).await;
        result
    };
    let on_runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap_or_else(|error| panic!("starting a runtime: {error}")).block_on(session())
    };
    thread::scope(|scope| scope.spawn(on_runtime).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

fn table_as_json(table: &FieldTable) -> Value {
    table.inner().iter().map(|(key, value)| (key.to_string(), value_as_json(value))).collect()
}

fn value_as_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Timestamp(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::ShortString(value) => json!(value.as_str()),
        AMQPValue::LongString(value) => json!(String::from_utf8_lossy(value.as_bytes())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_as_json).collect(),
        AMQPValue::FieldTable(table) => table_as_json(table),
        AMQPValue::Void => Value::Null,
        other => json!(format!("{other:?}")),
    }
}
