//! What `status` says, as data.

use common::job::FailureKind;
use jiff::Timestamp;
use serde::Serialize;

use crate::follow::State;

/// Everything `status` says; `--json` prints it. See [`super`] for the fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Report {
    pub namespace: String,
    pub at: Timestamp,
    pub broker: BrokerRow,
    pub queues: Vec<QueueRow>,
    pub retry: Vec<RetryRow>,
    pub dead: Dead,
    pub runs: Vec<RunRow>,
    pub older_runs: usize,
    pub warnings: Vec<String>,
}

/// Whether the broker answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct BrokerRow {
    pub url: String,
    pub reachable: bool,
    pub error: Option<String>,
}

/// A model's queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct QueueRow {
    pub model: String,
    pub queue: String,
    pub exists: bool,
    pub ready: u64,
    pub unacked: Option<u64>,
    pub consumers: u64,
}

/// Jobs that wait for another try.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct RetryRow {
    pub queue: String,
    pub delay_seconds: u64,
    pub waiting: u64,
}

/// The dead letters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Dead {
    pub total: u64,
    pub looked: bool,
    pub others: Option<u64>,
    pub by: Vec<DeadRow>,
}

/// The dead letters of one model of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct DeadRow {
    pub model: String,
    pub run: String,
    pub letters: u64,
    pub prompts: u64,
    pub kinds: Vec<FailureKind>,
}

/// One model of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct RunRow {
    pub run: String,
    pub model: String,
    pub save_path: String,
    pub enqueued_at: Timestamp,
    pub state: State,
    pub todo: Option<usize>,
    pub published: Option<usize>,
    pub committed: Option<usize>,
    pub failed: Option<usize>,
    pub pending: Option<usize>,
    pub jobs: Option<usize>,
    pub bytes: Option<u64>,
    pub prompts_per_second: Rates,
    pub eta_seconds: Option<u64>,
    pub note: Option<String>,
}

/// Prompts a second; none where nothing moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Rates {
    pub recent: Option<f64>,
    pub overall: Option<f64>,
}

impl RunRow {
    /// Whether it will not change by itself: done or called off, or interrupted with nothing left to compute.
    pub fn is_over(&self) -> bool {
        match self.state {
            State::Done | State::Cancelled => true,
            State::Interrupted => {
                let ended = self.committed.unwrap_or(0) + self.failed.unwrap_or(0);
                self.published.is_some_and(|published| ended >= published)
            }
            State::Publishing | State::Running | State::Unknown => false,
        }
    }

    /// Whether all that was asked for is there.
    pub fn is_whole(&self) -> bool {
        self.state == State::Cancelled || (self.state == State::Done && self.failed == Some(0))
    }
}
