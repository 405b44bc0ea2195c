//! Kernels of our own for devices that burn reaches through CubeCL, behind one burn backend extension.
//!
//! burn's own operations would do for everything but three things: a float32 product that no tensor core rounds, a
//! masked softmax that does not pass over the scores eight times, and the causal half without the rest. [`cube`] has
//! these as CubeCL kernels; [`flex`] says the same in plain loops on the CPU, so that all of the way a batch takes on
//! a GPU can be run and compared without one.

#[cfg(feature = "gpu")]
mod cube;
mod flex;
#[cfg(feature = "gpu")]
mod product;

use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{Int, Tensor},
};
use common::capture::MatmulPrecision;

/// From raw products of queries and keys to a pattern, but for the slopes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowRule {
    /// What a product is multiplied by.
    pub scale: f32,
    /// `cap * tanh(score / cap)`, after scaling.
    pub softcap: Option<f32>,
    /// Keys up to so many positions back are seen, the query's own included.
    pub window: Option<usize>,
    /// Whether `slope * (key - query)` is added.
    pub sloped: bool,
}

/// The operations.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"))]
pub trait PatternOps: Backend {
    /// `lhs rhs` in float32, from float32 or half precision.
    fn product(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> FloatTensor<Self>;

    /// The softmax over the keys each query may see: `[batch, head, query, key]` of raw products to the same of
    /// patterns, exactly zero where masked. `slopes` has one a head.
    fn masked_softmax(
        products: FloatTensor<Self>,
        slopes: FloatTensor<Self>,
        rule: RowRule,
    ) -> FloatTensor<Self>;

    /// The causal halves of `[batch, head, query, key]`, each prompt's without its padding, one after the other:
    /// `[total]`. `places` has two numbers a prompt: its tokens, and where its values begin.
    fn causal_halves(pattern: FloatTensor<Self>, places: IntTensor<Self>, total: usize) -> FloatTensor<Self>;
}

/// See [`PatternOps::product`].
pub(in crate::model) fn product<const D: usize>(
    lhs: Tensor<D>,
    rhs: Tensor<D>,
    precision: MatmulPrecision,
) -> Tensor<D> {
    let (lhs, rhs) = (lhs.into_dispatch(), rhs.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PatternOps>::product(lhs, rhs, precision))
}

/// See [`PatternOps::masked_softmax`].
pub(in crate::model) fn masked_softmax(products: Tensor<4>, slopes: Tensor<1>, rule: RowRule) -> Tensor<4> {
    let (products, slopes) = (products.into_dispatch(), slopes.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PatternOps>::masked_softmax(products, slopes, rule))
}

/// See [`PatternOps::causal_halves`].
pub(in crate::model) fn causal_halves(pattern: Tensor<4>, places: Tensor<1, Int>, total: usize) -> Tensor<1> {
    let (pattern, places) = (pattern.into_dispatch(), places.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PatternOps>::causal_halves(pattern, places, total))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, TensorData};

    use super::*;
    use crate::model::tests::device;

    /// Values between the rows of what is not packed: as many bytes as any device wants a view to begin at.
    const APART: usize = 128;

    /// `values` with each row's end a good deal before the next one's beginning, as CUDA's runtime lays out tensors.
    fn apart<const D: usize>(values: &TensorData, device: &Device) -> Tensor<D> {
        let mut dims: [usize; D] = values.shape().dims();
        let width = dims[D - 1];
        dims[D - 1] = width + APART;
        let rows = values.as_slice::<f32>().expect("floats").chunks_exact(width);
        let spread = rows.flat_map(|row| row.iter().copied().chain([f32::NAN; APART])).collect();
        Tensor::<D>::from_data(TensorData::new::<f32, _>(spread, dims), device).narrow(D - 1, 0, width)
    }

    fn packed<const D: usize>(values: &TensorData, device: &Device) -> Tensor<D> {
        Tensor::from_data(values.clone(), device)
    }

    /// Numbers without a pattern, in -1 to 1.
    fn numbers<const D: usize>(dims: [usize; D], seed: u64) -> TensorData {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
        };
        TensorData::new((0..dims.iter().product()).map(|_| next()).collect::<Vec<f32>>(), dims)
    }

    fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().expect("floats")
    }

    const BATCH: usize = 3;
    const HEADS: usize = 2;
    const SEQ: usize = 5;
    /// Tokens of each prompt.
    const TOKENS: [usize; BATCH] = [5, 3, 1];

    /// What the halves of `pattern`, `[batch, head, query, key]`, are.
    fn halves(pattern: &[f32]) -> Vec<f32> {
        let mut halves = Vec::new();
        for (prompt, n) in TOKENS.into_iter().enumerate() {
            for head in 0..HEADS {
                for query in 0..n {
                    let row = ((prompt * HEADS + head) * SEQ + query) * SEQ;
                    halves.extend_from_slice(&pattern[row..=row + query]);
                }
            }
        }
        halves
    }

    /// CUDA's runtime pads the rows of tensors, and no other does: only this test says whether a kernel minds.
    #[test]
    fn rows_that_lie_apart_are_read_as_packed_ones() {
        let device = device();
        let pattern = numbers([BATCH, HEADS, SEQ, SEQ], 1);
        let expected = halves(pattern.as_slice().expect("floats"));
        let mut total = 0;
        let mut table = Vec::new();
        for n in TOKENS {
            table.extend([n as i64, total as i64]);
            total += HEADS * n * (n + 1) / 2;
        }
        let spread: Vec<i64> =
            table.iter().flat_map(|&number| [number].into_iter().chain([7; APART])).collect();
        let spread = TensorData::new(spread, [2 * BATCH, 1 + APART]);
        let spread = Tensor::<2, Int>::from_data(spread, &device).narrow(1, 0, 1).reshape([2 * BATCH]);
        let table = Tensor::<1, Int>::from_data(TensorData::new(table, [2 * BATCH]), &device);
        for table in [table, spread] {
            for pattern in [packed(&pattern, &device), apart(&pattern, &device)] {
                assert_eq!(floats(causal_halves(pattern, table.clone(), total)), expected);
            }
        }

        let slopes = Tensor::<1>::from_data([0.5, 0.25], &device);
        let rule = RowRule { scale: 2.0, softcap: Some(3.0), window: Some(4), sloped: true };
        let softmax = |products| floats(masked_softmax(products, slopes.clone(), rule));
        assert_eq!(softmax(apart(&pattern, &device)), softmax(packed(&pattern, &device)));

        let (lhs, rhs) = (numbers([2, SEQ, 8], 2), numbers([2, 8, SEQ], 3));
        let product = |lhs: Tensor<3>, rhs: Tensor<3>| {
            let product = product(lhs, rhs, MatmulPrecision::Float32);
            assert_eq!(product.dtype(), DType::F32);
            floats(product)
        };
        let expected = product(packed(&lhs, &device), packed(&rhs, &device));
        let got = product(apart(&lhs, &device), apart(&rhs, &device));
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }
}
