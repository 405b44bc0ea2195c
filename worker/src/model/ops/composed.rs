//! Every operation from burn's tensor operations and our few of [`device`]: right on any device, fast where those are.
//! The native kernels are tested against these.

use burn::tensor::{FloatDType, Tensor, TensorData, activation};
use common::{
    capture::{ComputeDtype, Numerics},
    model::spec::{Activation, NormKind, RotaryPairs},
};

use super::{
    Attended, Heads, ScoreRule,
    device::{self, RowRule},
};
use crate::model::{
    batch::Group,
    rotary::RotaryTable,
    weights::{Linear, NormWeights},
};

/// `x` as a product takes it in.
pub(super) fn operand<const D: usize>(x: Tensor<D>, numerics: Numerics) -> Tensor<D> {
    match numerics.compute_dtype {
        ComputeDtype::Float32 => x,
        ComputeDtype::Bf16 => x.cast(FloatDType::BF16),
        ComputeDtype::F16 => x.cast(FloatDType::F16),
    }
}

fn product<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>, numerics: Numerics) -> Tensor<D> {
    device::product(operand(lhs, numerics), operand(rhs, numerics), numerics.matmul_precision)
}

pub(super) fn linear(x: Tensor<2>, linear: &Linear, numerics: Numerics) -> Tensor<2> {
    // The weight was made an operand when it was loaded.
    let product = device::product(operand(x, numerics), linear.weight.clone(), numerics.matmul_precision);
    match &linear.bias {
        None => product,
        Some(bias) => product + bias.clone().unsqueeze(),
    }
}

pub(super) fn norm(x: Tensor<2>, norm: &NormWeights) -> Tensor<2> {
    let [rows, total] = x.dims();
    let x = x.reshape([rows * total / norm.width, norm.width]);
    let centered = match norm.norm.kind {
        NormKind::LayerNorm => x.clone() - x.mean_dim(1),
        NormKind::Rms | NormKind::RmsPlusOne => x,
    };
    let variance = centered.clone().square().mean_dim(1);
    let normal = centered / (variance + norm.norm.eps as f32).sqrt();
    let scaled = normal.reshape([rows, total]) * norm.weight.clone().unsqueeze();
    match &norm.bias {
        None => scaled,
        Some(bias) => scaled + bias.clone().unsqueeze(),
    }
}

pub(super) fn activate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    match activation {
        Activation::GeluErf => activation::gelu(x),
        Activation::GeluTanh => activation::gelu_approximate(x),
        Activation::Relu => activation::relu(x),
        Activation::Silu => activation::silu(x),
    }
}

pub(super) fn gate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    let [rows, both] = x.dims();
    let gate = x.clone().slice([0..rows, 0..both / 2]);
    let up = x.slice([0..rows, both / 2..both]);
    activate(gate, activation) * up
}

pub(super) fn rotate(
    x: Tensor<2>,
    heads: usize,
    width: usize,
    table: &RotaryTable,
    groups: &[Group],
) -> Tensor<2> {
    let [rows, total] = x.dims();
    let [_, pairs] = table.cos.dims();
    let (rotated, rest) = (heads * width, total - heads * width);
    let mut done = Vec::with_capacity(groups.len());
    for group in groups {
        let (batch, seq) = (group.batch(), group.seq);
        // [batch, seq, head, value]
        let values = x.clone().slice([group.rows(), 0..rotated]).reshape([batch, seq, heads, width]);
        let start = table.start(group);
        let angle = |table: &Tensor<2>| table.clone().slice([start..start + seq, 0..pairs]);
        let (cos, sin) = (angle(&table.cos), angle(&table.sin));
        let all = [0..batch, 0..seq, 0..heads];
        let part = |from: usize, to: usize| {
            values.clone().slice([all[0].clone(), all[1].clone(), all[2].clone(), from..to])
        };
        let mut parts = match table.pairs {
            RotaryPairs::HalfSplit => {
                let (cos, sin) = (cos.reshape([1, seq, 1, pairs]), sin.reshape([1, seq, 1, pairs]));
                let (first, second) = (part(0, pairs), part(pairs, 2 * pairs));
                vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin]
            }
            RotaryPairs::Adjacent => {
                let (cos, sin) = (cos.reshape([1, seq, 1, pairs, 1]), sin.reshape([1, seq, 1, pairs, 1]));
                let turning = part(0, 2 * pairs).reshape([batch, seq, heads, pairs, 2]);
                let side = |index: usize| turning.clone().slice_dim(4, index..index + 1);
                let (first, second) = (side(0), side(1));
                let turned = vec![
                    first.clone() * cos.clone() - second.clone() * sin.clone(),
                    second * cos + first * sin,
                ];
                vec![Tensor::cat(turned, 4).reshape([batch, seq, heads, 2 * pairs])]
            }
        };
        if 2 * pairs < width {
            parts.push(part(2 * pairs, width));
        }
        done.push(Tensor::cat(parts, 3).reshape([batch * seq, rotated]));
    }
    let turned = Tensor::cat(done, 0);
    if rest == 0 { turned } else { Tensor::cat(vec![turned, x.slice([0..rows, rotated..total])], 1) }
}

pub(super) fn attend(
    qkv: Tensor<2>,
    heads: Heads,
    rule: &ScoreRule,
    groups: &[Group],
    numerics: Numerics,
) -> Attended {
    let Heads { query, key, width } = heads;
    let [_, total] = qkv.dims();
    let has_values = total == (query + 2 * key) * width;
    let repeat = query / key;
    let device = qkv.device();
    let slopes = rule.slopes.clone().unwrap_or_else(|| vec![0.0; query]);
    let slopes = Tensor::<1>::from_data(TensorData::new(slopes, [query]), &device);
    let ScoreRule { scale, softcap, window, .. } = *rule;
    let rule = RowRule { scale, softcap, window, sloped: rule.slopes.is_some() };
    let mut patterns = Vec::with_capacity(groups.len());
    let mut mixed = Vec::with_capacity(groups.len());
    for group in groups {
        let (batch, seq) = (group.batch(), group.seq);
        // [batch, heads, seq, width]
        let part = |first: usize, count: usize| {
            qkv.clone()
                .slice([group.rows(), first * width..(first + count) * width])
                .reshape([batch, seq, count, width])
                .swap_dims(1, 2)
        };
        // Query heads that share a key head are stacked along the sequence: [batch, key, repeat * seq, width].
        let q = part(0, query).reshape([batch, key, repeat * seq, width]);
        let products = product(q, part(query, key).swap_dims(2, 3), numerics);
        let products = products.reshape([batch, query, seq, seq]);
        let pattern = device::masked_softmax(products, slopes.clone(), rule);
        if has_values {
            let weights = pattern.clone().reshape([batch, key, repeat * seq, seq]);
            let out = product(weights, part(query + key, key), numerics).reshape([batch, query, seq, width]);
            mixed.push(out.swap_dims(1, 2).reshape([batch * seq, query * width]));
        }
        patterns.push(pattern);
    }
    Attended { patterns, mixed: has_values.then(|| Tensor::cat(mixed, 0)) }
}
