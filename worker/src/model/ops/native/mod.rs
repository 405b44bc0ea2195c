//! The operations as kernels of our own on burn's CPU backend, as a backend extension.
//!
//! flex's tensors go in and out; what happens between is plain slices on rayon's threads. Tested against
//! [`super::composed`].

mod attention;
mod gemm;
mod isa;
mod kernel;
mod math;
mod norm;
mod rotate;

use burn::{
    backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::{Device, Tensor, TensorData},
};
use burn_flex::FlexTensor;
use common::model::spec::{Activation, RotaryPairs};
use rayon::prelude::*;

use self::{
    attention::{Head, Scratch},
    gemm::{Finish, Out, gemm, pack_panels},
    isa::Isa,
    kernel::PANEL,
    math::gate_row,
    norm::{NormShape, norm_row},
    rotate::rotate_heads,
};
use super::{Attended, Heads, ScoreRule};
use crate::model::{
    batch::Group,
    rotary::RotaryTable,
    weights::{Linear, NormWeights},
};

/// The operations that flex does our way. The macro takes no optional tensors: an empty one stands for none.
#[backend_extension(Flex)]
pub(super) trait NativeOps: Backend {
    /// `act(onto + x W + b)`; `weight` is packed, `d_out` its width unpacked.
    fn native_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        onto: FloatTensor<Self>,
        d_out: usize,
        activation: Option<Activation>,
    ) -> FloatTensor<Self>;

    /// Row-wise normalization.
    fn native_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: NormShape,
    ) -> FloatTensor<Self>;

    /// `act(x[.., ..d]) * x[.., d..]`.
    fn native_gate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// Rotates the leading `heads` heads of every row by its position; with each group, its first angles' row.
    fn native_rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairs: RotaryPairs,
        heads: usize,
        width: usize,
        groups: Vec<(Group, usize)>,
    ) -> FloatTensor<Self>;

    /// Patterns `[batch, head, query, key]` of every group, then the values mixed, where there are any.
    fn native_attend(
        qkv: FloatTensor<Self>,
        heads: Heads,
        rule: ScoreRule,
        groups: Vec<Group>,
    ) -> Vec<FloatTensor<Self>>;
}

impl NativeOps for Flex {
    fn native_linear(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        onto: FlexTensor,
        d_out: usize,
        activation: Option<Activation>,
    ) -> FlexTensor {
        let x = x.to_contiguous();
        let [rows, d_in] = dims(&x);
        let finish = Finish { bias: Some(values(&bias)).filter(|bias| !bias.is_empty()), activation };
        let onto = Some(into_values(onto)).filter(|onto| !onto.is_empty());
        let out = gemm(Isa::best(), values(&x), values(&weight), [rows, d_in, d_out], onto, finish);
        tensor(out, [rows, d_out])
    }

    fn native_norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, shape: NormShape) -> FlexTensor {
        let x = x.to_contiguous();
        let [rows, width] = dims(&x);
        let (weight, bias) = (values(&weight), Some(values(&bias)).filter(|bias| !bias.is_empty()));
        let mut out = vec![0.0; rows * width];
        out.par_chunks_mut(width)
            .zip(values(&x).par_chunks(width))
            .with_min_len(8)
            .for_each(|(out, x)| norm_row(Isa::best(), x, weight, bias, shape, out));
        tensor(out, [rows, width])
    }

    fn native_gate(x: FlexTensor, activation: Activation) -> FlexTensor {
        let x = x.to_contiguous();
        let [rows, both] = dims(&x);
        let mut out = vec![0.0; rows * both / 2];
        out.par_chunks_mut(both / 2)
            .zip(values(&x).par_chunks(both))
            .with_min_len(4)
            .for_each(|(out, x)| gate_row(Isa::best(), x, out, activation));
        tensor(out, [rows, both / 2])
    }

    fn native_rotate(
        x: FlexTensor,
        cos: FlexTensor,
        sin: FlexTensor,
        pairs: RotaryPairs,
        heads: usize,
        width: usize,
        groups: Vec<(Group, usize)>,
    ) -> FlexTensor {
        let [rows, total] = dims(&x);
        let [_, angles] = dims(&cos);
        let (cos, sin) = (values(&cos), values(&sin));
        let mut turned = into_values(x);
        for (group, start) in &groups {
            let range = group.rows().start * total..group.rows().end * total;
            turned[range].par_chunks_mut(total).enumerate().with_min_len(8).for_each(|(row, values)| {
                let position = start + row % group.seq;
                let angles = position * angles..(position + 1) * angles;
                let heads = &mut values[..heads * width];
                rotate_heads(Isa::best(), heads, width, &cos[angles.clone()], &sin[angles], pairs);
            });
        }
        tensor(turned, [rows, total])
    }

    fn native_attend(qkv: FlexTensor, heads: Heads, rule: ScoreRule, groups: Vec<Group>) -> Vec<FlexTensor> {
        let isa = Isa::best();
        let qkv = qkv.to_contiguous();
        let [rows, total] = dims(&qkv);
        let qkv = values(&qkv);
        let has_values = total == (heads.query + 2 * heads.key) * heads.width;
        let out_row = heads.query * heads.width;
        let mut mixed = vec![0.0; if has_values { rows * out_row } else { 0 }];
        let out = Out(mixed.as_mut_ptr());
        let mut patterns: Vec<Vec<f32>> = groups
            .iter()
            .map(|group| vec![0.0; group.batch() * heads.query * group.seq * group.seq])
            .collect();
        // A task a head of a prompt.
        let tasks: Vec<(usize, usize, usize, &mut [f32])> = groups
            .iter()
            .zip(&mut patterns)
            .flat_map(|(group, patterns)| {
                patterns.chunks_exact_mut(group.seq * group.seq).enumerate().map(|(at, pattern)| {
                    (group.start + at / heads.query * group.seq, group.seq, at % heads.query, pattern)
                })
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, task| {
            let (start, seq, index, pattern) = task;
            let rows = &qkv[start * total..(start + seq) * total];
            let head = Head { rows, total, heads, index };
            head.pattern(isa, &rule, scratch, pattern);
            if has_values {
                // SAFETY: `mixed` has every row of every group; each task has its own rows and head.
                unsafe {
                    let to = out.at(start * out_row + index * heads.width);
                    head.mix(isa, &rule, scratch, pattern, to, out_row);
                }
            }
        });
        let shape = |group: &Group| [group.batch(), heads.query, group.seq, group.seq];
        let mut all: Vec<FlexTensor> =
            patterns.into_iter().zip(&groups).map(|(values, group)| tensor(values, shape(group))).collect();
        if has_values {
            all.push(tensor(mixed, [rows, out_row]));
        }
        all
    }
}

/// The shape of a matrix.
fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

/// A contiguous tensor's values.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

/// A tensor's values, without a copy where nobody else holds it.
fn into_values(tensor: FlexTensor) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("an f32 tensor")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// `[d_in, d_out]` packed: `[panels, d_in * PANEL]`.
pub(super) fn pack(weight: &[f32], [d_in, d_out]: [usize; 2]) -> (Vec<f32>, [usize; 2]) {
    (pack_panels(weight, d_in, d_out), [d_out.div_ceil(PANEL), d_in * PANEL])
}

/// What stands for no tensor.
fn or_empty<const D: usize>(tensor: Option<Tensor<D>>) -> Tensor<D> {
    tensor.unwrap_or_else(|| Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0; D]), &Device::flex()))
}

pub(super) fn linear(
    x: Tensor<2>,
    linear: &Linear,
    activation: Option<Activation>,
    onto: Option<Tensor<2>>,
) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as NativeOps>::native_linear(
        x.into_dispatch(),
        linear.weight.clone().into_dispatch(),
        or_empty(linear.bias.clone()).into_dispatch(),
        or_empty(onto).into_dispatch(),
        linear.d_out,
        activation,
    ))
}

pub(super) fn norm(x: Tensor<2>, norm: &NormWeights) -> Tensor<2> {
    let shape = NormShape { kind: norm.norm.kind, eps: norm.norm.eps as f32, width: norm.width };
    Tensor::from_dispatch(<Dispatch as NativeOps>::native_norm(
        x.into_dispatch(),
        norm.weight.clone().into_dispatch(),
        or_empty(norm.bias.clone()).into_dispatch(),
        shape,
    ))
}

pub(super) fn gate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as NativeOps>::native_gate(x.into_dispatch(), activation))
}

pub(super) fn rotate(
    x: Tensor<2>,
    heads: usize,
    width: usize,
    table: &RotaryTable,
    groups: &[Group],
) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as NativeOps>::native_rotate(
        x.into_dispatch(),
        table.cos.clone().into_dispatch(),
        table.sin.clone().into_dispatch(),
        table.pairs,
        heads,
        width,
        groups.iter().map(|group| (group.clone(), table.start(group))).collect(),
    ))
}

pub(super) fn attend(qkv: Tensor<2>, heads: Heads, rule: &ScoreRule, groups: &[Group]) -> Attended {
    let tensors =
        <Dispatch as NativeOps>::native_attend(qkv.into_dispatch(), heads, rule.clone(), groups.to_vec());
    let mut tensors = tensors.into_iter();
    let patterns = tensors.by_ref().take(groups.len()).map(Tensor::from_dispatch).collect();
    Attended { patterns, mixed: tensors.next().map(Tensor::from_dispatch) }
}
