//! RabbitMQ behind the queue contract: dispatchers on login nodes, workers on many machines, nothing lost between.
//!
//! | room | owns |
//! |---|---|
//! | [`topology`] | what lies on the broker and what it is called |
//! | [`message`] | a job as a message; how often it was tried, and why it failed |
//! | [`publisher`] | publishing with confirms, a bounded number at once |
//! | [`consumer`] | taking jobs, settling them, coming back after a lost connection |
//! | `successor` | what takes the place of a job that failed |
//! | `moving` | bringing that there, confirmed, while other jobs are settled |
//! | [`registry`] | what was enqueued |
//! | [`look`] | how full queues are |
//! | [`dead`] | what failed for good |
//! | [`error`] | what went wrong, and what to do |
//!
//! # What holds
//! - A job is in a queue, in a worker's unsettled hands, or settled; whoever dies gives back what it held.
//! - A worker settles a job after all its prompts ended. Prompts that failed are on record elsewhere on the broker,
//!   confirmed, before their job leaves its queue. So anything may arrive twice, and nothing is missing; doing a job
//!   twice is harmless.
//! - Publishing and consuming never share a connection: a broker that is short of memory stops those who publish,
//!   and acknowledgements must still get through.

mod connect;
pub mod consumer;
pub mod dead;
pub mod error;
mod link;
pub mod look;
pub mod message;
mod moving;
pub mod publisher;
pub mod registry;
mod successor;
pub mod topology;

pub use connect::Broker;
pub use consumer::{ConsumeOptions, Consumer, Leave, Wanted};
pub use dead::{DeadLetter, Judged, Verdict};
pub use error::BrokerError;
pub use look::{Counts, Observer, Waiting, unacknowledged};
pub use message::{Envelope, MESSAGE_BYTES, Try};
pub use publisher::{Confirmed, Publisher};
pub use registry::RunEntry;
pub use topology::Names;
