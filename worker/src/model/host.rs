//! The engine on the CPU: computes a layer, hands it over, computes the next.

use burn::tensor::Tensor;

use super::{batch::Group, transformer::Transformer};
use crate::engine::{Engine, EngineError, Layout, Pattern, PatternSink, TokenBatch, at_once};

/// Rows of a pass: enough to keep the matrix kernels busy, few enough that a pass's activations stay in the cache.
pub(super) const ROWS: usize = 512;

/// A model on the CPU, every prompt of it a group of its own.
pub(super) struct HostEngine {
    model: Transformer,
}

impl HostEngine {
    pub(super) fn new(model: Transformer) -> Self {
        HostEngine { model }
    }
}

impl Engine for HostEngine {
    fn forward(&mut self, batch: TokenBatch, layers: &[usize], sink: Box<dyn PatternSink>) {
        at_once(sink, |sink| {
            let Some(highest) = self.model.check(&batch, layers)? else { return Ok(()) };
            for groups in self.model.passes(&batch) {
                let mut taken = |layer: usize, patterns: Vec<Tensor<4>>| {
                    patterns
                        .into_iter()
                        .zip(&groups)
                        .try_for_each(|(pattern, group)| hand_over(pattern, group, layer, sink))
                };
                self.model.pass(&batch, &groups, layers, highest, &mut taken)?;
            }
            Ok(())
        });
    }
}

/// The pattern of a group of one prompt to the sink.
fn hand_over(
    pattern: Tensor<4>,
    group: &Group,
    layer: usize,
    sink: &mut dyn PatternSink,
) -> Result<(), EngineError> {
    let [_, n_heads, n, _] = pattern.dims();
    let data = pattern.try_into_data().map_err(|error| EngineError::Device(error.to_string()))?;
    let values = data.try_into_vec::<f32>().map_err(|error| EngineError::Device(error.to_string()))?;
    let (prompt, layout) = (group.prompts.start, Layout::Square);
    let pattern = Pattern { prompt, layer, n_heads, n, layout, values: values.into() };
    sink.take(pattern).map_err(|_| EngineError::Stopped)
}
