//! A model's weights as tensors on the device, made from a checkpoint as its plan says.
//!
//! Layers above the highest one wanted are not loaded, nor is what that layer would do after its softmax.

use burn::tensor::{Device, Tensor, TensorData};
use common::model::{
    spec::{ModelSpec, Norm, NormKind},
    weights::{LayerPlan, Layout, LinearPlan, NormPlan, Plan, QkNorm, Residual},
};
use rayon::prelude::*;

use super::{
    LoadError, checkpoint::Checkpoint, failure::unplaced, footprint::Room, ops::Ops, values::Values,
};

/// A linear layer. Made by [`Ops::linear_weight`], which decides how the weight lies.
pub(super) struct Linear {
    /// As the ops want it.
    pub(super) weight: Tensor<2>,
    /// `[d_out]`.
    pub(super) bias: Option<Tensor<1>>,
    /// Width of the input.
    pub(super) d_in: usize,
    /// Width of the output.
    pub(super) d_out: usize,
}

/// A norm with its weights, `(1 + w)` applied.
pub(super) struct NormWeights {
    /// The formula.
    pub(super) norm: Norm,
    /// How many values of a row are normalized as one.
    pub(super) width: usize,
    /// As wide as a row.
    pub(super) weight: Tensor<1>,
    /// As wide as a row.
    pub(super) bias: Option<Tensor<1>>,
}

/// One block.
pub(super) struct Layer {
    /// The wiring and its norms.
    pub(super) residual: Residual<NormWeights>,
    /// Queries, keys and, unless this is the last layer wanted, values: heads side by side.
    pub(super) qkv: Linear,
    /// Norms on queries and keys.
    pub(super) qk_norm: Option<QkNorm<NormWeights>>,
    /// What comes after the softmax; none in the last layer wanted.
    pub(super) rest: Option<Rest>,
}

/// What a layer does after its softmax.
pub(super) struct Rest {
    /// From the heads back to the residual stream.
    pub(super) out: Linear,
    /// The MLP.
    pub(super) mlp: MlpWeights,
}

/// The MLP: `down(act(up(x)))`, or `down(act(gate(x)) * up(x))`.
pub(super) struct MlpWeights {
    /// To the hidden layer; gate and up side by side where `gated`.
    pub(super) up: Linear,
    /// Back.
    pub(super) down: Linear,
    /// Whether `up` starts with the gate.
    pub(super) gated: bool,
}

/// Reads weights out of one checkpoint onto one device.
pub(super) struct Loader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) spec: &'a ModelSpec,
    pub(super) device: &'a Device,
    pub(super) ops: Ops,
    /// What the device had before, where that is known.
    pub(super) room: Option<&'a Room>,
}

impl Loader<'_> {
    /// Bytes that the matrices of layers 0 to `highest` take on the device. Norms and biases, a thousandth of them, are
    /// not counted.
    pub(super) fn bytes(&self, plan: &Plan, highest: usize) -> u64 {
        let layers = plan.layers[..=highest].iter().enumerate();
        let matrices = layers.flat_map(|(index, layer)| {
            let whole =
                [&layer.v, &layer.attention_out, &layer.up, &layer.down].into_iter().chain(&layer.gate);
            [&layer.q, &layer.k].into_iter().chain(whole.filter(move |_| index < highest))
        });
        let values: usize =
            matrices.chain(&plan.embedding_projection).map(|matrix| matrix.d_in * matrix.d_out).sum();
        (values * self.ops.weight_size()) as u64
    }

    /// `tensor`, once it is known to be there. Uploading only queues: what is wrong with a weight would show in a batch
    /// only, as if that were to blame. And the host would read ahead of the device, as much as its queue has places.
    fn placed<const D: usize>(&self, tensor: Tensor<D>) -> Result<Tensor<D>, LoadError> {
        if self.ops != Ops::Native {
            // A GPU is asked and copies nothing: burn's data is read when it is looked at.
            tensor.clone().try_into_data().map_err(|error| unplaced(&error, self.room))?;
        }
        Ok(tensor)
    }

    /// Layers 0 to `highest`.
    pub(super) fn layers(&self, plan: &Plan, highest: usize) -> Result<Vec<Layer>, LoadError> {
        plan.layers[..=highest]
            .iter()
            .enumerate()
            .map(|(index, layer)| self.layer(layer, index < highest))
            .collect()
    }

    fn layer(&self, plan: &LayerPlan, whole: bool) -> Result<Layer, LoadError> {
        let qkv = if whole { vec![&plan.q, &plan.k, &plan.v] } else { vec![&plan.q, &plan.k] };
        let qk_norm = plan.qk_norm.as_ref().map(|norms| {
            Ok::<_, LoadError>(QkNorm { span: norms.span, q: self.norm(&norms.q)?, k: self.norm(&norms.k)? })
        });
        let rest = whole.then(|| {
            let up: Vec<&LinearPlan> = plan.gate.iter().chain([&plan.up]).collect();
            let mlp = MlpWeights {
                up: self.linear(&up)?,
                down: self.linear(&[&plan.down])?,
                gated: plan.gate.is_some(),
            };
            Ok::<_, LoadError>(Rest { out: self.linear(&[&plan.attention_out])?, mlp })
        });
        Ok(Layer {
            residual: plan.residual.try_map(|norm| self.norm(norm))?,
            qkv: self.linear(&qkv)?,
            qk_norm: qk_norm.transpose()?,
            rest: rest.transpose()?,
        })
    }

    /// A norm's weights.
    pub(super) fn norm(&self, plan: &NormPlan) -> Result<NormWeights, LoadError> {
        let mut weight = self.side_by_side(&plan.weight, plan, 1.0)?;
        match self.spec.norm.kind {
            NormKind::LayerNorm | NormKind::Rms => {}
            // Gemma stores the distance from one.
            NormKind::RmsPlusOne => weight.iter_mut().for_each(|value| *value += 1.0),
        }
        let bias = match plan.bias.is_empty() {
            true => None,
            false => Some(self.vector(self.side_by_side(&plan.bias, plan, 0.0)?)?),
        };
        Ok(NormWeights { norm: self.spec.norm, width: plan.width, weight: self.vector(weight)?, bias })
    }

    /// A norm's tensors, repeated until they are as wide as a row; `absent` where there are none.
    fn side_by_side(&self, names: &[String], plan: &NormPlan, absent: f32) -> Result<Vec<f32>, LoadError> {
        let total = plan.width * plan.count;
        let mut row = Vec::with_capacity(total);
        for name in names {
            let start = row.len();
            row.resize(start + plan.width, 0.0);
            self.checkpoint.values(name)?.read(0, &mut row[start..]);
        }
        let given = row.len();
        Ok((0..total).map(|at| if given == 0 { absent } else { row[at % given] }).collect())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor<1>, LoadError> {
        let len = values.len();
        self.placed(Tensor::from_data(TensorData::new(values, [len]), self.device))
    }

    /// Linear layers that read the same input, as one: outputs side by side.
    pub(super) fn linear(&self, parts: &[&LinearPlan]) -> Result<Linear, LoadError> {
        let d_in = parts[0].d_in;
        let d_out = parts.iter().map(|part| part.d_out).sum();
        let mut weight = vec![0.0; d_in * d_out];
        let mut bias = parts.iter().any(|part| part.bias.is_some()).then(|| vec![0.0; d_out]);
        let mut start = 0;
        for part in parts {
            let values = self.checkpoint.values(&part.weight)?;
            fill(&mut weight, d_out, start, part, &values);
            if let (Some(bias), Some(name)) = (&mut bias, &part.bias) {
                let values = self.checkpoint.values(name)?;
                let stored = part.features;
                for (run, out) in bias[start..start + part.d_out].chunks_mut(stored.run).enumerate() {
                    values.read(stored.start + run * stored.stride, out);
                }
            }
            start += part.d_out;
        }
        Ok(Linear {
            weight: self.placed(self.ops.linear_weight(weight, [d_in, d_out], self.device))?,
            bias: bias.map(|bias| self.vector(bias)).transpose()?,
            d_in,
            d_out,
        })
    }
}

/// Writes a stored weight into columns `start..start + plan.d_out` of `[d_in, d_out]`.
fn fill(weight: &mut [f32], d_out: usize, start: usize, plan: &LinearPlan, values: &Values) {
    let stored = plan.features;
    let stored_out = values.len() / plan.d_in;
    match plan.layout {
        Layout::InOut => {
            weight.par_chunks_mut(d_out).enumerate().for_each(|(row, columns)| {
                for (run, out) in columns[start..start + plan.d_out].chunks_mut(stored.run).enumerate() {
                    values.read(row * stored_out + stored.start + run * stored.stride, out);
                }
            });
        }
        Layout::OutIn => {
            // Blocks of input rows in parallel; within one, a feature's values are read in a piece and
            // written down a column.
            const ROWS: usize = 64;
            weight.par_chunks_mut(d_out * ROWS).enumerate().for_each(|(block, rows)| {
                let mut piece = [0.0; ROWS];
                let piece = &mut piece[..rows.len() / d_out];
                for out in 0..plan.d_out {
                    let feature = stored.start + out / stored.run * stored.stride + out % stored.run;
                    values.read(feature * plan.d_in + block * ROWS, piece);
                    for (row, value) in piece.iter().enumerate() {
                        rows[row * d_out + start + out] = *value;
                    }
                }
            });
        }
    }
}
