//! Moving failed jobs to where they wait for another try or are looked at, beside the task that settles deliveries.
//!
//! A failed job leaves its queue only once the broker confirmed what takes its place, and a broker that is short of
//! memory confirms nothing, for minutes. So every move runs by itself while its delivery stays unsettled, and the
//! deliveries of other jobs are settled meanwhile. A worker whose whole prefetch waits so gets no more until then.
//!
//! A confirm is waited for as long as the delivery stands: giving the job back instead would have it computed, and
//! counted by the broker, once more. What is refused, or broke with its connection, is sent again until the broker's
//! patience ends. Once the worker leaves, what is still under way has a moment left.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    Broker,
    error::{BrokerError, during},
    link::{Link, Purpose, WAITS},
    publisher::{Message, publish, taken},
};

/// How long the broker may still take to confirm what failed once the worker leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Publishes what failed. Clones share a connection, which is opened when it is first used.
#[derive(Clone)]
pub(super) struct Mover {
    broker: Broker,
    link: Arc<Mutex<Option<Arc<Link>>>>,
    leaving: CancellationToken,
}

impl Mover {
    pub(super) fn new(broker: &Broker) -> Mover {
        Mover { broker: broker.clone(), link: Arc::default(), leaving: CancellationToken::new() }
    }

    /// Publishes `messages` and returns once all of them are confirmed. After an error none can be relied on.
    /// `stands` says whether the delivery they replace is still ours: where it is not, the job comes again anyway.
    pub(super) async fn put(
        &self,
        messages: &[Message],
        stands: impl Fn() -> bool,
    ) -> Result<(), BrokerError> {
        let given_up = async {
            self.leaving.cancelled().await;
            tokio::time::sleep(LEAVE_PATIENCE).await;
        };
        tokio::select! {
            put = self.put_patiently(messages, stands) => put,
            () = given_up => Err(BrokerError::Lost {
                what: messages.first().map_or_else(String::new, |message| format!("publish {}", message.what)),
                reason: format!(
                    "no confirm within {} after this worker was to leave",
                    humantime::format_duration(LEAVE_PATIENCE)
                ),
            }),
        }
    }

    async fn put_patiently(
        &self,
        messages: &[Message],
        stands: impl Fn() -> bool,
    ) -> Result<(), BrokerError> {
        let (mut wait, mut failing) = (WAITS.0, None);
        loop {
            let Err(error) = self.put_once(messages).await else { return Ok(()) };
            // The wait for a confirm is no failure, however long it was.
            let failing = *failing.get_or_insert_with(Instant::now);
            let over = failing.elapsed() + wait > self.broker.patience;
            if over || !error.is_retryable() || !stands() {
                return Err(error);
            }
            tracing::warn!("{error}; sending it again in {}", humantime::format_duration(wait));
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
            wait = (wait * 2).min(WAITS.1);
        }
    }

    async fn put_once(&self, messages: &[Message]) -> Result<(), BrokerError> {
        let link = self.link().await?;
        let mut confirms = Vec::new();
        for message in messages {
            confirms.push((message, publish(&link, message).await?));
        }
        for (message, confirm) in confirms {
            let answer =
                confirm.await.map_err(|error| during(format!("publish {}", message.what), &error))?;
            taken(answer, message)?;
        }
        Ok(())
    }

    async fn link(&self) -> Result<Arc<Link>, BrokerError> {
        let mut shared = self.link.lock().await;
        match &*shared {
            Some(link) if link.is_alive() => Ok(Arc::clone(link)),
            _ => {
                let link = Arc::new(Link::open(&self.broker, Purpose::Publish).await?);
                *shared = Some(Arc::clone(&link));
                Ok(link)
            }
        }
    }

    /// From now on there is no time to wait for long.
    pub(super) fn hurry(&self) {
        self.leaving.cancel();
    }

    /// Says goodbye; nothing must be under way.
    pub(super) async fn close(self) {
        if let Some(link) = self.link.lock().await.take().and_then(Arc::into_inner) {
            link.close().await;
        }
    }
}
