//! The whole contract between the queue's side and the model's side.
//!
//! An [`Engine`] is owned by one OS thread. It hands each layer's patterns to the batch's [`PatternSink`] as soon as
//! they are in host memory, so that encoding layer `i` overlaps with computing layer `i + 1`, and no more raw patterns
//! exist at once than the sink lets in. An engine may return from [`Engine::forward`] before its device is done: what
//! a batch came to is said to its sink, from whatever thread, and the next batch is computed meanwhile.

use std::{
    ops::Range,
    sync::{Arc, mpsc},
    time::Duration,
};

/// The token ids of a batch of prompts, each without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// `prompts[p]` are prompt `p`'s ids, BOS included where one is prepended; never empty.
    pub prompts: Vec<Vec<u32>>,
}

/// The attention pattern of one layer for one prompt, post-softmax.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Index into [`TokenBatch::prompts`].
    pub prompt: usize,
    /// Layer, from 0.
    pub layer: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Sequence length.
    pub n: usize,
    /// Which of the values [`Self::values`] holds.
    pub layout: Layout,
    /// As the layout says, C order.
    pub values: Values,
}

/// How a pattern's values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[n_heads, n (query), n (key)]`, zero where masked.
    Square,
    /// The causal half: row `q` of each head has its first `q + 1` keys, and nothing lies between rows or heads.
    Causal,
}

impl Layout {
    /// How many values a pattern of this layout has.
    pub fn len(self, n_heads: usize, n: usize) -> usize {
        match self {
            Layout::Square => n_heads * n * n,
            Layout::Causal => n_heads * (n * (n + 1) / 2),
        }
    }
}

/// Memory that holds values: a vector, or what a device was read into.
pub trait Buffer: Send + Sync {
    /// All of it.
    fn values(&self) -> &[f32];
}

impl Buffer for Vec<f32> {
    fn values(&self) -> &[f32] {
        self
    }
}

/// Some of the values of a [`Buffer`], which the prompts of a batch may share.
#[derive(Clone)]
pub struct Values {
    buffer: Arc<dyn Buffer>,
    range: Range<usize>,
}

impl Values {
    /// The values of `buffer` in `range`.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn part(buffer: Arc<dyn Buffer>, range: Range<usize>) -> Self {
        assert!(range.end <= buffer.values().len(), "{range:?} of {} values", buffer.values().len());
        Values { buffer, range }
    }

    /// The values.
    pub fn as_slice(&self) -> &[f32] {
        &self.buffer.values()[self.range.clone()]
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        let range = 0..values.len();
        Values { buffer: Arc::new(values), range }
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.range.len())
    }
}

impl Pattern {
    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// The values as `[n_heads, n (query), n (key)]`, zero where masked.
    pub fn to_square(&self) -> Vec<f32> {
        let (n, values) = (self.n, self.values.as_slice());
        match self.layout {
            Layout::Square => values.to_vec(),
            Layout::Causal => {
                let mut square = vec![0.0; self.n_heads * n * n];
                let mut rest = values;
                for (row, out) in square.chunks_exact_mut(n).enumerate() {
                    let (seen, after) = rest.split_at(row % n + 1);
                    out[..seen.len()].copy_from_slice(seen);
                    rest = after;
                }
                square
            }
        }
    }
}

/// Takes the patterns of one batch as they are computed.
pub trait PatternSink: Send {
    /// Takes one layer of one prompt; blocks while too many raw bytes wait to be encoded.
    /// An error means that nobody wants more: the engine stops the batch and ends it with [`EngineError::Stopped`].
    fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed>;

    /// Told once, after the last pattern: how the batch ended. A sink that is dropped without it belonged to an engine
    /// that broke.
    fn end(self: Box<Self>, result: Result<(), EngineError>);
}

/// The consumer of patterns is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkClosed;

/// Why a batch's forward pass ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The device has no room; a smaller batch may fit.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The device or the runtime failed; another process or device may succeed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The device failed in a way that this process cannot recover from: everything it is given fails from now on.
    #[error("the device failed for good: {0}")]
    DeviceLost(String),
    /// The input cannot be computed by this model, ever.
    #[error("{0}")]
    Input(String),
    /// lenspool itself is wrong: a panic, or a batch without all of its patterns.
    #[error("a bug in lenspool: {0}")]
    Bug(String),
    /// The sink closed.
    #[error("stopped: nobody takes the patterns any more")]
    Stopped,
}

/// A loaded model on a device.
pub trait Engine: Send {
    /// Runs `batch` and hands the patterns of `layers` (ascending) to `sink`, then ends it. Errors go there, too. An
    /// engine may take the batch in several passes of a few prompts each, whichever its device likes best; within a
    /// pass it goes layer by layer, every prompt of a layer before the next layer. So each prompt's layers come in
    /// order, and prompts may overlap. Nothing past the last layer asked for is computed.
    ///
    /// Waits until the device takes the work, not until it is done: batches end in the order in which they began, and
    /// dropping the engine ends every one of them first.
    fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>);

    /// Compiles and tunes what batches of `prompts` prompts of up to `longest` tokens need and have not needed before;
    /// the time it took, where there was something to do.
    fn warm_up(&mut self, _prompts: usize, _longest: usize) -> Option<Duration> {
        None
    }

    /// Whether the device is thought to have the memory for `prompts` prompts of up to `longest` tokens at once. It is
    /// an estimate: [`EngineError::OutOfMemory`] says it for sure.
    fn fits(&self, _prompts: usize, _longest: usize) -> bool {
        true
    }
}

/// Runs `body` with `sink` and ends it with what came of it: all of [`Engine::forward`] for an engine that waits.
pub fn at_once(
    mut sink: Box<dyn PatternSink>,
    body: impl FnOnce(&mut dyn PatternSink) -> Result<(), EngineError>,
) {
    let result = body(&mut *sink);
    sink.end(result);
}

/// Runs one batch, hands its patterns to `take` and waits for its end: for measurements and tests.
pub fn run_to_end(
    engine: &mut dyn Engine,
    batch: TokenBatch,
    layers: &[usize],
    take: impl FnMut(Pattern) + Send + 'static,
) -> Result<(), EngineError> {
    struct Sink<F>(F, mpsc::Sender<Result<(), EngineError>>);

    impl<F: FnMut(Pattern) + Send> PatternSink for Sink<F> {
        fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed> {
            (self.0)(pattern);
            Ok(())
        }

        fn end(self: Box<Self>, result: Result<(), EngineError>) {
            // The receiver waits below until the sink is gone.
            let _ = self.1.send(result);
        }
    }

    let (ended, wait) = mpsc::channel();
    engine.forward(batch, layers, Box::new(Sink(take, ended)));
    wait.recv().unwrap_or_else(|_| Err(EngineError::Bug("the engine dropped a batch".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_causal_half_is_laid_out_as_a_square() {
        let causal = Pattern {
            prompt: 0,
            layer: 0,
            n_heads: 2,
            n: 2,
            layout: Layout::Causal,
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0].into(),
        };
        assert_eq!(causal.to_square(), [1.0, 0.0, 2.0, 3.0, 4.0, 0.0, 5.0, 6.0]);
        assert_eq!(causal.values.as_slice().len(), Layout::Causal.len(2, 2));
    }
}
