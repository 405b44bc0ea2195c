//! Prompts of one job on their way through the engine together: a part, the sink it gives its patterns to, and what
//! became of it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use tokio::sync::mpsc;

use super::{
    Event, Note,
    budget::ByteBudget,
    compute::Work,
    encoding::{RawPattern, Slot},
    pipeline::Control,
};
use crate::engine::{EngineError, Pattern, PatternSink, SinkClosed};

/// Prompts of one job that are to go through the engine.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) work: Arc<Work>,
    /// Indices into the job's prompts, longest first.
    pub(super) prompts: Vec<usize>,
    /// Whether some of the job's prompts have been through the engine before.
    pub(super) begun: bool,
    /// Whether an engine broke while it had this part: this one or another one did it, so now it goes alone.
    pub(super) suspect: bool,
}

/// How a part ended.
pub(super) struct PartEnd {
    pub(super) part: Part,
    /// Its prompts some of whose layers were not taken. The others are in the later stages' hands.
    pub(super) open: Vec<usize>,
    /// What the engine said; none where it dropped the part.
    pub(super) result: Option<Result<(), EngineError>>,
}

/// What every part's sink needs.
#[derive(Clone)]
pub(super) struct Outlet {
    pub(super) control: Arc<Control>,
    pub(super) raw: Arc<ByteBudget>,
    pub(super) patterns: Sender<RawPattern>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    pub(super) ended: Sender<PartEnd>,
    /// When the last part ended: parts overlap on a device, and no second counts twice.
    pub(super) last_end: Arc<Mutex<Instant>>,
}

/// What the engine writes a part into: waits for room, then passes patterns to the encoders.
pub(super) struct PartSink {
    outlet: Outlet,
    /// Gone once the end is told.
    part: Option<Part>,
    slots: Vec<Arc<Slot>>,
    /// Layers taken so far, a number a prompt.
    taken: Vec<usize>,
    n_layers: usize,
    tokens: usize,
    begin: Instant,
    waited: Duration,
}

impl PartSink {
    /// `waited` is what the part has waited for room before it began.
    pub(super) fn new(outlet: Outlet, part: Part, layers: &Arc<[usize]>, waited: Duration) -> Self {
        let (serial, job) = (part.work.serial, &part.work.job);
        PartSink {
            slots: part.prompts.iter().map(|&index| Slot::new(serial, job, index, layers)).collect(),
            taken: vec![0; part.prompts.len()],
            n_layers: layers.len(),
            tokens: part.prompts.iter().map(|&index| job.prompts[index].ids.len()).sum(),
            begin: Instant::now(),
            waited,
            outlet,
            part: Some(part),
        }
    }

    fn finish(&mut self, result: Option<Result<(), EngineError>>) {
        let Some(part) = self.part.take() else { return };
        let now = Instant::now();
        let last_end =
            std::mem::replace(&mut *self.outlet.last_end.lock().unwrap_or_else(PoisonError::into_inner), now);
        let forward = now.saturating_duration_since(self.begin.max(last_end)).saturating_sub(self.waited);
        let (tokens, waited) = (self.tokens, self.waited);
        let _ = self.outlet.notes.send(Note::Event(Event::BatchEnded { tokens, forward, waited }));
        let taken = part.prompts.iter().zip(&self.taken);
        let open = taken.filter(|&(_, &taken)| taken < self.n_layers).map(|(&index, _)| index).collect();
        // The model thread listens until every part has ended.
        let _ = self.outlet.ended.send(PartEnd { part, open, result });
    }
}

impl PatternSink for PartSink {
    fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed> {
        if self.outlet.control.leaving() {
            return Err(SinkClosed);
        }
        let begin = Instant::now();
        let lease = self.outlet.raw.acquire(pattern.bytes()).map_err(|_| SinkClosed)?;
        self.waited += begin.elapsed();
        let prompt = pattern.prompt;
        let raw = RawPattern { slot: Arc::clone(&self.slots[prompt]), pattern, lease };
        self.outlet.patterns.send(raw).map_err(|_| SinkClosed)?;
        self.taken[prompt] += 1;
        Ok(())
    }

    fn end(mut self: Box<Self>, result: Result<(), EngineError>) {
        self.finish(Some(result));
    }
}

impl Drop for PartSink {
    fn drop(&mut self) {
        self.finish(None);
    }
}
