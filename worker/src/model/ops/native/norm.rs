//! LayerNorm and RMSNorm, row by row.

use common::model::spec::NormKind;

use super::isa::for_each_isa;

/// A norm's numbers, as the kernel takes them.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct NormShape {
    /// Which formula.
    pub(in super::super) kind: NormKind,
    /// Added to variance or mean square.
    pub(in super::super) eps: f32,
    /// How many values are normalized as one.
    pub(in super::super) width: usize,
}

for_each_isa! {
    /// Normalizes one row from `x` to `out`, in stretches; weight and bias are as wide as the row.
    fn norm_row(x: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: NormShape, out: &mut [f32]) => body
}

#[inline(always)]
fn body<const FUSED: bool>(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    shape: NormShape,
    out: &mut [f32],
) {
    for (stretch, x) in x.chunks_exact(shape.width).enumerate() {
        let range = stretch * shape.width..(stretch + 1) * shape.width;
        let (weight, out) = (&weight[range.clone()], &mut out[range.clone()]);
        let count = shape.width as f32;
        let mean = match shape.kind {
            NormKind::LayerNorm => sum::<FUSED>(x, |value| value) / count,
            NormKind::Rms | NormKind::RmsPlusOne => 0.0,
        };
        let variance = sum::<FUSED>(x, |value| (value - mean) * (value - mean)) / count;
        let scale = 1.0 / (variance + shape.eps).sqrt();
        match bias {
            None => {
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = (x - mean) * scale * weight;
                }
            }
            Some(bias) => {
                for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(&bias[range]) {
                    *out = super::math::fma::<FUSED>((x - mean) * scale, *weight, *bias);
                }
            }
        }
    }
}

/// A sum in 32 parts, which the compiler can keep in registers and which rounds less than one long sum.
#[inline(always)]
pub(super) fn sum<const FUSED: bool>(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    const PARTS: usize = 32;
    let mut parts = [0f32; PARTS];
    let (chunks, rest) = values.as_chunks::<PARTS>();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part += of(*value);
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part += of(*value);
    }
    let mut width = PARTS / 2;
    while width > 0 {
        for i in 0..width {
            parts[i] += parts[i + width];
        }
        width /= 2;
    }
    parts[0]
}
