//! The model thread: owns the engine, runs one batch after the other, splits what does not fit.
//!
//! It never touches the disk of results and never waits for it while the byte budgets have room.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    capture::Layers,
    job::{Failure, FailureKind, Job, ModelPin},
};
use tokio::sync::mpsc;

use super::{
    Control, Event, Note,
    budget::ByteBudget,
    encoding::{RawPattern, Slot},
    hand::{PromptEnd, Serial},
};
use crate::engine::{Engine, EngineError, Pattern, PatternSink, SinkClosed, TokenBatch};

/// Opens models by their pin. The null engine of the tests is one of these; so is the real loader.
pub trait Models: Send + 'static {
    /// Opens `pin`, able to run up to the highest of `layers`.
    fn open(&mut self, pin: &ModelPin, layers: &Layers) -> Result<OpenModel, OpenError>;
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
    pub(super) control: Arc<Control>,
    pub(super) raw: Arc<ByteBudget>,
    pub(super) encoded: Arc<ByteBudget>,
    pub(super) batch_bytes: usize,
    pub(super) patterns: crossbeam_channel::Sender<RawPattern>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
}

struct Opened {
    pin: ModelPin,
    layers: Layers,
    model: OpenModel,
}

impl<M: Models> ModelThread<M> {
    /// Runs until the channel of work ends.
    pub(super) fn run(mut self, mut work: mpsc::Receiver<Work>) {
        let mut opened: Option<Opened> = None;
        while let Some(work) = work.blocking_recv() {
            if self.control.stopping() {
                self.end_part(&work, &work.todo, &PromptEnd::Unfinished);
                continue;
            }
            let same = |o: &Opened| o.pin == work.job.model && o.layers == work.job.capture.layers;
            if !opened.as_ref().is_some_and(same) {
                drop(opened.take());
                match self.open(&work.job) {
                    Ok(model) => opened = Some(model),
                    Err(error) => {
                        let _ = self.notes.send(Note::ModelFailed { serial: work.serial, error });
                        continue;
                    }
                }
            }
            let model = &mut opened.as_mut().expect("just opened").model;
            if let Some(reason) = misfit(&work.job, model) {
                let failure = Failure { hash: None, kind: FailureKind::Permanent, reason };
                let _ = self.notes.send(Note::Refused { serial: work.serial, failure });
                continue;
            }
            if self.batch(model, &work) == After::Reopen {
                opened = None;
            }
        }
    }

    fn open(&mut self, job: &Job) -> Result<Opened, OpenError> {
        let begin = Instant::now();
        let (pin, layers) = (job.model.clone(), job.capture.layers.clone());
        let model =
            catch_unwind(AssertUnwindSafe(|| self.models.open(&pin, &layers))).unwrap_or_else(|panic| {
                Err(OpenError {
                    kind: FailureKind::Bug,
                    // Given back, the job would take one worker after the other with it.
                    scope: Scope::Job,
                    reason: format!("opening {} panicked: {}", pin.source, panic_text(&*panic)),
                })
            })?;
        let _ = self.notes.send(Note::Event(Event::ModelOpened { pin: pin.clone(), took: begin.elapsed() }));
        Ok(Opened { pin, layers, model })
    }

    /// Runs one job's prompts, in parts that fit the pattern memory.
    fn batch(&mut self, model: &mut OpenModel, work: &Work) -> After {
        let layers: Arc<[usize]> = work.job.capture.layers.indices(model.n_layers).into();
        let n = |&index: &usize| work.job.prompts[index].ids.len();
        let mut parts = split_by_bytes(&work.todo, n, layers.len() * model.n_heads, self.batch_bytes);
        parts.reverse();
        while let Some(part) = parts.pop() {
            if self.control.leaving() {
                self.end_part(work, &part, &PromptEnd::Unfinished);
                continue;
            }
            let Err(Interrupted { error, open }) = self.part(model, work, &part, &layers) else { continue };
            match error {
                EngineError::Stopped => self.end_part(work, &open, &PromptEnd::Unfinished),
                EngineError::OutOfMemory(_) | EngineError::Input(_) if open.len() > 1 => {
                    let (front, back) = open.split_at(open.len() / 2);
                    parts.extend([back.to_vec(), front.to_vec()]);
                }
                EngineError::OutOfMemory(_) | EngineError::Input(_) => {
                    for index in open {
                        self.end(work.serial, PromptEnd::Failed(explain(&work.job, index, &error)));
                    }
                }
                EngineError::Bug(_) => {
                    // One prompt does it; the others are worth a fresh engine.
                    if open.len() > 1 {
                        let (front, back) = open.split_at(open.len() / 2);
                        parts.extend([back.to_vec(), front.to_vec()]);
                    } else {
                        for index in open {
                            self.end(work.serial, PromptEnd::Failed(explain(&work.job, index, &error)));
                        }
                    }
                    if parts.is_empty() {
                        return After::Reopen;
                    }
                    match self.open(&work.job) {
                        Ok(fresh) => *model = fresh.model,
                        Err(_) => {
                            for index in parts.into_iter().flatten() {
                                self.end(work.serial, PromptEnd::Failed(explain(&work.job, index, &error)));
                            }
                            return After::Reopen;
                        }
                    }
                }
                EngineError::Device(_) => {
                    for index in open {
                        self.end(work.serial, PromptEnd::Failed(explain(&work.job, index, &error)));
                    }
                    // Nobody knows what state the device is in: the rest of the job is for a fresh engine. Later,
                    // and counted: given back, it would come again at once and fail at the same place.
                    let rest = EngineError::Device(format!("it failed earlier in the same job: {error}"));
                    for &index in parts.iter().flatten() {
                        self.end(work.serial, PromptEnd::Failed(explain(&work.job, index, &rest)));
                    }
                    return After::Reopen;
                }
            }
        }
        After::Continue
    }

    /// Runs the prompts of one part together. A prompt whose layers were all taken by then is in the
    /// later stages' hands even where the engine fails; the error names the ones that are still open.
    fn part(
        &mut self,
        model: &mut OpenModel,
        work: &Work,
        part: &[usize],
        layers: &Arc<[usize]>,
    ) -> Result<(), Interrupted> {
        let begin = Instant::now();
        if self.encoded.wait_for_room().is_err() {
            return Err(Interrupted { error: EngineError::Stopped, open: part.to_vec() });
        }
        let prompts: Vec<_> = part.iter().map(|&index| work.job.prompts[index].ids.clone()).collect();
        let tokens = prompts.iter().map(Vec::len).sum();
        let n_ctx = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let _ = self.notes.send(Note::Event(Event::BatchBegan { prompts: part.len(), n_ctx }));
        let mut sink = Sink {
            slots: part.iter().map(|&index| Slot::new(work.serial, &work.job, index, layers)).collect(),
            taken: vec![0; part.len()],
            raw: &self.raw,
            control: &self.control,
            patterns: &self.patterns,
            waited: begin.elapsed(),
        };
        let batch = TokenBatch { prompts };
        let ran = catch_unwind(AssertUnwindSafe(|| model.engine.forward(&batch, layers, &mut sink)))
            .unwrap_or_else(|panic| Err(EngineError::Bug(panic_text(&*panic))));
        let forward = begin.elapsed().saturating_sub(sink.waited);
        let _ = self.notes.send(Note::Event(Event::BatchEnded { tokens, forward, waited: sink.waited }));
        let open: Vec<_> = part
            .iter()
            .zip(&sink.taken)
            .filter(|&(_, &taken)| taken < layers.len())
            .map(|(&index, _)| index)
            .collect();
        match ran {
            Err(error) => Err(Interrupted { error, open }),
            Ok(()) if !open.is_empty() => {
                let error = EngineError::Bug("the engine ended a batch without giving every layer".into());
                Err(Interrupted { error, open })
            }
            Ok(()) => Ok(()),
        }
    }

    fn end(&self, serial: Serial, end: PromptEnd) {
        let _ = self.notes.send(Note::Ended { serial, end, written: None, storage: false });
    }

    fn end_part(&self, work: &Work, part: &[usize], end: &PromptEnd) {
        for _ in part {
            self.end(work.serial, end.clone());
        }
    }
}

#[derive(PartialEq)]
enum After {
    Continue,
    Reopen,
}

/// A part whose forward pass ended early, with the prompts that are still to be computed.
struct Interrupted {
    error: EngineError,
    open: Vec<usize>,
}

/// What the engine writes into: waits for room, then passes patterns to the encoders.
struct Sink<'a> {
    slots: Vec<Arc<Slot>>,
    /// Layers taken so far, a number a prompt.
    taken: Vec<usize>,
    raw: &'a Arc<ByteBudget>,
    control: &'a Control,
    patterns: &'a crossbeam_channel::Sender<RawPattern>,
    waited: Duration,
}

impl PatternSink for Sink<'_> {
    fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed> {
        if self.control.leaving() {
            return Err(SinkClosed);
        }
        let begin = Instant::now();
        let lease = self.raw.acquire(size_of_val(pattern.values.as_slice())).map_err(|_| SinkClosed)?;
        self.waited += begin.elapsed();
        let prompt = pattern.prompt;
        let raw = RawPattern { slot: Arc::clone(&self.slots[prompt]), pattern, lease };
        self.patterns.send(raw).map_err(|_| SinkClosed)?;
        self.taken[prompt] += 1;
        Ok(())
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

/// Cuts `indices` (longest first) into runs whose padded patterns fit `limit` bytes:
/// `n_patterns * run * longest * longest * 4`. A prompt that does not fit alone goes alone.
fn split_by_bytes(
    indices: &[usize],
    n: impl Fn(&usize) -> usize,
    n_patterns: usize,
    limit: usize,
) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for index in indices {
        let length = n(index);
        let fits = |run: &Vec<usize>| {
            let padded = longest.max(length);
            n_patterns * (run.len() + 1) * padded * padded * size_of::<f32>() <= limit
        };
        match runs.last_mut() {
            Some(run) if fits(run) => {
                longest = longest.max(length);
                run.push(*index);
            }
            _ => {
                longest = length;
                runs.push(vec![*index]);
            }
        }
    }
    runs
}

/// Says of one prompt why it was not computed.
fn explain(job: &Job, index: usize, error: &EngineError) -> Failure {
    let prompt = &job.prompts[index];
    let kind = match error {
        EngineError::Input(_) => FailureKind::Permanent,
        EngineError::Bug(_) => FailureKind::Bug,
        EngineError::OutOfMemory(_) | EngineError::Device(_) | EngineError::Stopped => FailureKind::Retryable,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_the_memory_and_keep_the_order() {
        let n = [100, 80, 80, 10, 10];
        let bytes = |run: usize, n: usize| 2 * run * n * n * 4;
        let split = |limit| split_by_bytes(&[0, 1, 2, 3, 4], |&i| n[i], 2, limit);
        assert_eq!(split(usize::MAX), [vec![0, 1, 2, 3, 4]]);
        // Two of 100 use the memory up; three padded to 80 take less than they do.
        assert_eq!(split(bytes(2, 100)), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(split(0), [[0], [1], [2], [3], [4]]);
    }
}
