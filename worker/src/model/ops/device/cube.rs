//! The operations as CubeCL kernels.

use burn::{
    backend::{
        cubecl::dtype_to_storage_type,
        tensor::{FloatTensor, IntTensor},
    },
    cubecl::{self as cubecl, calculate_cube_count_elemwise, prelude::*},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use common::capture::MatmulPrecision;

use super::{PatternOps, RowRule, product};

/// Threads that share a row of scores; a power of two.
const UNITS: usize = 128;

/// A row of products to a row of the pattern: one cube a row.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn masked_softmax_kernel(
    products: &[f32],
    slopes: &[f32],
    pattern: &mut [f32],
    rows: usize,
    heads: usize,
    seq: usize,
    scale: f32,
    cap: f32,
    window: usize,
    #[comptime] capped: bool,
    #[comptime] windowed: bool,
    #[comptime] sloped: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let query = row % seq;
    let start = row * seq;
    let mut slope = f32::new(0.0);
    if sloped {
        slope = slopes[(row / seq) % heads];
    }
    let mut first = 0usize;
    if windowed {
        if query >= window {
            first = query + 1 - window;
        }
    }

    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut top = f32::min_value();
    let mut key = first + unit;
    while key <= query {
        let mut score = products[start + key] * scale;
        if capped {
            score = (score / cap).tanh() * cap;
        }
        if sloped {
            score -= slope * f32::cast_from(query - key);
        }
        pattern[start + key] = score;
        top = max(top, score);
        key += UNITS;
    }
    shared[unit] = top;
    sync_cube();
    let mut half = UNITS / 2;
    while half > 0 {
        if unit < half {
            shared[unit] = max(shared[unit], shared[unit + half]);
        }
        sync_cube();
        half /= 2;
    }
    let top = shared[0];
    // Everybody has read it before it is written again.
    sync_cube();

    let mut sum = f32::new(0.0);
    let mut key = first + unit;
    while key <= query {
        let power = (pattern[start + key] - top).exp();
        pattern[start + key] = power;
        sum += power;
        key += UNITS;
    }
    shared[unit] = sum;
    sync_cube();
    let mut half = UNITS / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = shared[0];

    // Each unit divides what it wrote itself.
    let mut key = first + unit;
    while key <= query {
        pattern[start + key] /= sum;
        key += UNITS;
    }
    let mut key = unit;
    while key < seq {
        if key < first || key > query {
            pattern[start + key] = f32::new(0.0);
        }
        key += UNITS;
    }
}

/// One thread a value of the padded patterns.
#[cube(launch_unchecked, address_type = "dynamic")]
fn causal_halves_kernel<I: Int>(
    pattern: &[f32],
    places: &[I],
    halves: &mut [f32],
    values: usize,
    heads: usize,
    seq: usize,
    #[define(I)] _places: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at >= values {
        terminate!();
    }
    let key = at % seq;
    let query = (at / seq) % seq;
    let matrix = at / seq / seq;
    let prompt = matrix / heads;
    let n = usize::cast_from(places[2 * prompt]);
    if key <= query && query < n {
        let start = usize::cast_from(places[2 * prompt + 1]);
        let before = (matrix % heads) * (n * (n + 1) / 2) + query * (query + 1) / 2;
        halves[start + before + key] = pattern[at];
    }
}

/// Width of positions in a buffer of so many values.
fn address_type(values: usize) -> AddressType {
    if values < u32::MAX as usize { AddressType::U32 } else { AddressType::U64 }
}

fn empty(like: &CubeTensor, shape: Shape) -> CubeTensor {
    let buffer = like.client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, buffer, DType::F32)
}

impl PatternOps for CubeBackend {
    fn product(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        precision: MatmulPrecision,
    ) -> FloatTensor<Self> {
        product::launch(lhs, rhs, precision)
    }

    fn masked_softmax(
        products: FloatTensor<Self>,
        slopes: FloatTensor<Self>,
        rule: RowRule,
    ) -> FloatTensor<Self> {
        let products = into_contiguous(products);
        let shape = products.meta.shape().clone();
        let (heads, seq) = (shape[1], shape[3]);
        let rows = shape[0] * heads * seq;
        let client = products.client.clone();
        let pattern = empty(&products, shape);
        let dim = CubeDim::new_1d(UNITS as u32);
        // SAFETY: rows beyond `rows` end at once, and a row's keys stay below `seq`.
        unsafe {
            masked_softmax_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                dim,
                address_type(rows * seq),
                products.into_buffer_arg(),
                slopes.into_buffer_arg(),
                pattern.clone().into_buffer_arg(),
                rows,
                heads,
                seq,
                rule.scale,
                rule.softcap.unwrap_or(1.0),
                rule.window.unwrap_or(0),
                rule.softcap.is_some(),
                rule.window.is_some(),
                rule.sloped,
            );
        }
        pattern
    }

    fn causal_halves(pattern: FloatTensor<Self>, places: IntTensor<Self>, total: usize) -> FloatTensor<Self> {
        let pattern = into_contiguous(pattern);
        let shape = pattern.meta.shape().clone();
        let (heads, seq, values) = (shape[1], shape[3], shape.num_elements());
        let client = pattern.client.clone();
        let halves = empty(&pattern, Shape::new([total]));
        let dim = CubeDim::new(&client, values);
        let dtype = dtype_to_storage_type(places.dtype);
        // SAFETY: threads beyond `values` end at once; `places` puts every prompt's values below `total`.
        unsafe {
            causal_halves_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, values, dim),
                dim,
                address_type(values),
                pattern.into_buffer_arg(),
                places.into_buffer_arg(),
                halves.clone().into_buffer_arg(),
                values,
                heads,
                seq,
                dtype,
            );
        }
        halves
    }
}
