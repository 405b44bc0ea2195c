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

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    job::{Failure, FailureKind, Job, ModelPin, Outcome},
    queue::{Attempt, Consume, Delivery, Settled},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::encode::Compression;

pub mod budget;
mod commit;
mod compute;
mod encoding;
mod hand;
mod part;
pub(crate) mod split;

pub use commit::{Admission, Commit, CommitError, Hold, Part};
pub use compute::{Models, OpenError, OpenModel, Scope};

use budget::ByteBudget;
use compute::{ModelThread, State, Work};
pub use hand::PromptEnd;
use hand::{Finished, Hands, Serial};
use part::Outlet;

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

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The queue ended and everything in hand was finished.
    Drained,
    /// [`Shutdown`] asked for it.
    Stopped,
}

/// Jobs in a row whose model cannot be opened after which this worker counts as unfit: on a node without the models
/// it would send every job of a queue away.
const MODEL_PATIENCE: usize = 3;
/// Device failures in a row after which this worker counts as unfit: every job it touched would lose a try.
const DEVICE_PATIENCE: usize = 3;
/// Commit failures in a row after which computing more would be a waste of the device.
const STORAGE_PATIENCE: usize = 8;

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
    let served = Loop {
        queue,
        store,
        hands: Hands::default(),
        jobs: HashMap::new(),
        pipeline: Some(pipeline),
        admissions: JoinSet::new(),
        settlements: JoinSet::new(),
        accepting: true,
        stopped: false,
        drained: false,
        storage_failures: 0,
        model_failures: 0,
        device_failures: 0,
        fault: None,
        observe,
    };
    served.run(notes, options.jobs_ahead, shutdown).await
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

struct Loop<Q: Consume, C, F> {
    queue: Q,
    store: Arc<C>,
    hands: Hands<Q::Tag>,
    jobs: HashMap<Serial, (Arc<Job>, Option<Hold>)>,
    /// Taken away to let the threads end.
    pipeline: Option<Pipeline>,
    admissions: JoinSet<Admitted>,
    /// Deliveries the queue was told of and has not settled yet.
    settlements: JoinSet<Settlement<Q::Error>>,
    accepting: bool,
    /// Whether the queue was told that no more is taken.
    stopped: bool,
    drained: bool,
    storage_failures: usize,
    model_failures: usize,
    device_failures: usize,
    fault: Option<ServeError>,
    observe: F,
}

/// A job after the last look at the store: what of it is still to be computed.
struct Admitted {
    serial: Serial,
    job: Arc<Job>,
    look: Look,
}

/// A delivery whose settlement is over.
struct Settlement<E> {
    job: Option<Arc<Job>>,
    attempt: Attempt,
    failures: Vec<Failure>,
    done: usize,
    how: JobEnd,
    settled: Result<Settled, E>,
}

/// What the last look found.
enum Look {
    /// Nobody wants the job any more.
    Cancelled,
    /// It must not be run here.
    Refused(CommitError),
    /// These prompts are to be computed.
    Todo { todo: Vec<usize>, hold: Result<Option<Hold>, CommitError> },
}

impl<Q: Consume, C: Commit, F: FnMut(&Event) + Send> Loop<Q, C, F> {
    async fn run(
        mut self,
        mut notes: mpsc::UnboundedReceiver<Note>,
        jobs_ahead: usize,
        shutdown: Shutdown,
    ) -> Result<End, ServeError> {
        loop {
            if !self.accepting && !self.stopped {
                self.stopped = true;
                self.queue.stop().await;
            }
            if !self.accepting && self.hands.is_empty() && self.settlements.is_empty() {
                // Closing the pipeline's mouth ends its threads; the channel of notes ends with the last of them.
                self.pipeline = None;
            }
            let room = self.accepting && self.hands.len() < jobs_ahead.max(1);
            tokio::select! {
                biased;
                note = notes.recv() => match note {
                    Some(note) => self.hear(note).await?,
                    None => break,
                },
                Some(admitted) = self.admissions.join_next() => {
                    self.admit(admitted.expect("the last look at the store neither panics nor is aborted")).await?;
                }
                Some(settlement) = self.settlements.join_next() => {
                    self.settled(settlement.expect("waiting for the queue neither panics nor is aborted"));
                }
                () = shutdown.stop.cancelled(), if self.accepting => self.accepting = false,
                next = self.queue.next(), if room => match next {
                    Ok(Some(delivery)) => self.receive(delivery),
                    Ok(None) => { self.accepting = false; self.drained = true; }
                    Err(error) => self.stop_for(ServeError::Queue(Box::new(error))),
                },
            }
        }
        match self.fault {
            Some(fault) => Err(fault),
            None if self.drained => Ok(End::Drained),
            None => Ok(End::Stopped),
        }
    }

    /// Takes a delivery in hand and looks, on a blocking thread, at what of it is committed already.
    fn receive(&mut self, delivery: Delivery<Q::Tag>) {
        let job = Arc::new(delivery.job);
        let serial = self.hands.take(delivery.tag, delivery.attempt, job.prompts.len());
        self.jobs.insert(serial, (Arc::clone(&job), None));
        let store = Arc::clone(&self.store);
        self.admissions.spawn_blocking(move || {
            let look = match store.admit(&job) {
                Err(error) => Look::Refused(error),
                Ok(Admission::Cancelled) => Look::Cancelled,
                Ok(Admission::Welcome) => {
                    let open = |&index: &usize| job.force || !store.is_committed(&job, &job.prompts[index]);
                    let todo: Vec<_> = (0..job.prompts.len()).filter(open).collect();
                    let hold = if todo.is_empty() { Ok(None) } else { store.begin(&job, &todo).map(Some) };
                    Look::Todo { todo, hold }
                }
            };
            Admitted { serial, job, look }
        });
    }

    async fn admit(&mut self, admitted: Admitted) -> Result<(), ServeError> {
        let Admitted { serial, job, look } = admitted;
        let (todo, hold) = match look {
            Look::Todo { todo, hold } => (todo, hold),
            Look::Cancelled => {
                let finished = self.hands.cancel(serial);
                return self.settle(serial, finished).await;
            }
            Look::Refused(CommitError { kind, reason }) => {
                let mut finished = self.hands.refuse(serial, Failure { hash: None, kind, reason });
                if let Some(finished) = &mut finished {
                    finished.how = JobEnd::Refused;
                }
                return self.settle(serial, finished).await;
            }
        };
        if job.prompts.is_empty() {
            let finished = self.hands.finish(serial);
            return self.settle(serial, finished).await;
        }
        let (cached, open) = (job.prompts.len() - todo.len(), todo.len());
        for _ in 0..cached {
            self.end(serial, PromptEnd::Cached, None).await?;
        }
        let hold = match hold {
            Ok(hold) => hold,
            Err(CommitError { kind, reason }) => {
                for (at, &index) in todo.iter().enumerate() {
                    let failure =
                        Failure { hash: Some(job.prompts[index].hash.clone()), kind, reason: reason.clone() };
                    let end = PromptEnd::Failed(failure);
                    // One failure of the storage, however many prompts it costs.
                    let storage = at == 0;
                    self.hear(Note::Ended { serial, end, written: None, storage }).await?;
                }
                return Ok(());
            }
        };
        if open > 0 {
            if let Some((_, kept)) = self.jobs.get_mut(&serial) {
                *kept = hold;
            }
            let refused = match &self.pipeline {
                Some(pipeline) if self.accepting || self.drained => {
                    pipeline.work.try_send(Work { serial, job, todo }).is_err()
                }
                _ => true,
            };
            if refused {
                for _ in 0..open {
                    self.end(serial, PromptEnd::Unfinished, None).await?;
                }
            }
        }
        Ok(())
    }

    async fn hear(&mut self, note: Note) -> Result<(), ServeError> {
        match note {
            Note::Event(event) => {
                if let Event::ModelOpened { .. } = event {
                    self.model_failures = 0;
                }
                (self.observe)(&event);
                Ok(())
            }
            Note::Ended { serial, end, written, storage } => {
                match (&end, storage) {
                    // What is refused for good concerns one directory, not the storage.
                    (PromptEnd::Failed(failure), true) if failure.kind == FailureKind::Retryable => {
                        self.storage_failures += 1;
                        if self.storage_failures >= STORAGE_PATIENCE {
                            let last = failure.reason.clone();
                            self.stop_for(ServeError::Storage { failures: self.storage_failures, last });
                        }
                    }
                    (PromptEnd::Committed, _) => self.storage_failures = 0,
                    _ => {}
                }
                self.end(serial, end, written).await
            }
            Note::ModelFailed { serial, error } if error.scope == Scope::Job => {
                self.model_failures += 1;
                if self.model_failures >= MODEL_PATIENCE {
                    self.stop_for(ServeError::Model(error.clone()));
                }
                let failure = Failure { hash: None, kind: error.kind, reason: error.reason };
                let finished = self.hands.refuse(serial, failure);
                self.settle(serial, finished).await
            }
            Note::DeviceWorked => {
                self.device_failures = 0;
                Ok(())
            }
            Note::DeviceFailed { reason, lost: true } => {
                self.stop_for(ServeError::DeviceLost(reason));
                Ok(())
            }
            Note::DeviceFailed { reason: last, lost: false } => {
                self.device_failures += 1;
                if self.device_failures >= DEVICE_PATIENCE {
                    self.stop_for(ServeError::Device { failures: self.device_failures, last });
                }
                Ok(())
            }
            Note::Refused { serial, failure } => {
                let finished = self.hands.refuse(serial, failure);
                self.settle(serial, finished).await
            }
            Note::ModelFailed { serial, error } => {
                self.stop_for(ServeError::Model(error));
                let finished = self.hands.finish(serial);
                self.settle(serial, finished).await
            }
        }
    }

    /// Takes no more work because of `fault`; what is in hand is finished or handed back.
    fn stop_for(&mut self, fault: ServeError) {
        self.accepting = false;
        if let Some(pipeline) = &self.pipeline {
            pipeline.control.stop();
        }
        self.fault.get_or_insert(fault);
    }

    async fn end(
        &mut self,
        serial: Serial,
        end: PromptEnd,
        written: Option<Written>,
    ) -> Result<(), ServeError> {
        (self.observe)(&Event::PromptEnded { end: end.clone(), written });
        let finished = self.hands.end(serial, end);
        self.settle(serial, finished).await
    }

    async fn settle(&mut self, serial: Serial, finished: Option<Finished<Q::Tag>>) -> Result<(), ServeError> {
        let Some(Finished { tag, attempt, settlement, outcome, how }) = finished else { return Ok(()) };
        let Outcome { done, failures, .. } = outcome.clone();
        let job = self.jobs.remove(&serial).map(|(job, hold)| {
            // What was announced has ended; the store is told before the queue forgets the job.
            drop(hold);
            job
        });
        if let Some(job) = &job {
            let (store, job) = (Arc::clone(&self.store), Arc::clone(job));
            let told = tokio::task::spawn_blocking(move || store.settling(&job, attempt, &outcome, how));
            told.await.expect("a store's note neither panics nor is aborted");
        }
        let settling = self.queue.settle(tag, settlement);
        self.settlements
            .spawn(async move { Settlement { job, attempt, failures, done, how, settled: settling.await } });
        Ok(())
    }

    fn settled(&mut self, settlement: Settlement<Q::Error>) {
        let Settlement { job, attempt, failures, done, mut how, settled } = settlement;
        match settled {
            Ok(Settled::Accepted) => {}
            Ok(Settled::Lost) => how = JobEnd::Lost,
            Err(error) => self.stop_for(ServeError::Queue(Box::new(error))),
        }
        if let Some(job) = job {
            (self.observe)(&Event::JobSettled { job, attempt, failures, done, how });
        }
    }
}

/// How far the pipeline has been asked to end.
#[derive(Debug, Default)]
struct Control {
    level: AtomicU8,
}

impl Control {
    const STOP: u8 = 1;
    const LEAVE: u8 = 2;

    fn stop(&self) {
        self.level.fetch_max(Self::STOP, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.level.fetch_max(Self::LEAVE, Ordering::Relaxed);
    }

    /// Begin no job.
    fn stopping(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= Self::STOP
    }

    /// Interrupt the batch.
    fn leaving(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= Self::LEAVE
    }
}

/// The threads between the work channel and the channel of notes.
struct Pipeline {
    work: crossbeam_channel::Sender<Work>,
    control: Arc<Control>,
    /// Ends with the pipeline.
    _watch: AbortOnDrop,
}

impl Pipeline {
    fn start<M: Models, C: Commit>(
        models: M,
        store: Arc<C>,
        options: &Options,
        shutdown: &Shutdown,
    ) -> (Self, mpsc::UnboundedReceiver<Note>) {
        let (notes, heard) = mpsc::unbounded_channel();
        // As many as may be in hand, so that handing work over never waits.
        let (work, work_taken) = crossbeam_channel::bounded(options.jobs_ahead.max(1));
        let (patterns, patterns_taken) = crossbeam_channel::unbounded();
        let (whole, whole_taken) = crossbeam_channel::unbounded();
        let (spare, spare_taken) = crossbeam_channel::bounded(2 * options.encoders.max(1));
        let control = Arc::new(Control::default());
        let raw = ByteBudget::new(options.raw_bytes);
        let encoded = ByteBudget::new(options.encoded_bytes);

        let (part_ended, ended) = crossbeam_channel::unbounded();
        let model = ModelThread {
            models,
            encoded: Arc::clone(&encoded),
            batch_bytes: options.batch_bytes,
            outlet: Outlet {
                control: Arc::clone(&control),
                raw: Arc::clone(&raw),
                patterns,
                notes: notes.clone(),
                ended: part_ended,
                last_end: Arc::new(Mutex::new(Instant::now())),
            },
            ended,
            state: State::default(),
        };
        spawn("model".to_owned(), move || model.run(work_taken));
        for i in 0..options.encoders.max(1) {
            let stage = encoding::Stage {
                patterns: patterns_taken.clone(),
                encoded: Arc::clone(&encoded),
                spare: spare_taken.clone(),
                whole: whole.clone(),
                notes: notes.clone(),
                compression: options.compression,
            };
            spawn(format!("encode-{i}"), move || stage.run());
        }
        for i in 0..options.committers.max(1) {
            let stage = commit::Stage {
                whole: whole_taken.clone(),
                store: Arc::clone(&store),
                notes: notes.clone(),
                spare: spare.clone(),
            };
            spawn(format!("commit-{i}"), move || stage.run());
        }
        let watch = tokio::spawn({
            let (control, shutdown) = (Arc::clone(&control), shutdown.clone());
            async move {
                shutdown.stop.cancelled().await;
                control.stop();
                shutdown.leave.cancelled().await;
                control.leave();
                // A model thread that waits for room would wait out the disk: wake it.
                raw.close();
                encoded.close();
            }
        });
        (Pipeline { work, control, _watch: AbortOnDrop(watch) }, heard)
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name).spawn(run).expect("the system gives a thread at start");
}
