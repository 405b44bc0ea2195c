//! The model thread: owns the engine, gives it one part of a job after the other, splits what does not fit.
//!
//! A part's end comes later, by a channel, while the engine has the next one already. The thread never touches the disk
//! of results and never waits for it while the byte budgets have room.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use common::{
    capture::{Capture, Layers, Numerics},
    job::{Failure, FailureKind, Job, ModelPin},
};
use crossbeam_channel::{Receiver, RecvError, never, select};

use super::{
    Event, Note,
    budget::ByteBudget,
    hand::{PromptEnd, Serial},
    part::{Outlet, Part, PartEnd, PartSink},
    split::split,
};
use crate::engine::{Engine, EngineError, TokenBatch};

/// Opens models by their pin. The null engine of the tests is one of these; so is the real loader.
pub trait Models: Send + 'static {
    /// Opens `pin`, able to run up to the highest of the layers of `capture`, as exactly as it says.
    fn open(&mut self, pin: &ModelPin, capture: &Capture) -> Result<OpenModel, OpenError>;
}

/// A model on a device, ready to run.
pub struct OpenModel {
    /// What runs it.
    pub engine: Box<dyn Engine>,
    /// Layers of the model.
    pub n_layers: usize,
    /// Query heads of every layer.
    pub n_heads: usize,
}

/// Whom a model that cannot be opened concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The job: it fails, and the worker goes on with others.
    Job,
    /// The worker: it hands its jobs back and stops; another one may be able to.
    Worker,
}

/// A model that could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct OpenError {
    /// What kind of failure.
    pub kind: FailureKind,
    /// Whom it concerns.
    pub scope: Scope,
    /// What was attempted and what to do.
    pub reason: String,
}

/// A job's prompts that are to be computed.
#[derive(Debug)]
pub struct Work {
    pub(super) serial: Serial,
    pub(super) job: Arc<Job>,
    /// Indices into the job's prompts, longest first.
    pub(super) todo: Vec<usize>,
}

pub(super) struct ModelThread<M> {
    pub(super) models: M,
    pub(super) encoded: Arc<ByteBudget>,
    pub(super) batch_bytes: usize,
    pub(super) outlet: Outlet,
    /// The other end of the outlet's channel of ends.
    pub(super) ended: Receiver<PartEnd>,
    pub(super) state: State,
}

/// What the thread knows of its engine and of its parts.
#[derive(Default)]
pub(super) struct State {
    opened: Option<Opened>,
    /// Parts that the engine does not have yet, the next one first.
    pending: VecDeque<Part>,
    /// Parts that the engine has and has not ended.
    in_flight: usize,
    /// Whether one of them is suspect: then it is the only one.
    suspect_in_flight: bool,
    /// What the engine panicked with, until the part it had then has ended.
    panicked: Option<String>,
}

struct Opened {
    pin: ModelPin,
    layers: Layers,
    numerics: Numerics,
    model: OpenModel,
}

impl Opened {
    fn is_for(&self, job: &Job) -> bool {
        let Capture { layers, numerics, .. } = &job.capture;
        self.pin == job.model && self.layers == *layers && self.numerics == *numerics
    }
}

impl<M: Models> ModelThread<M> {
    /// Runs until the channel of work ends and every part has ended.
    pub(super) fn run(mut self, work: Receiver<Work>) {
        let (ended, nothing) = (self.ended.clone(), never());
        let mut open = true;
        loop {
            // What has failed is tried again before anything new is begun.
            while let Ok(end) = ended.try_recv() {
                self.settle(end);
            }
            if let Some(part) = self.state.pending.pop_front() {
                self.begin(part);
                continue;
            }
            if !open && self.state.in_flight == 0 {
                break;
            }
            select! {
                recv(ended) -> end => self.settle(end.expect("the outlet holds a sender")),
                recv(if open { &work } else { &nothing }) -> work => match work {
                    Ok(work) => self.accept(work),
                    Err(RecvError) => open = false,
                },
            }
        }
        // Serving is over once nobody sends notes, and what comes then may want the device's memory.
        self.state.opened = None;
    }

    fn accept(&mut self, work: Work) {
        let prompts = work.todo.clone();
        let part = Part { work: Arc::new(work), prompts, begun: false, suspect: false };
        if self.outlet.control.stopping() {
            self.end_part(&part, &PromptEnd::Unfinished);
        } else {
            self.state.pending.push_back(part);
        }
    }

    /// Gives a part to the engine, or as much of it as goes at once.
    fn begin(&mut self, mut part: Part) {
        if self.outlet.control.leaving() {
            return self.end_part(&part, &PromptEnd::Unfinished);
        }
        let work = Arc::clone(&part.work);
        let same = self.state.opened.as_ref().is_some_and(|opened| opened.is_for(&work.job));
        // Two models at once may not fit the device, and a part that may break the engine must not break another's.
        let alone = !same || part.suspect || self.state.suspect_in_flight;
        if alone && self.state.in_flight > 0 {
            self.state.pending.push_front(part);
            let end = self.ended.recv().expect("the outlet holds a sender");
            return self.settle(end);
        }
        if !same {
            self.state.opened = None;
            match self.open(&work.job) {
                Ok(opened) => self.state.opened = Some(opened),
                Err(error) => return self.not_opened(&part, error),
            }
        }
        let model = &mut self.state.opened.as_mut().expect("opened above").model;
        if let Some(reason) = misfit(&work.job, model) {
            let failure = Failure { hash: None, kind: FailureKind::Permanent, reason };
            let _ = self.outlet.notes.send(Note::Refused { serial: work.serial, failure });
            return;
        }
        let layers: Arc<[usize]> = work.job.capture.layers.indices(model.n_layers).into();
        let n = |&index: &usize| work.job.prompts[index].ids.len();
        let fits = |prompts, longest| model.engine.fits(prompts, longest);
        let mut runs = split(&part.prompts, n, layers.len() * model.n_heads, self.batch_bytes, fits);
        part.prompts = runs.remove(0);
        for prompts in runs.into_iter().rev() {
            let suspect = part.suspect;
            self.state.pending.push_front(Part { work: Arc::clone(&work), prompts, begun: true, suspect });
        }

        let begin = Instant::now();
        if self.encoded.wait_for_room().is_err() {
            return self.end_part(&part, &PromptEnd::Unfinished);
        }
        let waited = begin.elapsed();
        let ids = part.prompts.iter().map(|&index| work.job.prompts[index].ids.clone());
        let batch = TokenBatch { prompts: ids.collect() };
        let n_ctx = part.prompts.iter().map(n).max().unwrap_or(0);
        let began = Event::BatchBegan { prompts: part.prompts.len(), n_ctx };
        let _ = self.outlet.notes.send(Note::Event(began));
        // What panics here panics again in the pass itself, where it is told.
        let warmed = catch_unwind(AssertUnwindSafe(|| model.engine.warm_up(batch.prompts.len(), n_ctx)));
        if let Ok(Some(took)) = warmed {
            let _ = self.outlet.notes.send(Note::Event(Event::WarmedUp { took }));
        }
        self.state.in_flight += 1;
        self.state.suspect_in_flight = part.suspect;
        let sink = Box::new(PartSink::new(self.outlet.clone(), part, &layers, waited));
        let ran = catch_unwind(AssertUnwindSafe(|| model.engine.forward(batch, &layers, sink)));
        if let Err(panic) = ran {
            self.state.panicked = Some(panic_text(&*panic));
            // Nobody knows what state it is in; and a part that it has still got ends with it.
            self.state.opened = None;
        }
    }

    fn open(&mut self, job: &Job) -> Result<Opened, OpenError> {
        let begin = Instant::now();
        let (pin, capture) = (job.model.clone(), &job.capture);
        let model =
            catch_unwind(AssertUnwindSafe(|| self.models.open(&pin, capture))).unwrap_or_else(|panic| {
                Err(OpenError {
                    kind: FailureKind::Bug,
                    // Given back, the job would take one worker after the other with it.
                    scope: Scope::Job,
                    reason: format!("opening {} panicked: {}", pin.source, panic_text(&*panic)),
                })
            })?;
        let opened = Event::ModelOpened { pin: pin.clone(), took: begin.elapsed() };
        let _ = self.outlet.notes.send(Note::Event(opened));
        Ok(Opened { pin, layers: capture.layers.clone(), numerics: capture.numerics, model })
    }

    fn not_opened(&mut self, part: &Part, error: OpenError) {
        match (part.begun, error.scope) {
            // Some of the job is done: only the rest fails.
            (true, Scope::Job) => {
                let failure = |reason: String| Failure { hash: None, kind: error.kind, reason };
                for &index in &part.prompts {
                    let hash = part.work.job.prompts[index].hash.clone();
                    let failure = Failure { hash: Some(hash), ..failure(error.reason.clone()) };
                    self.end(&part.work, PromptEnd::Failed(failure));
                }
            }
            (false, Scope::Job) | (_, Scope::Worker) => {
                let _ = self.outlet.notes.send(Note::ModelFailed { serial: part.work.serial, error });
            }
        }
    }

    /// Acts on how a part ended: whatever of it is still open is split, failed or tried again.
    fn settle(&mut self, end: PartEnd) {
        self.state.in_flight -= 1;
        self.state.suspect_in_flight = false;
        let PartEnd { part, open, result } = end;
        let error =
            match result.or_else(|| self.state.panicked.take().map(|said| Err(EngineError::Bug(said)))) {
                // It had ended but for saying so.
                None if open.is_empty() => {
                    self.state.opened = None;
                    return;
                }
                None if part.suspect => EngineError::Bug("the engine dropped a batch".to_owned()),
                None => {
                    // It may have been another one: this one is tried once more, alone.
                    self.state.opened = None;
                    let again = Part { prompts: open, begun: true, suspect: true, ..part };
                    return self.state.pending.push_front(again);
                }
                Some(Ok(())) if open.is_empty() => {
                    let _ = self.outlet.notes.send(Note::DeviceWorked);
                    return;
                }
                Some(Ok(())) => {
                    EngineError::Bug("the engine ended a batch without giving every layer".to_owned())
                }
                Some(Err(error)) => error,
            };
        let (work, suspect) = (part.work, part.suspect);
        match &error {
            EngineError::Stopped => {
                self.end_part(&Part { work, prompts: open, begun: true, suspect }, &PromptEnd::Unfinished);
            }
            EngineError::OutOfMemory(_) => {
                if open.len() < 2 {
                    // What the engine made and keeps may have been made without memory.
                    self.state.opened = None;
                }
                self.halve(work, open, suspect, &error);
            }
            EngineError::Input(_) => self.halve(work, open, suspect, &error),
            EngineError::Bug(_) => {
                // One prompt does it; the others are worth a fresh engine.
                self.state.opened = None;
                self.halve(work, open, suspect, &error);
            }
            EngineError::Device(reason) | EngineError::DeviceLost(reason) => {
                let lost = matches!(error, EngineError::DeviceLost(_));
                // Nobody knows what state the device is in: the rest of the job is for a fresh engine. Later, and
                // counted: given back, it would come again at once and fail at the same place.
                self.state.opened = None;
                let rest = EngineError::Device(format!("it failed earlier in the same job: {error}"));
                self.fail(&work, &open, &error);
                let (same, others) = std::mem::take(&mut self.state.pending)
                    .into_iter()
                    .partition(|pending: &Part| pending.work.serial == work.serial && pending.begun);
                self.state.pending = others;
                for part in Vec::from(same) {
                    self.fail(&work, &part.prompts, &rest);
                }
                if lost {
                    // No model is worth opening on it: all else goes back.
                    self.outlet.control.stop();
                    for part in std::mem::take(&mut self.state.pending) {
                        self.end_part(&part, &PromptEnd::Unfinished);
                    }
                }
                let _ = self.outlet.notes.send(Note::DeviceFailed { reason: reason.clone(), lost });
            }
        }
    }

    /// Tries the two halves of `open` before anything else; a single prompt fails.
    fn halve(&mut self, work: Arc<Work>, open: Vec<usize>, suspect: bool, error: &EngineError) {
        if open.len() < 2 {
            return self.fail(&work, &open, error);
        }
        let (front, back) = open.split_at(open.len() / 2);
        for half in [back, front] {
            self.state.pending.push_front(Part {
                work: Arc::clone(&work),
                prompts: half.to_vec(),
                begun: true,
                suspect,
            });
        }
    }

    fn fail(&self, work: &Work, prompts: &[usize], error: &EngineError) {
        for &index in prompts {
            self.end(work, PromptEnd::Failed(explain(&work.job, index, error)));
        }
    }

    fn end_part(&self, part: &Part, end: &PromptEnd) {
        for _ in &part.prompts {
            self.end(&part.work, end.clone());
        }
    }

    fn end(&self, work: &Work, end: PromptEnd) {
        let serial = work.serial;
        let _ = self.outlet.notes.send(Note::Ended { serial, end, written: None, storage: false });
    }
}

/// Why `job` is not for `model`, where it is not: a message may say what it likes.
fn misfit(job: &Job, model: &OpenModel) -> Option<String> {
    let OpenModel { n_layers, n_heads, .. } = *model;
    let said = job.shape;
    (said.n_layers != n_layers || said.n_heads != n_heads).then(|| {
        format!(
            "the job is for {} layers of {} heads, and {} at {} has {n_layers} of {n_heads}; enqueue again",
            said.n_layers, said.n_heads, job.model.source, job.model.commit
        )
    })
}

/// Says of one prompt why it was not computed.
fn explain(job: &Job, index: usize, error: &EngineError) -> Failure {
    let prompt = &job.prompts[index];
    let kind = match error {
        EngineError::Input(_) => FailureKind::Permanent,
        EngineError::Bug(_) => FailureKind::Bug,
        EngineError::OutOfMemory(_)
        | EngineError::Device(_)
        | EngineError::DeviceLost(_)
        | EngineError::Stopped => FailureKind::Retryable,
    };
    let reason = format!(
        "running {} over prompt {} ({} tokens): {error}",
        job.model.name,
        prompt.hash,
        prompt.ids.len()
    );
    Failure { hash: Some(prompt.hash.clone()), kind, reason }
}

/// The text of a caught panic.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}
