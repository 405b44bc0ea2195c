//! Private RabbitMQ brokers for tests: real processes on free ports of 127.0.0.1, with all they own under one
//! temporary folder. Several run beside each other, as root or not, and none outlives its test.
//!
//! ```no_run
//! use tests::broker;
//!
//! let url = broker::shared().url(); // One for all tests of a binary, each in a namespace of its own ...
//! let namespace = broker::namespace("my_test");
//!
//! let own = broker::Broker::start(); // ... and one for a test that kills it.
//! own.kill();
//! own.restart();
//! ```
//!
//! Everything blocks, and panics where it fails: an async test that calls it runs on a multi-threaded runtime.

mod amqp;
mod builder;
mod cluster;
mod node;
mod port;
mod sandbox;
mod tls;
mod wait;

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use amqp::{Message, connect, drain, publish_raw, queue_counts};
pub use builder::Builder;
pub use cluster::Cluster;
pub use wait::wait_until;

use self::{builder::Options, node::Node, port::Port, sandbox::Sandbox};
use crate::Ended;

/// How long after its declaration a quorum queue is sure to survive [`Broker::kill`]. RabbitMQ 3.10 writes what it
/// knows of a new queue with a delay: killed before, it comes back with a queue that has no leader, ever.
pub const QUEUE_ON_DISK: Duration = Duration::from_secs(5);

/// The broker that all tests of this binary share; it starts with the first and ends with the process.
pub fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(Broker::start)
}

/// A name that no other call returned, for the queues and exchanges of one test at the [`shared`] broker.
pub fn namespace(test_name: &str) -> String {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    format!("{test_name}-{}", CALLS.fetch_add(1, Ordering::Relaxed))
}

/// A RabbitMQ broker of our own. It ends when this is dropped, or when this process ends, however it does.
#[derive(Debug)]
pub struct Broker {
    node: Node,
    memory: String,
}

impl Broker {
    /// Starts one without plugins or TLS and waits until it accepts connections.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// What it should have beyond that.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn with(options: Options) -> Self {
        let node = Node::launch(&Arc::new(Sandbox::new()), "rabbit", &[], &options);
        node.wait_until_up();
        Broker { node, memory: options.memory }
    }

    /// Where it speaks AMQP, as guest at the default virtual host.
    pub fn url(&self) -> String {
        self.url_as("guest", "guest", "/")
    }

    /// Where it speaks AMQP, as another user or at another virtual host.
    pub fn url_as(&self, user: &str, password: &str, vhost: &str) -> String {
        amqp_url("amqp", user, password, "127.0.0.1", &self.node.amqp, vhost)
    }

    /// Where it speaks AMQP over TLS; its certificate is for localhost and 127.0.0.1.
    pub fn tls_url(&self) -> String {
        let (port, _) = self.node.tls.as_ref().expect("the broker was built with tls()");
        amqp_url("amqps", "guest", "guest", "localhost", port, "/")
    }

    /// The private CA that signed its certificate, PEM.
    pub fn ca_file(&self) -> &Path {
        &self.node.tls.as_ref().expect("the broker was built with tls()").1.ca
    }

    /// Where the management plugin answers, with guest's name and password in it.
    pub fn management_url(&self) -> String {
        let port = self.node.management.as_ref().expect("the broker was built with management()");
        format!("http://guest:guest@127.0.0.1:{}", port.number())
    }

    /// Adds a user with permissions at the default virtual host: regular expressions of what it may configure,
    /// write and read; an empty one allows nothing.
    pub fn add_user(&self, name: &str, password: &str, configure: &str, write: &str, read: &str) {
        self.rabbitmqctl(&["add_user", name, password]).expect(0);
        self.rabbitmqctl(&["set_permissions", name, configure, write, read]).expect(0);
    }

    /// Adds a virtual host where guest may do everything.
    pub fn add_vhost(&self, name: &str) {
        self.rabbitmqctl(&["add_vhost", name]).expect(0);
        self.rabbitmqctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]).expect(0);
    }

    /// Runs `rabbitmqctl` to its end, whatever that is.
    pub fn rabbitmqctl(&self, args: &[&str]) -> Ended {
        self.node.ctl(args)
    }

    /// Blocks publishers as a broker short of memory does, or lets them go on.
    pub fn memory_alarm(&self, on: bool) {
        let watermark = if on { "1MB" } else { &*self.memory };
        self.rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", watermark]).expect(0);
    }

    /// Closes every client's connection, as an operator does.
    pub fn close_all_connections(&self) {
        self.rabbitmqctl(&["close_all_connections", "closed by a test"]).expect(0);
    }

    /// kill -9: nothing is flushed or said to clients. Its data stay, but for queues younger than [`QUEUE_ON_DISK`].
    pub fn kill(&self) {
        self.node.kill();
    }

    /// An orderly stop (SIGTERM). Its data stay.
    pub fn stop(&self) {
        self.node.stop();
    }

    /// Starts it again after [`Broker::kill`] or [`Broker::stop`], on the same data and ports, and waits until it
    /// accepts connections.
    pub fn restart(&self) {
        self.node.relaunch();
        self.node.wait_until_up();
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.node.log()
    }

    /// The folder that holds all it owns, and that goes with it.
    pub fn dir(&self) -> &Path {
        self.node.sandbox_dir()
    }
}

fn amqp_url(scheme: &str, user: &str, password: &str, host: &str, port: &Port, vhost: &str) -> String {
    let vhost = vhost.replace('%', "%25").replace('/', "%2f");
    format!("{scheme}://{user}:{password}@{host}:{}/{vhost}", port.number())
}
