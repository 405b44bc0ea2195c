//! The engine on a GPU: one thread launches kernels and never waits for them, another reads back what is ready.
//!
//! A batch is one padded group. Of each layer only the causal halves leave the device, without padding, while the next
//! layers, and the next batch, are computed.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use burn::tensor::{Int, Tensor, TensorData};

use super::{
    batch::Group,
    footprint::Footprint,
    ops::causal_halves,
    readback::{Halves, Readback, Span},
    transformer::Transformer,
};
use crate::engine::{Engine, EngineError, Layout, PatternSink, TokenBatch};

/// A model on a device that works beside the host.
pub(super) struct DeviceEngine {
    model: Transformer,
    readback: Readback,
    footprint: Footprint,
    /// The classes of batches, rows and tokens a prompt, whose kernels are compiled and tuned.
    warm: HashSet<(usize, usize)>,
}

impl DeviceEngine {
    pub(super) fn new(model: Transformer, footprint: Footprint) -> Self {
        DeviceEngine { model, readback: Readback::start(footprint.card()), footprint, warm: HashSet::new() }
    }
}

/// Launches every pass of `batch` and gives the halves of each layer to `taken` as they will be.
fn launch(
    model: &mut Transformer,
    batch: &TokenBatch,
    layers: &[usize],
    taken: &mut dyn FnMut(Halves) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let Some(highest) = model.check(batch, layers)? else { return Ok(()) };
    for groups in model.passes(batch) {
        let places: Vec<Places> = groups.iter().map(|group| places(model, batch, group)).collect();
        let n_heads = model.heads.query;
        let mut taken = |layer: usize, patterns: Vec<Tensor<4>>| {
            patterns.into_iter().zip(&places).try_for_each(|(pattern, places)| {
                let values = causal_halves(pattern, places.table.clone(), places.total);
                taken(Halves { layer, n_heads, values, spans: places.spans.clone() })
            })
        };
        model.pass(batch, &groups, layers, highest, &mut taken)?;
    }
    Ok(())
}

/// A group's prompts in the buffer of their halves.
struct Places {
    /// As [`causal_halves`] wants it.
    table: Tensor<1, Int>,
    total: usize,
    spans: Vec<Span>,
}

/// Where the halves of a group's prompts go.
fn places(model: &Transformer, batch: &TokenBatch, group: &Group) -> Places {
    let mut total = 0;
    let mut table = Vec::with_capacity(2 * group.batch());
    let mut spans = Vec::with_capacity(group.batch());
    for prompt in group.prompts.clone() {
        let n = batch.prompts[prompt].len();
        table.extend([n as i64, total as i64]);
        spans.push(Span { prompt, n, start: total });
        total += Layout::Causal.len(model.heads.query, n);
    }
    // In one dimension: CUDA's runtime would lay out two with the rows padded, and copy them together for every layer.
    let table = TensorData::new(table, [2 * group.batch()]);
    Places { table: Tensor::from_data(table, &model.device), total, spans }
}

impl Engine for DeviceEngine {
    fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
        if self.readback.ran_out_of_memory() {
            // What pools keep for shapes that are past may be what is missing.
            self.model.device.memory_cleanup();
        }
        let open = self.readback.begin(sink);
        let longest = batch.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let possible = self.footprint.check(batch.prompts.len(), longest);
        let result =
            possible.and_then(|()| launch(&mut self.model, &batch, layers, &mut |halves| open.take(halves)));
        open.end(result);
    }

    fn warm_up(&mut self, prompts: usize, longest: usize) -> Option<Duration> {
        let padded = self.footprint.padded(longest);
        self.footprint.check(prompts, padded).ok()?;
        // Kernels are tuned for classes of sizes, powers of two: of rows, and of what is multiplied for each prompt.
        if !self.warm.insert(((prompts * padded).next_power_of_two(), padded)) {
            return None;
        }
        let begin = Instant::now();
        let batch = TokenBatch { prompts: vec![vec![0; padded]; prompts] };
        let layers: Vec<usize> = (0..self.model.layers.len()).collect();
        // What fails here fails again in the batch itself, where it is told.
        let _ = launch(&mut self.model, &batch, &layers, &mut |_| Ok(()));
        let _ = self.model.device.sync();
        Some(begin.elapsed())
    }

    fn fits(&self, prompts: usize, longest: usize) -> bool {
        self.footprint.fits(prompts, longest)
    }
}
