//! The operations of a forward pass, behind one set of functions for every device.
//!
//! [`native`] is kernels of our own on burn's CPU backend. [`composed`] builds the same from burn's tensor
//! operations and the few of [`device`], and runs anywhere. Shapes: activations are `[rows, width]`, `rows` running over the tokens of all
//! prompts of a pass; patterns are `[batch, head, query, key]`.

mod composed;
mod device;
mod native;

pub(super) use device::causal_halves;

use burn::tensor::{Device, Tensor, TensorData};
use common::{
    capture::{ComputeDtype, Numerics},
    model::spec::Activation,
};

use super::{
    batch::Group,
    rotary::RotaryTable,
    weights::{Linear, NormWeights},
};

/// How operations are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ops {
    /// By our own kernels, on the CPU.
    Native,
    /// From burn's operations, on any device.
    Composed(Numerics),
}

/// How the width of a QKV projection's output divides into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    /// Query heads.
    pub(super) query: usize,
    /// Key heads, and value heads.
    pub(super) key: usize,
    /// Width of one.
    pub(super) width: usize,
}

/// From `q . k` to the pattern.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ScoreRule {
    /// What `q . k` is multiplied by.
    pub(super) scale: f32,
    /// `cap * tanh(score / cap)`, after scaling.
    pub(super) softcap: Option<f32>,
    /// Keys up to so many positions back are seen, the query's own included.
    pub(super) window: Option<usize>,
    /// ALiBi: what is added is `slope * (key - query)`, a slope a query head.
    pub(super) slopes: Option<Vec<f32>>,
}

/// What attention gives.
pub(super) struct Attended {
    /// One a group: `[batch, head, query, key]`, zero where masked.
    pub(super) patterns: Vec<Tensor<4>>,
    /// `[rows, query heads * width]`, where values were there to mix.
    pub(super) mixed: Option<Tensor<2>>,
}

impl Ops {
    /// Puts a weight of shape `[d_in, d_out]` on the device as [`Self::linear`] wants it.
    pub(super) fn linear_weight(self, weight: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
        let (weight, shape) = match self {
            Ops::Native => native::pack(&weight, shape),
            Ops::Composed(_) => (weight, shape),
        };
        let weight = Tensor::from_data(TensorData::new(weight, shape), device);
        match self {
            Ops::Native => weight,
            Ops::Composed(numerics) => composed::operand(weight, numerics),
        }
    }

    /// Bytes of one value of such a weight.
    pub(super) fn weight_size(self) -> usize {
        match self {
            Ops::Native => size_of::<f32>(),
            Ops::Composed(numerics) => match numerics.compute_dtype {
                ComputeDtype::Float32 => size_of::<f32>(),
                ComputeDtype::Bf16 | ComputeDtype::F16 => size_of::<u16>(),
            },
        }
    }

    /// `act(x W + b)`: `[rows, d_in]` to `[rows, d_out]`.
    pub(super) fn linear(self, x: Tensor<2>, linear: &Linear, activation: Option<Activation>) -> Tensor<2> {
        match self {
            Ops::Native => native::linear(x, linear, activation, None),
            Ops::Composed(numerics) => match activation {
                None => composed::linear(x, linear, numerics),
                Some(activation) => composed::activate(composed::linear(x, linear, numerics), activation),
            },
        }
    }

    /// `onto + x W + b`.
    pub(super) fn linear_onto(self, onto: Tensor<2>, x: Tensor<2>, linear: &Linear) -> Tensor<2> {
        match self {
            Ops::Native => native::linear(x, linear, None, Some(onto)),
            Ops::Composed(numerics) => onto + composed::linear(x, linear, numerics),
        }
    }

    /// Normalizes each row, in stretches of the norm's width.
    pub(super) fn norm(self, x: Tensor<2>, norm: &NormWeights) -> Tensor<2> {
        match self {
            Ops::Native => native::norm(x, norm),
            Ops::Composed(_) => composed::norm(x, norm),
        }
    }

    /// `act(x[.., ..d]) * x[.., d..]`: `[rows, 2 d]` to `[rows, d]`.
    pub(super) fn gate(self, x: Tensor<2>, activation: Activation) -> Tensor<2> {
        match self {
            Ops::Native => native::gate(x, activation),
            Ops::Composed(_) => composed::gate(x, activation),
        }
    }

    /// Rotates the first `heads` heads of each row by the row's position in its prompt.
    pub(super) fn rotate(
        self,
        x: Tensor<2>,
        heads: usize,
        width: usize,
        table: &RotaryTable,
        groups: &[Group],
    ) -> Tensor<2> {
        match self {
            Ops::Native => native::rotate(x, heads, width, table, groups),
            Ops::Composed(_) => composed::rotate(x, heads, width, table, groups),
        }
    }

    /// Causal attention within each prompt of `groups`; `qkv` is `[rows, q | k | v]` or `[rows, q | k]`.
    pub(super) fn attend(self, qkv: Tensor<2>, heads: Heads, rule: &ScoreRule, groups: &[Group]) -> Attended {
        match self {
            Ops::Native => native::attend(qkv, heads, rule, groups),
            Ops::Composed(numerics) => composed::attend(qkv, heads, rule, groups, numerics),
        }
    }
}
