//! Prompts to batches: longest first, bounded in prompts, in pattern bytes and in message bytes.
//!
//! Pure: the same prompts and limits give the same batches in the same order. What is computed
//! already was taken out before; what the machine can hold is [`memory`]'s to say.

pub mod memory;

use std::cmp::Reverse;

use crate::prompt::PromptHash;

/// What the planner knows of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct PlanItem<'p> {
    /// Its identity, which breaks ties.
    pub hash: &'p PromptHash,
    /// Its length for the model, BOS included.
    pub n: usize,
    /// The bytes it takes in a job's message.
    pub message_bytes: usize,
}

/// The attention patterns one forward pass yields a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternShape {
    /// Layers that are kept.
    pub n_layers: usize,
    /// Query heads a layer.
    pub n_heads: usize,
}

impl PatternShape {
    /// Bytes of the float32 patterns of `prompts` prompts padded to `n`: `[n_layers, prompts, n_heads, n, n]`.
    pub fn pattern_bytes(&self, prompts: usize, n: usize) -> u64 {
        [self.n_layers, self.n_heads, prompts, n, n]
            .iter()
            .fold(4, |bytes: u64, &factor| bytes.saturating_mul(factor as u64))
    }
}

/// How large a batch may be. A prompt over a bound goes alone: it must be run, and it is as small as it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Prompts (`--batch-size`); at least 1.
    pub batch_size: usize,
    /// Bytes of float32 patterns, padding included (`--batch-memory`).
    pub batch_bytes: u64,
    /// Bytes of a job's prompts in its message, where jobs travel in messages.
    pub max_message_bytes: Option<usize>,
}

/// `--batch-size`'s default, which is upstream's.
pub const DEFAULT_BATCH_SIZE: usize = 32;

/// Prompts to run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Indices into the planned items, longest prompt first.
    pub members: Vec<usize>,
    /// The longest prompt's length, to which the others are padded.
    pub n: usize,
    /// Bytes of the batch's float32 patterns, padding included.
    pub pattern_bytes: u64,
    /// Bytes of the batch's prompts in a message; over the limit only where one prompt is by itself.
    pub message_bytes: usize,
}

/// Cuts `items` into batches, the longest prompts first: what does not fit in memory shows at once,
/// the ETA settles early, and prompts of like length share their padding.
pub fn plan(items: &[PlanItem<'_>], shape: PatternShape, limits: PlanLimits) -> Vec<Batch> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_unstable_by_key(|&at| (Reverse(items[at].n), items[at].hash, at));

    let mut batches: Vec<Batch> = Vec::new();
    for at in order {
        let item = &items[at];
        if let Some(batch) = batches.last_mut() {
            let pattern_bytes = shape.pattern_bytes(batch.members.len() + 1, batch.n);
            let message_bytes = batch.message_bytes + item.message_bytes;
            if batch.members.len() < limits.batch_size
                && pattern_bytes <= limits.batch_bytes
                && limits.max_message_bytes.is_none_or(|max| message_bytes <= max)
            {
                batch.members.push(at);
                (batch.pattern_bytes, batch.message_bytes) = (pattern_bytes, message_bytes);
                continue;
            }
        }
        batches.push(Batch {
            members: vec![at],
            n: item.n,
            pattern_bytes: shape.pattern_bytes(1, item.n),
            message_bytes: item.message_bytes,
        });
    }
    batches
}

#[cfg(test)]
mod tests;
