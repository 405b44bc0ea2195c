//! Looking at queues: over AMQP what everybody may see, over the management API what it adds.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Broker,
    error::BrokerError,
    link::{Link, Purpose},
    topology::{self, Names},
};
use crate::settings::BrokerUrl;

/// What a queue says of itself over AMQP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages nobody has in hand.
    pub ready: u64,
    /// Consumers.
    pub consumers: u64,
}

/// Jobs that wait for another try: any model's, for a wait's queue is one for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Where.
    pub queue: String,
    /// How long each of them does.
    pub delay: Duration,
    /// How many do.
    pub jobs: u64,
}

/// What waits for another try, a row a wait that there is, the shortest first as the settings have them.
pub(super) async fn waiting(link: &Link, names: &Names) -> Result<Vec<Waiting>, BrokerError> {
    let mut waiting = Vec::new();
    for &delay in names.delays() {
        let queue = names.retry(delay);
        if let Some(Counts { ready: jobs, .. }) = counts(link, &queue).await? {
            waiting.push(Waiting { queue, delay, jobs });
        }
    }
    Ok(waiting)
}

/// A queue's counts; none where there is no such queue.
pub(super) async fn counts(link: &Link, queue: &str) -> Result<Option<Counts>, BrokerError> {
    // A missing queue closes the channel that asked.
    let channel = link.side_channel().await?;
    match topology::passive(&channel, queue).await {
        Ok(declared) => {
            let _ = channel.close(200, "done".into()).await;
            Ok(Some(Counts {
                ready: declared.message_count().into(),
                consumers: declared.consumer_count().into(),
            }))
        }
        Err(BrokerError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks at a broker without changing anything.
pub struct Observer {
    pub(super) broker: Broker,
    pub(super) link: Link,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Observer {
    /// Connects.
    pub async fn connect(broker: &Broker) -> Result<Observer, BrokerError> {
        let link = Link::open(broker, Purpose::Look).await?;
        Ok(Observer { broker: broker.clone(), link })
    }

    /// The broker it looks at.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// A queue's counts; none where there is no such queue.
    pub async fn counts(&self, queue: &str) -> Result<Option<Counts>, BrokerError> {
        counts(&self.link, queue).await
    }

    /// What waits for another try.
    pub async fn waiting(&self) -> Result<Vec<Waiting>, BrokerError> {
        waiting(&self.link, &self.broker.names).await
    }

    /// Whether the connection still stands.
    pub fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.link.close().await;
    }
}

/// How many messages of each queue of the namespace are in workers' hands, as the management API at `url` says.
/// A queue it has no count for yet is left out.
pub async fn unacknowledged(broker: &Broker, url: &BrokerUrl) -> Result<HashMap<String, u64>, String> {
    #[derive(Deserialize)]
    struct Queue {
        name: String,
        messages_unacknowledged: Option<u64>,
    }
    let vhost: String = broker.vhost().bytes().map(|byte| format!("%{byte:02X}")).collect();
    let address = format!("{}/api/queues/{vhost}", url.reveal().trim_end_matches('/'));
    let failed =
        |what: &dyn std::fmt::Display| format!("the management API at {url} does not answer: {what}");
    let client =
        reqwest::Client::builder().timeout(Duration::from_secs(5)).build().map_err(|error| failed(&error))?;
    let mut request = client.get(&address).query(&[("columns", "name,messages_unacknowledged")]);
    // Where the address names nobody, the broker's own login is tried.
    if !url.reveal().contains('@')
        && let Some((user, password)) = broker.login()
    {
        request = request.basic_auth(user, Some(password.reveal()));
    }
    // The error would repeat the address, and with it a password.
    let answer = request.send().await.map_err(|error| failed(&error.without_url()))?;
    let answer = answer.error_for_status().map_err(|error| failed(&error.without_url()))?;
    let queues: Vec<Queue> = answer.json().await.map_err(|error| failed(&error.without_url()))?;
    let prefix = format!("{}.", broker.names.namespace());
    let ours = queues.into_iter().filter(|queue| queue.name.starts_with(&prefix));
    Ok(ours.filter_map(|queue| Some((queue.name, queue.messages_unacknowledged?))).collect())
}
