//! Rotary positions, in place.

use common::model::spec::RotaryPairs;

use super::{isa::for_each_isa, math::fma};

for_each_isa! {
    /// Rotates the head that starts `heads`' every `width` values by angles of one position.
    fn rotate_heads(heads: &mut [f32], width: usize, cos: &[f32], sin: &[f32], pairs: RotaryPairs) => body
}

#[inline(always)]
fn body<const FUSED: bool>(heads: &mut [f32], width: usize, cos: &[f32], sin: &[f32], pairs: RotaryPairs) {
    for head in heads.chunks_exact_mut(width) {
        match pairs {
            RotaryPairs::HalfSplit => {
                let (first, second) = head.split_at_mut(cos.len());
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = turn::<FUSED>(*a, *b, *cos, *sin);
                }
            }
            RotaryPairs::Adjacent => {
                for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    (pair[0], pair[1]) = turn::<FUSED>(pair[0], pair[1], *cos, *sin);
                }
            }
        }
    }
}

#[inline(always)]
fn turn<const FUSED: bool>(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (fma::<FUSED>(a, cos, -(b * sin)), fma::<FUSED>(b, cos, a * sin))
}
