//! What lies on the broker, and what it is called. Legal from RabbitMQ 3.10 to 4.x.
//!
//! ```text
//! publish --> exchange NS.jobs --(model's name)--> queue NS.jobs.MODEL --> workers
//!                  ^                                   | more deliveries than the limit
//!                  | after the wait                    v
//!             queue NS.retry.30s <- exchange     exchange NS.dlx --> queue NS.dead
//!                                                      ^
//!   workers: failed, later --> NS.retry.30s            | failed for good
//! enqueue --> exchange NS.runs --> stream NS.runs: what was enqueued, so that queues can be found without a
//!                                                  management API
//! ```
//!
//! - All queues are quorum queues: durable, replicated, no message lost with a node.
//! - A retry queue's exchange is a fanout, so that a message keeps the routing key that leads it home.
//! - Dead-lettering is at-least-once, which quorum queues offer where they refuse publishes over publishing into
//!   nothing (`reject-publish`).
//! - The delivery limit of a model's queue stops jobs that kill whoever touches them. Ordinary failures never
//!   reach it: they are counted in a header of ours. The other queues are looked into by taking messages and
//!   giving them back, which must not count: their limit is out of reach.

use std::{fmt, time::Duration};

use lapin::{
    Channel, ExchangeKind, Queue as Declared,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Map, Value, json};

use super::error::{BrokerError, during};
use crate::{model::reference::ModelName, queue::Attempt, settings::Queue};

/// Deliveries after which a job counts as one that kills its workers. A worker that is told to leave gives back
/// without having begun, and before RabbitMQ 4.3 that counts, too: so not fewer.
const DELIVERY_LIMIT: i64 = 20;
/// A limit nobody reaches. From 4.0 on, a queue without one has 20.
const NO_LIMIT: i64 = 1_000_000_000;
/// Bytes of what was enqueued that are kept, in segments of an eighth: some hundred thousand runs.
const RUNS_BYTES: i64 = 64 << 20;
/// The routing key of dead letters.
pub(super) const DEAD_KEY: &str = "dead";

/// The names of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    namespace: String,
    delays: Vec<Duration>,
}

impl Names {
    /// The names the settings ask for.
    pub fn new(settings: &Queue) -> Result<Names, BrokerError> {
        let namespace = settings.namespace.clone();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        // With a model's name of 200 bytes it must stay under AMQP's 255.
        if !(1..=32).contains(&namespace.len())
            || !namespace.bytes().all(allowed)
            || namespace.starts_with("amq.")
        {
            return Err(BrokerError::Setting {
                setting: "queue.namespace",
                reason: format!(
                    "cannot be {namespace:?}: 1 to 32 of A-Z a-z 0-9 - _ ., not beginning with amq."
                ),
            });
        }
        let delays: Vec<Duration> = settings.retry_delays.iter().map(|span| span.0).collect();
        if delays.iter().any(|delay| delay.as_millis() == 0 || delay.as_millis() > u128::from(u32::MAX)) {
            return Err(BrokerError::Setting {
                setting: "queue.retry_delays",
                reason: "must each be between a millisecond and 49 days".to_owned(),
            });
        }
        Ok(Names { namespace, delays })
    }

    /// The namespace itself.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The waits before further tries.
    pub fn delays(&self) -> &[Duration] {
        &self.delays
    }

    /// The exchange jobs are published to, by their model's name.
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.namespace)
    }

    /// The queue of one model.
    pub fn queue(&self, model: &ModelName) -> String {
        format!("{}.jobs.{model}", self.namespace)
    }

    /// The exchange of dead letters.
    pub fn dead_exchange(&self) -> String {
        format!("{}.dlx", self.namespace)
    }

    /// The queue of dead letters.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.namespace)
    }

    /// The exchange and the stream of what was enqueued.
    pub fn runs(&self) -> String {
        format!("{}.runs", self.namespace)
    }

    /// The exchange and the queue in which jobs wait so long.
    pub fn retry(&self, delay: Duration) -> String {
        let text = humantime::format_duration(delay).to_string().replace(' ', "");
        format!("{}.retry.{text}", self.namespace)
    }

    /// Where a job goes after so many tries: a wait, or none once they are used up.
    pub(super) fn retry_after(&self, attempts: u32) -> Option<String> {
        let delay = self.delays.get(usize::try_from(attempts.checked_sub(1)?).ok()?)?;
        Some(self.retry(*delay))
    }

    /// Which try the next one is after so many.
    pub(super) fn attempt(&self, attempts: u32) -> Attempt {
        let number = attempts.saturating_add(1);
        let of = u32::try_from(self.delays.len()).unwrap_or(u32::MAX).saturating_add(1);
        // A job may come from a time in which the settings had more waits.
        Attempt { number, of: of.max(number) }
    }

    /// Everything that must exist for `models`, in words for an administrator: one line each.
    pub fn describe(&self, models: &[ModelName]) -> Vec<String> {
        let exchange = |(name, kind): &(String, ExchangeKind)| {
            format!("exchange {name}: {}, durable", format!("{kind:?}").to_lowercase())
        };
        let queue = |plan: &QueuePlan| {
            let arguments: Vec<_> =
                plan.arguments.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let bound = plan.bound.as_ref().map(|(exchange, key)| {
                let key = if key.is_empty() { String::new() } else { format!(" with key {key}") };
                format!("; bound to {exchange}{key}")
            });
            format!("queue {}: durable, {}{}", plan.name, arguments.join(", "), bound.unwrap_or_default())
        };
        let models = models.iter().map(|model| self.model_queue(model));
        let queues: Vec<_> = self.shared_queues().into_iter().chain(models).collect();
        self.exchanges().iter().map(exchange).chain(queues.iter().map(queue)).collect()
    }

    /// The same as definitions in JSON, as `rabbitmqctl import_definitions` and the management API take them.
    pub fn definitions(&self, models: &[ModelName], vhost: &str) -> Value {
        let exchange = |(name, kind): (String, ExchangeKind)| {
            let kind = format!("{kind:?}").to_lowercase();
            json!({
                "vhost": vhost, "name": name, "type": kind,
                "durable": true, "auto_delete": false, "internal": false, "arguments": {},
            })
        };
        let models = models.iter().map(|model| self.model_queue(model));
        let queues: Vec<_> = self.shared_queues().into_iter().chain(models).collect();
        let queue = |plan: &QueuePlan| {
            let arguments: Map<_, _> =
                plan.arguments.iter().map(|(key, value)| ((*key).to_owned(), value.json())).collect();
            json!({
                "vhost": vhost, "name": plan.name,
                "durable": true, "auto_delete": false, "arguments": arguments,
            })
        };
        let binding = |plan: &QueuePlan| {
            let (exchange, key) = plan.bound.as_ref()?;
            Some(json!({
                "vhost": vhost, "source": exchange, "destination": plan.name,
                "destination_type": "queue", "routing_key": key, "arguments": {},
            }))
        };
        json!({
            "exchanges": self.exchanges().into_iter().map(exchange).collect::<Vec<_>>(),
            "queues": queues.iter().map(queue).collect::<Vec<_>>(),
            "bindings": queues.iter().filter_map(binding).collect::<Vec<_>>(),
        })
    }

    fn exchanges(&self) -> Vec<(String, ExchangeKind)> {
        let retries = self.delays.iter().map(|&delay| (self.retry(delay), ExchangeKind::Fanout));
        [
            (self.jobs(), ExchangeKind::Direct),
            (self.dead_exchange(), ExchangeKind::Direct),
            (self.runs(), ExchangeKind::Fanout),
        ]
        .into_iter()
        .chain(retries)
        .collect()
    }

    /// Every queue that is not one model's.
    fn shared_queues(&self) -> Vec<QueuePlan> {
        let dead = QueuePlan {
            name: self.dead(),
            arguments: vec![("x-queue-type", "quorum".into()), ("x-delivery-limit", NO_LIMIT.into())],
            bound: Some((self.dead_exchange(), DEAD_KEY.to_owned())),
        };
        let runs = QueuePlan {
            name: self.runs(),
            arguments: vec![
                ("x-queue-type", "stream".into()),
                ("x-max-length-bytes", RUNS_BYTES.into()),
                ("x-stream-max-segment-size-bytes", (RUNS_BYTES / 8).into()),
            ],
            // Not the default exchange: so rights on the namespace's names are all that a user needs.
            bound: Some((self.runs(), String::new())),
        };
        let retries = self.delays.iter().map(|&delay| QueuePlan {
            name: self.retry(delay),
            arguments: vec![
                ("x-queue-type", "quorum".into()),
                ("x-message-ttl", i64::try_from(delay.as_millis()).unwrap_or(i64::MAX).into()),
                ("x-dead-letter-exchange", self.jobs().into()),
                ("x-dead-letter-strategy", "at-least-once".into()),
                ("x-overflow", "reject-publish".into()),
                ("x-delivery-limit", NO_LIMIT.into()),
            ],
            bound: Some((self.retry(delay), String::new())),
        });
        [dead, runs].into_iter().chain(retries).collect()
    }

    fn model_queue(&self, model: &ModelName) -> QueuePlan {
        QueuePlan {
            name: self.queue(model),
            arguments: vec![
                ("x-queue-type", "quorum".into()),
                ("x-dead-letter-exchange", self.dead_exchange().into()),
                ("x-dead-letter-routing-key", DEAD_KEY.into()),
                ("x-dead-letter-strategy", "at-least-once".into()),
                ("x-overflow", "reject-publish".into()),
                ("x-delivery-limit", DELIVERY_LIMIT.into()),
            ],
            bound: Some((self.jobs(), model.to_string())),
        }
    }
}

/// A queue as it is to be.
struct QueuePlan {
    name: String,
    arguments: Vec<(&'static str, Argument)>,
    /// Exchange and key.
    bound: Option<(String, String)>,
}

/// An argument's value.
enum Argument {
    Text(String),
    Number(i64),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Argument::Text(text.to_owned())
    }
}

impl From<String> for Argument {
    fn from(text: String) -> Self {
        Argument::Text(text)
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Argument::Number(number)
    }
}

impl Argument {
    fn json(&self) -> Value {
        match self {
            Argument::Text(text) => json!(text),
            Argument::Number(number) => json!(number),
        }
    }
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Argument::Text(text) => f.write_str(text),
            Argument::Number(number) => write!(f, "{number}"),
        }
    }
}

impl QueuePlan {
    fn table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        for (key, value) in &self.arguments {
            let value = match value {
                Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
                Argument::Number(number) => AMQPValue::LongLongInt(*number),
            };
            table.insert((*key).into(), value);
        }
        table
    }
}

/// How much of the topology somebody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything, made where it is missing.
    Declare,
    /// Whatever is there must do.
    Check,
}

/// Sees to it that everything the namespace shares is there. A refusal closes `channel`.
pub(super) async fn declare_shared(
    channel: &Channel,
    names: &Names,
    extent: Extent,
) -> Result<(), BrokerError> {
    for (name, kind) in names.exchanges() {
        let (verb, options) = match extent {
            Extent::Declare => ("declare", ExchangeDeclareOptions { durable: true, ..Default::default() }),
            Extent::Check => ("look at", ExchangeDeclareOptions { passive: true, ..Default::default() }),
        };
        channel
            .exchange_declare(name.as_str().into(), kind, options, FieldTable::default())
            .await
            .map_err(|error| during(format!("{verb} the exchange {name}"), &error))?;
    }
    for plan in names.shared_queues() {
        declare_queue(channel, &plan, extent).await?;
    }
    Ok(())
}

/// Sees to it that a model's queue is there.
pub(super) async fn declare_model(
    channel: &Channel,
    names: &Names,
    model: &ModelName,
    extent: Extent,
) -> Result<(), BrokerError> {
    declare_queue(channel, &names.model_queue(model), extent).await
}

async fn declare_queue(channel: &Channel, plan: &QueuePlan, extent: Extent) -> Result<(), BrokerError> {
    let name = &plan.name;
    if extent == Extent::Check {
        return passive(channel, name).await.map(|_| ());
    }
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel
        .queue_declare(name.as_str().into(), options, plan.table())
        .await
        .map_err(|error| during(format!("declare the queue {name}"), &error))?;
    if let Some((exchange, key)) = &plan.bound {
        channel
            .queue_bind(
                name.as_str().into(),
                exchange.as_str().into(),
                key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| during(format!("bind the queue {name} to {exchange}"), &error))?;
    }
    Ok(())
}

/// What a queue says of itself. A missing one closes `channel`.
pub(super) async fn passive(channel: &Channel, name: &str) -> Result<Declared, BrokerError> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    channel
        .queue_declare(name.into(), options, FieldTable::default())
        .await
        .map_err(|error| during(format!("look at the queue {name}"), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Span;

    #[test]
    fn names_fit_and_waits_are_told_apart() {
        let mut settings = Queue::default();
        let names = Names::new(&settings).unwrap();
        let longest = ModelName::try_from("m".repeat(200)).unwrap();
        assert!(names.queue(&longest).len() <= 255);
        assert_eq!(names.retry_after(1).unwrap(), "lenspool.retry.30s");
        assert_eq!(names.retry_after(3).unwrap(), "lenspool.retry.30m");
        assert_eq!((names.retry_after(0), names.retry_after(4)), (None, None));
        assert_eq!(
            (names.attempt(1).to_string().as_str(), names.attempt(1).is_last()),
            ("try 2 of 4", false)
        );
        assert!(names.attempt(3).is_last() && names.attempt(9).is_last());
        settings.retry_delays = vec![Span::seconds(90)];
        assert_eq!(Names::new(&settings).unwrap().retry_after(1).unwrap(), "lenspool.retry.1m30s");

        for bad in ["", "a b", "amq.x", &"x".repeat(33), "x/y"] {
            settings.namespace = bad.to_owned();
            assert!(Names::new(&settings).unwrap_err().to_string().contains("queue.namespace"), "{bad:?}");
        }
        let none = Queue { retry_delays: vec![Span::seconds(0)], ..Queue::default() };
        assert!(Names::new(&none).unwrap_err().to_string().contains("queue.retry_delays"));
    }

    #[test]
    fn an_administrator_reads_what_is_needed() {
        let names = Names::new(&Queue::default()).unwrap();
        let lines = names.describe(&[ModelName::try_from("gpt2").unwrap()]);
        assert!(lines.contains(&"exchange lenspool.jobs: direct, durable".to_owned()), "{lines:#?}");
        let queue = lines.iter().find(|line| line.starts_with("queue lenspool.jobs.gpt2: ")).unwrap();
        assert!(
            queue.contains("x-queue-type=quorum") && queue.ends_with("bound to lenspool.jobs with key gpt2")
        );
    }
}
