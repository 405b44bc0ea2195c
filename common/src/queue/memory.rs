//! The embedded queue of `worker run`: a bounded channel. The planner waits when it is full, so
//! memory does not grow with the number of prompts.

use std::{
    convert::Infallible,
    future::{Ready, ready},
};

use tokio::sync::mpsc;

use super::{Attempt, Consume, Delivery, Publish, Settled, Settlement};
use crate::job::{Failure, Job, JobId};

/// Makes a queue that holds at most `capacity` jobs.
pub fn queue(capacity: usize) -> (Publisher, Consumer) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (Publisher { sender }, Consumer { receiver, handed_back: Vec::new(), failed: Vec::new() })
}

/// The planning end. The queue ends once it is dropped and drained.
#[derive(Debug)]
pub struct Publisher {
    sender: mpsc::Sender<Job>,
}

/// The computing end is gone, so nobody would run the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the consumer of the embedded queue stopped")]
pub struct Closed;

impl Publish for Publisher {
    type Error = Closed;

    async fn publish(&mut self, job: Job) -> Result<(), Closed> {
        self.sender.send(job).await.map_err(|_| Closed)
    }

    async fn flush(&mut self) -> Result<(), Closed> {
        Ok(())
    }
}

/// The computing end.
#[derive(Debug)]
pub struct Consumer {
    receiver: mpsc::Receiver<Job>,
    /// Jobs given back: the run ends without them and the next one plans them again.
    pub handed_back: Vec<JobId>,
    /// Prompts that failed, in the order they were settled.
    pub failed: Vec<Failure>,
}

impl Consume for Consumer {
    type Tag = JobId;
    type Error = Infallible;
    type Settling = Ready<Result<Settled, Infallible>>;

    async fn next(&mut self) -> Result<Option<Delivery<JobId>>, Infallible> {
        Ok(self.receiver.recv().await.map(|job| Delivery {
            tag: job.id.clone(),
            job,
            attempt: Attempt::ONLY,
        }))
    }

    fn settle(&mut self, tag: JobId, settlement: Settlement) -> Self::Settling {
        match settlement {
            Settlement::Done => {}
            Settlement::HandBack => self.handed_back.push(tag),
            Settlement::Failed(failures) => self.failed.extend(failures),
        }
        ready(Ok(Settled::Accepted))
    }

    async fn stop(&mut self) {
        self.receiver.close();
        while let Ok(job) = self.receiver.try_recv() {
            self.handed_back.push(job.id);
        }
    }
}
