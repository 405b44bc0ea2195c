//! Tables of cos and sin for rotary positions, made as far as the longest prompt seen.

use burn::tensor::{Device, Tensor, TensorData};
use common::model::spec::{ModelSpec, Rotary, RotaryPairs};

/// The rotation of one or more layers.
#[derive(Clone)]
pub(super) struct RotaryTable {
    /// `[positions, pairs]`.
    pub(super) cos: Tensor<2>,
    /// `[positions, pairs]`.
    pub(super) sin: Tensor<2>,
    /// Which values form a pair.
    pub(super) pairs: RotaryPairs,
}

/// Every rotation a model uses: layers that rotate alike share one.
pub(super) struct RotaryTables {
    kinds: Vec<Rotary>,
    /// Which kind each layer uses.
    of_layer: Vec<Option<usize>>,
    /// One a kind, for `positions` positions.
    tables: Vec<RotaryTable>,
    positions: usize,
    device: Device,
}

impl RotaryTables {
    pub(super) fn new(spec: &ModelSpec, device: &Device) -> Self {
        let mut kinds: Vec<Rotary> = Vec::new();
        let of_layer = spec
            .layers
            .iter()
            .map(|layer| {
                let rotary = layer.rotary.as_ref()?;
                Some(kinds.iter().position(|kind| kind == rotary).unwrap_or_else(|| {
                    kinds.push(rotary.clone());
                    kinds.len() - 1
                }))
            })
            .collect();
        RotaryTables { kinds, of_layer, tables: Vec::new(), positions: 0, device: device.clone() }
    }

    /// Makes the tables long enough for prompts of `seq` tokens.
    pub(super) fn reach(&mut self, seq: usize) {
        if seq <= self.positions {
            return;
        }
        self.positions = seq.next_power_of_two().max(128);
        let (positions, device) = (self.positions, &self.device);
        self.tables = self.kinds.iter().map(|kind| table(kind, positions, device)).collect();
    }

    /// The table of a layer that rotates.
    pub(super) fn of_layer(&self, layer: usize) -> Option<&RotaryTable> {
        self.of_layer[layer].map(|kind| &self.tables[kind])
    }
}

fn table(rotary: &Rotary, positions: usize, device: &Device) -> RotaryTable {
    let pairs = rotary.inv_freq.len();
    let make = |function: fn(f64) -> f64| {
        let values: Vec<f32> = (0..positions)
            .flat_map(|position| {
                rotary.inv_freq.iter().map(move |freq| {
                    // The angle is rounded to f32 as Hugging Face rounds it; its cosine is not at fault then.
                    let angle = position as f32 * freq;
                    function(f64::from(angle)) as f32 * rotary.attention_scaling
                })
            })
            .collect();
        Tensor::from_data(TensorData::new(values, [positions, pairs]), device)
    };
    RotaryTable { cos: make(f64::cos), sin: make(f64::sin), pairs: rotary.pairs }
}
