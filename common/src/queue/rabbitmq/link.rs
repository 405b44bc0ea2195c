//! A connection with one channel, made ready for its purpose, and made again when it breaks.
//!
//! lapin can recover connections by itself, but a recovered channel cannot say which deliveries it lost; so a link
//! that breaks is thrown away whole and a new one opened, and whatever belonged to the old one is known by it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Event,
    options::{BasicQosOptions, ConfirmSelectOptions},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Broker,
    error::{BrokerError, during},
    topology::{self, Extent},
};

/// The first wait before a lost broker is tried again, and the longest.
pub(super) const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Publishing with confirms.
    Publish,
    /// Taking deliveries, so many at once.
    Consume { prefetch: u16 },
    /// Looking.
    Look,
}

impl Purpose {
    /// What the connection is called.
    fn role(self) -> &'static str {
        match self {
            Purpose::Publish => "publisher",
            Purpose::Consume { .. } => "consumer",
            Purpose::Look => "observer",
        }
    }
}

/// A connection and its channel.
pub(super) struct Link {
    pub(super) connection: Arc<Connection>,
    pub(super) channel: Channel,
    /// Tells of alarms for as long as the link lives.
    _watch: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects once and makes the channel ready. What the namespace shares is declared, or checked where the
    /// settings or the purpose say so.
    pub(super) async fn open(broker: &Broker, purpose: Purpose) -> Result<Link, BrokerError> {
        let connection = Arc::new(broker.connect(purpose.role()).await?);
        let watch = AbortOnDropHandle::new(tokio::spawn(tell(connection.events_listener(), purpose)));
        let channel = open_channel(&connection).await?;
        let extent = broker.extent();
        match purpose {
            Purpose::Publish => {
                topology::declare_shared(&channel, &broker.names, extent).await?;
                channel
                    .confirm_select(ConfirmSelectOptions::default())
                    .await
                    .map_err(|error| during("ask for confirms", &error))?;
            }
            Purpose::Consume { prefetch } => {
                topology::declare_shared(&channel, &broker.names, extent).await?;
                channel
                    .basic_qos(prefetch, BasicQosOptions::default())
                    .await
                    .map_err(|error| during("bound the deliveries", &error))?;
            }
            Purpose::Look => {}
        }
        Ok(Link { connection, channel, _watch: watch })
    }

    /// Opens a link that was there before: tries until the broker's patience ends. Whatever a broker answers while
    /// it starts may pass.
    pub(super) async fn open_again(broker: &Broker, purpose: Purpose) -> Result<Link, BrokerError> {
        let begin = Instant::now();
        let mut wait = WAITS.0;
        loop {
            match Link::open(broker, purpose).await {
                Ok(link) => return Ok(link),
                Err(last) if begin.elapsed() + wait > broker.patience => {
                    return Err(BrokerError::GaveUp { patience: broker.patience, last: Box::new(last) });
                }
                Err(error) => tracing::warn!("{error}; trying again in {}", humantime::format_duration(wait)),
            }
            // Many workers lose a broker at once and must not come back at once.
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
            wait = (wait * 2).min(WAITS.1);
        }
    }

    /// A further channel of the connection, for what may close it.
    pub(super) async fn side_channel(&self) -> Result<Channel, BrokerError> {
        open_channel(&self.connection).await
    }

    /// Whether it can still be used.
    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Says goodbye, so that everything sent has arrived when this returns.
    pub(super) async fn close(self) {
        // An error means that it is closed already.
        let close = self.connection.close(200, "done".into());
        let _ = tokio::time::timeout(Duration::from_secs(5), close).await;
    }
}

async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    connection.create_channel().await.map_err(|error| during("open a channel", &error))
}

/// Says what a user who wonders why nothing moves must know.
async fn tell(events: impl futures_util::Stream<Item = Event>, purpose: Purpose) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => tracing::warn!(
                "the broker takes no messages now ({reason}): the {} waits until its memory or disk alarm is over",
                purpose.role()
            ),
            Event::ConnectionUnblocked => tracing::warn!("the broker takes messages again"),
            _ => {}
        }
    }
}

impl Broker {
    /// How much of the topology may be made.
    pub(super) fn extent(&self) -> Extent {
        if self.passive { Extent::Check } else { Extent::Declare }
    }
}
