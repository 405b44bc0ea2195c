//! The operations in plain loops on burn's CPU backend: what the kernels of [`super::cube`] must equal.

use burn::{
    backend::{
        Flex,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{FloatDType, TensorData},
};
use burn_flex::FlexTensor;
use common::capture::MatmulPrecision;
use rayon::prelude::*;

use super::{PatternOps, RowRule};

impl PatternOps for Flex {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, _: MatmulPrecision) -> FloatTensor<Self> {
        // Products of two halves are exact in float32: rounded operands are all that half precision is here.
        Flex::float_matmul(float32(lhs), float32(rhs))
    }

    fn masked_softmax(
        products: FloatTensor<Self>,
        slopes: FloatTensor<Self>,
        rule: RowRule,
    ) -> FloatTensor<Self> {
        let products = float32(products).to_contiguous();
        let shape = products.layout().shape().clone();
        let (heads, seq) = (shape[1], shape[3]);
        let slopes = slopes.to_contiguous();
        let slopes = slopes.storage::<f32>();
        let mut pattern = products.storage::<f32>().to_vec();
        pattern.par_chunks_mut(seq).enumerate().for_each(|(row, values)| {
            let (head, query) = (row / seq % heads, row % seq);
            let first = rule.window.map_or(0, |window| (query + 1).saturating_sub(window));
            let (seen, hidden) = values.split_at_mut(query + 1);
            hidden.fill(0.0);
            let (hidden, seen) = seen.split_at_mut(first);
            hidden.fill(0.0);
            for (key, value) in (first..).zip(seen.iter_mut()) {
                *value *= rule.scale;
                if let Some(cap) = rule.softcap {
                    *value = (*value / cap).tanh() * cap;
                }
                if rule.sloped {
                    *value -= slopes[head] * (query - key) as f32;
                }
            }
            let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            seen.iter_mut().for_each(|value| *value = (*value - top).exp());
            let sum: f32 = seen.iter().sum();
            seen.iter_mut().for_each(|value| *value /= sum);
        });
        FlexTensor::from_data(TensorData::new(pattern, shape))
    }

    fn causal_halves(pattern: FloatTensor<Self>, places: IntTensor<Self>, total: usize) -> FloatTensor<Self> {
        let pattern = pattern.to_contiguous();
        let shape = pattern.layout().shape().clone();
        let (heads, seq) = (shape[1], shape[3]);
        let places: Vec<i64> = places.into_data().iter::<i64>().collect();
        let mut halves = vec![0.0; total];
        for (prompt, matrices) in pattern.storage::<f32>().chunks_exact(heads * seq * seq).enumerate() {
            let (n, start) = (places[2 * prompt] as usize, places[2 * prompt + 1] as usize);
            let mut rest = &mut halves[start..];
            for matrix in matrices.chunks_exact(seq * seq) {
                for (query, row) in matrix.chunks_exact(seq).take(n).enumerate() {
                    let (out, after) = rest.split_at_mut(query + 1);
                    out.copy_from_slice(&row[..=query]);
                    rest = after;
                }
            }
        }
        FlexTensor::from_data(TensorData::new(halves, [total]))
    }
}

fn float32(tensor: FlexTensor) -> FlexTensor {
    Flex::float_cast(tensor, FloatDType::F32)
}
