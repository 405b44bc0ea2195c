//! From deliveries to committed files: the worker's pipeline.
//!
//! ```text
//! queue -> serve loop -> model thread -> encoder threads -> commit threads -> serve loop -> queue
//!          (async)       (one)           (a core each)      (fsync waits)     settles
//! ```
//!
//! Every arrow is bounded: jobs by [`Options::jobs_ahead`], raw patterns and encoded bytes by a
//! [`budget::ByteBudget`] each. The loop never computes and the threads never await. A delivery is
//! settled once each of its prompts has ended, and a prompt ends well only after both of its files
//! are committed, so a kill at any moment loses no prompt: the queue still has its job.

use std::{sync::Arc, time::Duration};

use common::{
    job::{Failure, FailureKind, Job, ModelPin},
    queue::{Attempt, Consume},
};
use tokio_util::sync::CancellationToken;

use crate::encode::Compression;

pub mod budget;
mod commit;
mod compute;
mod encoding;
mod hand;
mod part;
mod pipeline;
mod serve_loop;
pub(crate) mod split;

pub use commit::{Admission, Commit, CommitError, Hold, Part};
pub use compute::{Models, OpenError, OpenModel, Scope};
pub use hand::PromptEnd;

use hand::Serial;
use pipeline::Pipeline;
use serve_loop::Loop;

/// How wide the pipeline is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Deliveries held at once, the one being computed included.
    pub jobs_ahead: usize,
    /// Bytes of padded patterns one forward pass may make; larger jobs are split.
    pub batch_bytes: usize,
    /// Bytes of raw patterns that may wait for an encoder.
    pub raw_bytes: usize,
    /// Bytes of encoded patterns that may wait for the disk before the next batch begins.
    pub encoded_bytes: usize,
    /// Encoder threads.
    pub encoders: usize,
    /// Threads that write and sync files. They wait for the disk, so there may be more of them than cores.
    pub committers: usize,
    /// How patterns are compressed.
    pub compression: Compression,
}

/// What happens in the pipeline, as it happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A model is ready.
    ModelOpened {
        /// Which.
        pin: ModelPin,
        /// Time to read and place its weights.
        took: Duration,
    },
    /// A forward pass began.
    BatchBegan {
        /// Prompts in it.
        prompts: usize,
        /// Its longest sequence.
        n_ctx: usize,
    },
    /// The device compiled and tuned its kernels for a new shape of batch.
    WarmedUp {
        /// Time it took.
        took: Duration,
    },
    /// A forward pass ended, well or not.
    BatchEnded {
        /// Tokens in it.
        tokens: usize,
        /// Time computing and reading back. Passes overlap on a device; no time counts for two.
        forward: Duration,
        /// Time waiting for room in the byte budgets.
        waited: Duration,
    },
    /// A prompt ended.
    PromptEnded {
        /// How.
        end: PromptEnd,
        /// What was written for it, where something was.
        written: Option<Written>,
    },
    /// A delivery was settled.
    JobSettled {
        /// The job.
        job: Arc<Job>,
        /// Which try of it this was.
        attempt: Attempt,
        /// Its prompts that failed.
        failures: Vec<Failure>,
        /// Prompts computed and committed by it now.
        done: usize,
        /// How.
        how: JobEnd,
    },
}

/// How a delivery was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// Every prompt is committed, or its failure is on record.
    Over,
    /// It was given back.
    HandedBack,
    /// The queue took it back meanwhile and gives it out again.
    Lost,
    /// Nobody wants it any more.
    Cancelled,
    /// It must not be run here: nothing was read or written for it.
    Refused,
}

/// What one committed prompt cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Tokens the model read.
    pub tokens: usize,
    /// Bytes of its npz file.
    pub npz_bytes: u64,
    /// Bytes of its raw patterns.
    pub raw_bytes: u64,
    /// Core time spent encoding.
    pub encode: Duration,
    /// Time spent writing and syncing.
    pub commit: Duration,
}

/// Asks the pipeline to end. Cloned handles are one switch.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Take no more work; finish what is begun.
    pub stop: CancellationToken,
    /// Interrupt the batch being computed, too.
    pub leave: CancellationToken,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { stop: CancellationToken::new(), leave: CancellationToken::new() }
    }
}

/// Why serving ended before the queue did.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The queue failed.
    #[error("the queue failed: {0}")]
    Queue(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This worker cannot open the model.
    #[error("{0}")]
    Model(OpenError),
    /// The device fails in one batch after the other.
    #[error(
        "the device failed {failures} times in a row, so nothing more is computed; the last time: {last}; see what \
         nvidia-smi and the system's log say, and start the worker again"
    )]
    Device {
        /// How often.
        failures: usize,
        /// The last one's reason.
        last: String,
    },
    /// The device failed, and nothing can be computed on it any more.
    #[error(
        "the device failed for good, so nothing more is computed: {0}; see what nvidia-smi and the system's log say, \
         and start the worker again"
    )]
    DeviceLost(String),
    /// Commits fail one after the other.
    #[error("{failures} commits in a row failed, so nothing more is computed; the last one: {last}")]
    Storage {
        /// How many.
        failures: usize,
        /// The last one's reason.
        last: String,
    },
}

impl ServeError {
    /// Whether serving again may help. Of the queue nothing is known here.
    pub fn kind(&self) -> FailureKind {
        match self {
            ServeError::Queue(_) => FailureKind::Bug,
            ServeError::Model(error) => error.kind,
            ServeError::Device { .. } | ServeError::DeviceLost(_) | ServeError::Storage { .. } => {
                FailureKind::Retryable
            }
        }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The queue ended and everything in hand was finished.
    Drained,
    /// [`Shutdown`] asked for it.
    Stopped,
}

/// Serves `queue` until it ends or `shutdown` says so. `observe` hears everything that happens.
pub async fn serve<Q, M, C>(
    queue: Q,
    models: M,
    store: C,
    options: &Options,
    shutdown: Shutdown,
    observe: impl FnMut(&Event) + Send,
) -> Result<End, ServeError>
where
    Q: Consume,
    M: Models,
    C: Commit,
{
    let store = Arc::new(store);
    let (pipeline, notes) = Pipeline::start(models, Arc::clone(&store), options, &shutdown);
    Loop::new(queue, store, pipeline, observe).run(notes, options.jobs_ahead, shutdown).await
}

/// What the threads tell the loop.
#[derive(Debug)]
enum Note {
    Event(Event),
    Ended { serial: Serial, end: PromptEnd, written: Option<Written>, storage: bool },
    ModelFailed { serial: Serial, error: OpenError },
    DeviceWorked,
    DeviceFailed { reason: String, lost: bool },
    Refused { serial: Serial, failure: Failure },
}
