//! The encoder threads: raw patterns in, compressed arrays out, a prompt passed on once it is whole.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{
    capture::{ArrayLayout, Dtype},
    job::{Failure, FailureKind, Job},
    npz::{Entry, layer_entry_name},
};
use half::f16;
use tokio::sync::mpsc;

use super::{
    Note, Part,
    budget::{ByteBudget, Lease},
    compute::panic_text,
    hand::{PromptEnd, Serial},
};
use crate::{
    encode::{Compression, Encoder, PatternView},
    engine::{Layout, Pattern},
};

/// A pattern on its way to an encoder.
pub(super) struct RawPattern {
    pub(super) slot: Arc<Slot>,
    pub(super) pattern: Pattern,
    pub(super) lease: Lease,
}

/// Where the layers of one prompt come together, in whatever order encoders finish them.
#[derive(Debug)]
pub(super) struct Slot {
    serial: Serial,
    job: Arc<Job>,
    index: usize,
    layers: Arc<[usize]>,
    state: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    parts: Vec<(usize, Part, Lease)>,
    raw_bytes: u64,
    encode: Duration,
    failed: bool,
}

/// A prompt whose arrays are all encoded.
pub(super) struct Whole {
    pub(super) serial: Serial,
    pub(super) job: Arc<Job>,
    pub(super) index: usize,
    pub(super) layers: Arc<[usize]>,
    /// In layer order.
    pub(super) parts: Vec<Part>,
    pub(super) raw_bytes: u64,
    pub(super) encode: Duration,
    /// Held until the bytes are on disk.
    pub(super) leases: Vec<Lease>,
}

impl Slot {
    pub(super) fn new(serial: Serial, job: &Arc<Job>, index: usize, layers: &Arc<[usize]>) -> Arc<Self> {
        let (job, layers) = (Arc::clone(job), Arc::clone(layers));
        Arc::new(Slot { serial, job, index, layers, state: Mutex::default() })
    }
}

impl Slot {
    /// Adds an encoded layer; gives the prompt once it was the last one missing.
    fn add(&self, layer: usize, part: Part, lease: Lease, raw_bytes: u64, encode: Duration) -> Option<Whole> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed {
            return None;
        }
        state.parts.push((layer, part, lease));
        state.raw_bytes += raw_bytes;
        state.encode += encode;
        if state.parts.len() < self.layers.len() {
            return None;
        }
        let mut parts = std::mem::take(&mut state.parts);
        parts.sort_unstable_by_key(|&(layer, ..)| layer);
        let (parts, leases) = parts.into_iter().map(|(_, part, lease)| (part, lease)).unzip();
        Some(Whole {
            serial: self.serial,
            job: Arc::clone(&self.job),
            index: self.index,
            layers: Arc::clone(&self.layers),
            parts,
            raw_bytes: state.raw_bytes,
            encode: state.encode,
            leases,
        })
    }

    /// Marks the prompt as failed; true the first time.
    fn fail(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.parts.clear();
        !std::mem::replace(&mut state.failed, true)
    }
}

/// A thread's encoders, one a number type; they keep their buffers.
struct Encoders {
    compression: Compression,
    made: Vec<(Dtype, Encoder)>,
}

impl Encoders {
    fn of(&mut self, dtype: Dtype) -> &mut Encoder {
        let at = self.made.iter().position(|&(made, _)| made == dtype).unwrap_or_else(|| {
            self.made.push((dtype, Encoder::new(self.compression, dtype)));
            self.made.len() - 1
        });
        &mut self.made[at].1
    }
}

fn view(pattern: &Pattern) -> PatternView<'_> {
    let (values, n_heads, n) = (pattern.values.as_slice(), pattern.n_heads, pattern.n);
    match pattern.layout {
        Layout::Square => PatternView::new(values, n_heads, n),
        Layout::Causal => PatternView::packed_causal(values, n_heads, n),
    }
}

/// A pattern as an npy file holds it. Stacked arrays are not compressed: they are plain npy files.
fn bytes_of(pattern: &Pattern, dtype: Dtype) -> Vec<u8> {
    let square = (pattern.layout == Layout::Causal).then(|| pattern.to_square());
    let values = square.as_deref().unwrap_or_else(|| pattern.values.as_slice());
    match dtype {
        Dtype::Float32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Float16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
    }
}

/// One encoder thread.
pub(super) struct Stage {
    pub(super) patterns: crossbeam_channel::Receiver<RawPattern>,
    pub(super) encoded: Arc<ByteBudget>,
    /// Buffers that were written and serve again.
    pub(super) spare: crossbeam_channel::Receiver<Entry>,
    pub(super) whole: crossbeam_channel::Sender<Whole>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    pub(super) compression: Compression,
}

impl Stage {
    pub(super) fn run(self) {
        let mut encoders = Encoders { compression: self.compression, made: Vec::new() };
        for RawPattern { slot, pattern, lease } in &self.patterns {
            let begin = Instant::now();
            if let Ok(entry) = self.spare.try_recv() {
                encoders.of(slot.job.capture.dtype).recycle(entry);
            }
            let capture = &slot.job.capture;
            let encoded = catch_unwind(AssertUnwindSafe(|| match capture.layout {
                ArrayLayout::PerLayer => {
                    let name = layer_entry_name(pattern.layer);
                    Part::Entry(encoders.of(capture.dtype).encode(&name, view(&pattern)))
                }
                ArrayLayout::Stacked => Part::Values(bytes_of(&pattern, capture.dtype)),
            }));
            let raw_bytes = (Layout::Square.len(pattern.n_heads, pattern.n) * size_of::<f32>()) as u64;
            let layer = pattern.layer;
            drop(pattern);
            drop(lease);
            match encoded {
                Ok(part) => {
                    let held = self.encoded.overdraw(part.len());
                    if let Some(whole) = slot.add(layer, part, held, raw_bytes, begin.elapsed()) {
                        // The commit threads live as long as any encoder.
                        let _ = self.whole.send(whole);
                    }
                }
                Err(panic) => {
                    // Nobody knows what state the encoder is in.
                    encoders.made.clear();
                    if slot.fail() {
                        let end = PromptEnd::Failed(Failure {
                            hash: Some(slot.job.prompts[slot.index].hash.clone()),
                            kind: FailureKind::Bug,
                            reason: format!(
                                "encoding layer {layer} of prompt {}: a bug in lenspool: {}; \
                                 --compress zlib:1 avoids the encoder that failed",
                                slot.job.prompts[slot.index].hash,
                                panic_text(&*panic)
                            ),
                        });
                        let _ = self.notes.send(Note::Ended {
                            serial: slot.serial,
                            end,
                            written: None,
                            storage: false,
                        });
                    }
                }
            }
        }
    }
}
