//! The whole contract between the queue's side and the model's side.
//!
//! An [`Engine`] is synchronous and is owned by one OS thread. It hands each layer's patterns to a
//! [`PatternSink`] as soon as that layer's softmax is done, so that encoding layer `i` overlaps with
//! computing layer `i + 1`, and no more raw patterns exist at once than the sink lets in.

/// The token ids of a batch of prompts, each without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// `prompts[p]` are prompt `p`'s ids, BOS included where one is prepended; never empty.
    pub prompts: Vec<Vec<u32>>,
}

/// The attention pattern of one layer for one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    /// Index into [`TokenBatch::prompts`].
    pub prompt: usize,
    /// Layer, from 0.
    pub layer: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Sequence length.
    pub n: usize,
    /// `[n_heads, n (query), n (key)]`, C order, post-softmax, zero where masked.
    pub values: Vec<f32>,
}

/// Takes patterns as they are computed.
pub trait PatternSink {
    /// Takes one layer of one prompt; blocks while too many raw bytes wait to be encoded.
    /// An error means that nobody wants more: the engine stops the batch and returns [`EngineError::Stopped`].
    fn take(&mut self, pattern: Pattern) -> Result<(), SinkClosed>;
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
    /// Runs `batch` and hands the patterns of `layers` (ascending) to `sink`. An engine may take the batch in several
    /// passes of a few prompts each, whichever its device likes best; within a pass it goes layer by layer, every
    /// prompt of a layer before the next layer. So each prompt's layers come in order, and prompts may overlap.
    /// Nothing past the last layer asked for is computed.
    fn forward(
        &mut self,
        batch: &TokenBatch,
        layers: &[usize],
        sink: &mut dyn PatternSink,
    ) -> Result<(), EngineError>;
}
