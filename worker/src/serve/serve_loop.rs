//! The serve loop: takes deliveries, feeds the pipeline what the store does not have, hears what became of it, and
//! settles.

use std::{collections::HashMap, sync::Arc};

use common::{
    job::{Failure, FailureKind, Job, Outcome},
    queue::{Attempt, Consume, Delivery, Settled},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Admission, Commit, CommitError, End, Event, Hold, JobEnd, Note, PromptEnd, Scope, ServeError, Shutdown,
    Written,
    compute::Work,
    hand::{Finished, Hands, Serial},
    pipeline::Pipeline,
};

/// Jobs in a row whose model cannot be opened after which this worker counts as unfit: on a node without the models
/// it would send every job of a queue away.
const MODEL_PATIENCE: usize = 3;
/// Device failures in a row after which this worker counts as unfit: every job it touched would lose a try.
const DEVICE_PATIENCE: usize = 3;
/// Commit failures in a row after which computing more would be a waste of the device.
const STORAGE_PATIENCE: usize = 8;

pub(super) struct Loop<Q: Consume, C, F> {
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
    pub(super) fn new(queue: Q, store: Arc<C>, pipeline: Pipeline, observe: F) -> Self {
        Loop {
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
        }
    }

    pub(super) async fn run(
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
