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
    /// `[total]`. `places` is `[batch, 2]`: a prompt's tokens, and where its values begin.
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
pub(in crate::model) fn causal_halves(pattern: Tensor<4>, places: Tensor<2, Int>, total: usize) -> Tensor<1> {
    let (pattern, places) = (pattern.into_dispatch(), places.into_dispatch());
    Tensor::from_dispatch(<Dispatch as PatternOps>::causal_halves(pattern, places, total))
}
