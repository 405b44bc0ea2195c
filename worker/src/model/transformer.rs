//! The forward pass every family shares, driven by its spec and the wiring its weights carry.

use burn::tensor::{Device, Tensor, TensorData};
use common::model::{
    spec::{Activation, ModelSpec, Positions, alibi_slopes},
    weights::Residual,
};

use super::{
    batch::{Group, Packing},
    embed::Embedding,
    ops::{Heads, Ops, ScoreRule},
    rotary::{RotaryTable, RotaryTables},
    weights::{Layer, Linear, MlpWeights, NormWeights},
};
use crate::engine::{EngineError, TokenBatch};

/// Bytes that are uploaded as they are. 100 MiB, CUDA's runtime would not copy to memory first that the device reads by
/// itself: its thread would wait until all that was launched before is done.
const WHOLE: usize = 96 << 20;
/// Bytes of a piece where there are more. After one of more than 10 MiB it waits for the piece before.
const PIECE: usize = 8 << 20;

/// A model on a device.
pub(super) struct Transformer {
    pub(super) ops: Ops,
    pub(super) packing: Packing,
    pub(super) device: Device,
    pub(super) embedding: Embedding,
    pub(super) embedding_projection: Option<Linear>,
    pub(super) embedding_norm: Option<NormWeights>,
    pub(super) layers: Vec<Layer>,
    pub(super) rules: Vec<ScoreRule>,
    pub(super) rotary: RotaryTables,
    pub(super) heads: Heads,
    pub(super) activation: Activation,
    pub(super) d_model: usize,
    pub(super) n_layers: usize,
}

/// How each layer of `spec` makes patterns of scores.
pub(super) fn rules(spec: &ModelSpec) -> Vec<ScoreRule> {
    let slopes = match spec.positions {
        Positions::Alibi => Some(alibi_slopes(spec.n_heads)),
        Positions::Learned { .. } | Positions::Rotary => None,
    };
    let rule = |layer: &common::model::spec::LayerSpec| ScoreRule {
        scale: layer.score_scale as f32,
        softcap: spec.score_softcap.map(|cap| cap as f32),
        window: layer.window,
        slopes: slopes.clone(),
    };
    spec.layers.iter().map(rule).collect()
}

/// `rows` of `width` values each on the device, in pieces of `piece` bytes where they are more than `whole`.
fn upload(rows: Vec<f32>, width: usize, whole: usize, piece: usize, device: &Device) -> Tensor<2> {
    let place = |rows: Vec<f32>| {
        let count = rows.len() / width;
        Tensor::from_data(TensorData::new(rows, [count, width]), device)
    };
    if size_of_val(&rows[..]) <= whole {
        return place(rows);
    }
    let piece = (piece / size_of::<f32>() / width).max(1) * width;
    Tensor::cat(rows.chunks(piece).map(|rows| place(rows.to_vec())).collect(), 0)
}

impl Transformer {
    /// Whether this model can run `batch` as far as the last of `layers`; gives that layer, where there is one.
    pub(super) fn check(&self, batch: &TokenBatch, layers: &[usize]) -> Result<Option<usize>, EngineError> {
        let Some(&highest) = layers.iter().max() else { return Ok(None) };
        if highest >= self.layers.len() {
            return Err(EngineError::Input(format!(
                "layer {highest} was asked for; of the model's {} layers, the first {} are loaded",
                self.n_layers,
                self.layers.len()
            )));
        }
        for prompt in &batch.prompts {
            self.embedding.check(prompt)?;
        }
        Ok(Some(highest))
    }

    /// The passes `batch` takes, tables of positions made long enough for each.
    pub(super) fn passes(&mut self, batch: &TokenBatch) -> Vec<Vec<Group>> {
        let lengths: Vec<usize> = batch.prompts.iter().map(Vec::len).collect();
        let passes = self.packing.passes(&lengths, self.rotary.beyond());
        self.rotary.reach(passes.iter().flatten().map(|group| group.seq).max().unwrap_or(0));
        passes
    }

    /// All layers up to `highest` for the prompts of `groups`. The patterns of each of `layers` go to `taken`, one
    /// tensor a group, before the next layer is computed.
    pub(super) fn pass(
        &self,
        batch: &TokenBatch,
        groups: &[Group],
        layers: &[usize],
        highest: usize,
        taken: &mut dyn FnMut(usize, Vec<Tensor<4>>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut x = self.embed(batch, groups);
        if let Some(norm) = &self.embedding_norm {
            x = self.ops.norm(x, norm);
        }
        for (index, layer) in self.layers[..=highest].iter().enumerate() {
            let wanted = layers.contains(&index);
            let mut taken = |patterns: Vec<Tensor<4>>| match wanted {
                true => taken(index, patterns),
                false => Ok(()),
            };
            match self.block(x, index, layer, groups, index == highest, &mut taken)? {
                Some(next) => x = next,
                None => break,
            }
        }
        Ok(())
    }

    /// The stream before the first block and its norm: `[rows, d_model]`.
    fn embed(&self, batch: &TokenBatch, groups: &[Group]) -> Tensor<2> {
        let to_device = |rows: Vec<f32>, width: usize| upload(rows, width, WHOLE, PIECE, &self.device);
        let Some(projection) = &self.embedding_projection else {
            return to_device(self.embedding.rows(&batch.prompts, groups), self.d_model);
        };
        // Only the tokens' part is narrow: positions are added in the stream's width.
        let (tokens, positions) = self.embedding.rows_apart(&batch.prompts, groups);
        let tokens = self.ops.linear(to_device(tokens, projection.d_in), projection, None);
        match positions {
            None => tokens,
            Some(positions) => tokens + to_device(positions, self.d_model),
        }
    }

    /// One block: `[rows, d_model]` to the same, or none where the block ends at its softmax.
    fn block(
        &self,
        x: Tensor<2>,
        index: usize,
        layer: &Layer,
        groups: &[Group],
        last: bool,
        taken: &mut dyn FnMut(Vec<Tensor<4>>) -> Result<(), EngineError>,
    ) -> Result<Option<Tensor<2>>, EngineError> {
        let ops = self.ops;
        let input = match &layer.residual {
            Residual::PreNorm { attention: norm, .. }
            | Residual::ParallelOneNorm { norm }
            | Residual::ParallelTwoNorms { attention: norm, .. }
            | Residual::StreamNorm { attention: norm, .. }
            | Residual::Sandwich { pre_attention: norm, .. } => ops.norm(x.clone(), norm),
            Residual::PostNorm { .. } | Residual::OutputNorm { .. } => x.clone(),
        };
        let qkv = ops.linear(input.clone(), &layer.qkv, None);
        let qkv = self.place(qkv, layer, self.rotary.of_layer(index), groups);
        let attended = ops.attend(qkv, self.heads, &self.rules[index], groups);
        taken(attended.patterns)?;
        let (Some(rest), Some(mixed), false) = (&layer.rest, attended.mixed, last) else { return Ok(None) };
        let attention = |mixed| ops.linear(mixed, &rest.out, None);
        let onto_attention = |x, mixed| ops.linear_onto(x, mixed, &rest.out);
        let mlp = |input| ops.linear(self.hidden(input, &rest.mlp), &rest.mlp.down, None);
        let onto_mlp = |x, input| ops.linear_onto(x, self.hidden(input, &rest.mlp), &rest.mlp.down);
        Ok(Some(match &layer.residual {
            Residual::PreNorm { mlp: norm, .. } => {
                let x = onto_attention(x, mixed);
                let input = ops.norm(x.clone(), norm);
                onto_mlp(x, input)
            }
            Residual::ParallelOneNorm { .. } => onto_mlp(onto_attention(x, mixed), input),
            Residual::ParallelTwoNorms { mlp: norm, .. } => {
                let input = ops.norm(x.clone(), norm);
                onto_mlp(onto_attention(x, mixed), input)
            }
            Residual::StreamNorm { mlp: norm, .. } => {
                let x = ops.norm(onto_attention(input, mixed), norm);
                onto_mlp(x.clone(), x)
            }
            Residual::PostNorm { attention: after_attention, mlp: after_mlp } => {
                let x = ops.norm(onto_attention(x, mixed), after_attention);
                ops.norm(onto_mlp(x.clone(), x), after_mlp)
            }
            Residual::OutputNorm { attention: after_attention, mlp: after_mlp } => {
                let x = x + ops.norm(attention(mixed), after_attention);
                x.clone() + ops.norm(mlp(x), after_mlp)
            }
            Residual::Sandwich { post_attention, pre_mlp, post_mlp, .. } => {
                let x = x + ops.norm(attention(mixed), post_attention);
                let input = ops.norm(x.clone(), pre_mlp);
                x + ops.norm(mlp(input), post_mlp)
            }
        }))
    }

    /// Queries and keys normalized and rotated, where the model does so.
    fn place(
        &self,
        qkv: Tensor<2>,
        layer: &Layer,
        rotary: Option<&RotaryTable>,
        groups: &[Group],
    ) -> Tensor<2> {
        let Heads { query, key, width } = self.heads;
        let [rows, total] = qkv.dims();
        let mut qkv = qkv;
        if let Some(norms) = &layer.qk_norm {
            let part = |from: usize, to: usize| qkv.clone().slice([0..rows, from * width..to * width]);
            let q = self.ops.norm(part(0, query), &norms.q);
            let k = self.ops.norm(part(query, query + key), &norms.k);
            let mut parts = vec![q, k];
            if total > (query + key) * width {
                parts.push(part(query + key, query + 2 * key));
            }
            qkv = Tensor::cat(parts, 1);
        }
        match rotary {
            None => qkv,
            Some(table) => self.ops.rotate(qkv, query + key, width, table, groups),
        }
    }

    /// The MLP as far as its hidden layer: `[rows, d_mlp]`.
    fn hidden(&self, x: Tensor<2>, weights: &MlpWeights) -> Tensor<2> {
        if weights.gated {
            self.ops.gate(self.ops.linear(x, &weights.up, None), self.activation)
        } else {
            self.ops.linear(x, &weights.up, Some(self.activation))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::device;

    #[test]
    fn rows_uploaded_in_pieces_are_those_uploaded_at_once() {
        let (rows, width): (Vec<f32>, _) = ((0..21).map(|value| value as f32).collect(), 3);
        for (whole, piece) in [(84, 12), (83, 0), (83, 12), (0, 30), (0, 84)] {
            let placed = upload(rows.clone(), width, whole, piece, &device());
            assert_eq!(placed.dims(), [7, 3]);
            assert_eq!(placed.into_data().try_to_vec::<f32>().expect("floats"), rows, "{whole} {piece}");
        }
    }
}
