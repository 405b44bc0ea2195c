//! What a test can ask of a broker before it starts.

use std::time::Duration;

use super::Broker;

/// The settings of a broker; those of a plain one by default.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) management: bool,
    pub(super) tls: bool,
    pub(super) ack_timeout: Option<Duration>,
    pub(super) memory: String,
}

impl Default for Options {
    fn default() -> Self {
        Options { management: false, tls: false, ack_timeout: None, memory: "512MB".to_owned() }
    }
}

impl Options {
    /// What has no key in rabbitmq.conf, as Erlang terms.
    pub(super) fn advanced(&self) -> String {
        let Some(timeout) = self.ack_timeout else { return "[].\n".to_owned() };
        // The broker looks for late acks once a tick, which is a minute otherwise.
        let tick = Duration::from_secs(1);
        format!(
            "[{{rabbit, [{{channel_tick_interval, {}}}, {{consumer_timeout, {}}}]}}].\n",
            tick.as_millis(),
            timeout.as_millis()
        )
    }
}

/// Options of a broker that is about to start: [`Broker::builder`].
#[derive(Clone, Debug, Default)]
pub struct Builder(Options);

impl Builder {
    /// With the management plugin, at [`Broker::management_url`].
    pub fn management(mut self) -> Self {
        self.0.management = true;
        self
    }

    /// With a TLS listener beside the plain one, at [`Broker::tls_url`], whose certificate a private CA signed:
    /// [`Broker::ca_file`].
    pub fn tls(mut self) -> Self {
        self.0.tls = true;
        self
    }

    /// Closes a channel that holds a delivery unacked for this long (`consumer_timeout`; 30 minutes otherwise).
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.0.ack_timeout = Some(timeout);
        self
    }

    /// The memory at which publishers are blocked, as RabbitMQ spells sizes (`512MB` otherwise).
    pub fn memory(mut self, watermark: &str) -> Self {
        self.0.memory = watermark.to_owned();
        self
    }

    /// Starts it and waits until it accepts connections; panics with the end of its log where it does not.
    pub fn start(self) -> Broker {
        Broker::with(self.0)
    }
}
