//! Tables of cos and sin for rotary positions, made as far as the longest prompt seen.

use burn::tensor::{Device, Tensor, TensorData};
use common::model::spec::{ModelSpec, Rotary, RotaryPairs};

use super::batch::Group;

/// The rotation of one or more layers.
#[derive(Clone)]
pub(super) struct RotaryTable {
    /// `[positions, pairs]`, and as many rows again for long prompts where they differ.
    pub(super) cos: Tensor<2>,
    /// Likewise.
    pub(super) sin: Tensor<2>,
    /// Where long prompts' rows begin.
    pub(super) long_start: usize,
    /// Which values form a pair.
    pub(super) pairs: RotaryPairs,
}

impl RotaryTable {
    /// The row of a group's first position.
    pub(super) fn start(&self, group: &Group) -> usize {
        if group.long { self.long_start } else { 0 }
    }
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

    /// Prompts of more tokens than this are long; none: no rotation makes a difference.
    pub(super) fn beyond(&self) -> Option<usize> {
        self.kinds.iter().find_map(|kind| kind.long.as_ref()).map(|long| long.beyond)
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
    let sets: Vec<&[f32]> = [&rotary.inv_freq]
        .into_iter()
        .chain(rotary.long.as_ref().map(|long| &long.inv_freq))
        .map(|set| &set[..])
        .collect();
    let make = |function: fn(f64) -> f64| {
        let mut values = Vec::with_capacity(sets.len() * positions * pairs);
        for (set, position) in sets.iter().flat_map(|set| (0..positions).map(move |position| (set, position)))
        {
            // The angle is rounded to f32 as Hugging Face rounds it; its cosine is not at fault then.
            let angles = set.iter().map(|freq| f64::from(position as f32 * freq));
            values.extend(angles.map(|angle| function(angle) as f32 * rotary.attention_scaling));
        }
        Tensor::from_data(TensorData::new(values, [sets.len() * positions, pairs]), device)
    };
    let long_start = if rotary.long.is_some() { positions } else { 0 };
    RotaryTable { cos: make(f64::cos), sin: make(f64::sin), long_start, pairs: rotary.pairs }
}
