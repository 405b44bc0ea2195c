//! The queue between those who plan and those who compute, as a contract.
//!
//! Two implementations stand behind it: [`memory`], embedded in one process, and [`rabbitmq`]. A consumer
//! holds a [`Delivery`] until it settles it; a delivery that is dropped unsettled goes back to the queue.

use std::{fmt, future::Future};

use crate::job::{Failure, Job};

pub mod memory;
pub mod rabbitmq;

/// What a consumer says of a delivery it is finished with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Every prompt is committed (or had failed before and is recorded): take the job off the queue.
    Done,
    /// Not begun, or interrupted: give it back untouched, for anyone, now.
    HandBack,
    /// Prompts failed; what the queue does (later, or never again) follows from their kinds.
    Failed(Vec<Failure>),
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The queue has heard it.
    Accepted,
    /// The delivery was taken back meanwhile, as after a lost connection: the queue gives the job out again, and
    /// whoever gets it finds what is committed.
    Lost,
}

/// Which try of a job a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// How many there are before the queue gives the job up.
    pub of: u32,
}

impl Attempt {
    /// Where nothing is tried again.
    pub const ONLY: Attempt = Attempt { number: 1, of: 1 };

    /// Whether what fails now is not tried again.
    pub fn is_last(self) -> bool {
        self.number >= self.of
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "try {} of {}", self.number, self.of)
    }
}

/// A job in a consumer's hands, with what the queue needs to settle it.
#[derive(Debug)]
pub struct Delivery<T> {
    /// The job.
    pub job: Job,
    /// Which try this is.
    pub attempt: Attempt,
    /// The queue's own handle.
    pub tag: T,
}

/// Takes jobs in.
pub trait Publish {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Puts `job` in the queue. Waits while the queue is full. Responsibility passes with [`flush`](Self::flush).
    fn publish(&mut self, job: Job) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns once the queue has taken responsibility for every job published so far.
    fn flush(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Gives jobs out.
pub trait Consume {
    /// The queue's handle on a delivery.
    type Tag: Send + 'static;
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;
    /// Ends when a settlement is over.
    type Settling: Future<Output = Result<Settled, Self::Error>> + Send + 'static;

    /// The next job, or `None` when no more will come. Dropping the future loses no job.
    fn next(&mut self) -> impl Future<Output = Result<Option<Delivery<Self::Tag>>, Self::Error>> + Send;

    /// Settles a delivery. It is under way when this returns, so nobody has to wait for its end, which may take as
    /// long as the queue needs to put on record what failed; further deliveries can be settled meanwhile.
    fn settle(&mut self, tag: Self::Tag, settlement: Settlement) -> Self::Settling;

    /// Takes no more: what this consumer holds and has not given out goes back. What was given out can still be
    /// settled.
    fn stop(&mut self) -> impl Future<Output = ()> + Send;
}

impl<Q: Consume + Send> Consume for &mut Q {
    type Tag = Q::Tag;
    type Error = Q::Error;
    type Settling = Q::Settling;

    fn next(&mut self) -> impl Future<Output = Result<Option<Delivery<Self::Tag>>, Self::Error>> + Send {
        (**self).next()
    }

    fn settle(&mut self, tag: Self::Tag, settlement: Settlement) -> Self::Settling {
        (**self).settle(tag, settlement)
    }

    fn stop(&mut self) -> impl Future<Output = ()> + Send {
        (**self).stop()
    }
}
