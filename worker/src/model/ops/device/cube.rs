//! The operations as CubeCL kernels.

#[cfg(all(test, feature = "cuda"))]
mod compiled;

use burn::{
    backend::{
        cubecl::dtype_to_storage_type,
        tensor::{FloatTensor, IntTensor},
    },
    cubecl::{self as cubecl, calculate_cube_count_elemwise, prelude::*},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, CubeDevice, kernel::into_contiguous, tensor::CubeTensor};
use common::capture::MatmulPrecision;

use super::{PatternOps, RowRule, product};

/// Threads that share a row of scores; a power of two.
const UNITS: usize = 128;

/// The largest of what the units of a cube have put into `shared`, which may be written again afterwards.
#[cube]
fn largest(shared: &mut Shared<[f32]>, unit: usize) -> f32 {
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] = max(shared[unit], other);
        }
        sync_cube();
        half /= 2;
    }
    let top = shared[0];
    sync_cube();
    top
}

/// The sum of what the units of a cube have put into `shared`, which may be written again afterwards.
#[cube]
fn sum(shared: &mut Shared<[f32]>, unit: usize) -> f32 {
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let total = shared[0];
    sync_cube();
    total
}

/// A row of products to a row of the pattern: one cube a row.
#[cube(launch_unchecked, address_type = "dynamic")]
// The outer condition is decided when the kernel is compiled, the inner one when it runs.
#[allow(clippy::too_many_arguments, clippy::collapsible_if)]
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
    let units = CUBE_DIM as usize;
    let query = row % seq;
    let start = row * seq;
    // Keys before this one lie outside the window.
    let mut first = 0usize;
    if windowed {
        if query >= window {
            first = query + 1 - window;
        }
    }

    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    let mut own_top = f32::min_value();
    let mut scored = first + unit;
    while scored <= query {
        let mut score = products[start + scored] * scale;
        if capped {
            score = (score / cap).tanh() * cap;
        }
        if sloped {
            score -= slopes[(row / seq) % heads] * f32::cast_from(query - scored);
        }
        pattern[start + scored] = score;
        own_top = max(own_top, score);
        scored += units;
    }
    shared[unit] = own_top;
    let top = largest(&mut shared, unit);

    let mut own_sum = f32::new(0.0);
    let mut raised = first + unit;
    while raised <= query {
        let power = (pattern[start + raised] - top).exp();
        pattern[start + raised] = power;
        own_sum += power;
        raised += units;
    }
    shared[unit] = own_sum;
    let total = sum(&mut shared, unit);

    // Each unit divides what it wrote itself.
    let mut divided = first + unit;
    while divided <= query {
        let power = pattern[start + divided];
        pattern[start + divided] = power / total;
        divided += units;
    }
    let mut hidden = unit;
    while hidden < seq {
        if hidden < first || hidden > query {
            pattern[start + hidden] = f32::new(0.0);
        }
        hidden += units;
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
    #[define(I)] _dtype: ElemType,
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

/// The values of `tensor` one after the other, as kernels that take slices read them: CUDA's runtime pads the rows of
/// what is uploaded to it, and a slice has no strides to say so.
fn packed(tensor: CubeTensor) -> BufferArg {
    into_contiguous(tensor).into_buffer_arg()
}

fn empty(client: &Client, device: CubeDevice, shape: Shape) -> CubeTensor {
    let buffer = client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(client.clone(), device, shape, buffer, DType::F32)
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
        let shape = products.meta.shape().clone();
        let (heads, seq) = (shape[1], shape[3]);
        let rows = shape[0] * heads * seq;
        let client = products.client.clone();
        let pattern = empty(&client, products.device.clone(), shape);
        let dim = CubeDim::new_1d(UNITS as u32);
        // SAFETY: rows beyond `rows` end at once, and a row's keys stay below `seq`.
        unsafe {
            masked_softmax_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, rows * UNITS, dim),
                dim,
                address_type(rows * seq),
                packed(products),
                packed(slopes),
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
        let shape = pattern.meta.shape().clone();
        let (heads, seq, values) = (shape[1], shape[3], shape.num_elements());
        let device = pattern.device.clone();
        let client = pattern.client.clone();
        let dim = CubeDim::new(&client, values);
        let dtype = dtype_to_storage_type(places.dtype);
        let (pattern, places) = (packed(pattern), packed(places));
        // On CUDA the halves are copied by another stream. What that waits for is what this stream had done when they
        // were allocated, not when they were written; and it does not wait again for what it has waited for. So a read
        // of other halves between the allocation and the launch would let the read of these run ahead of the kernel.
        // As one task of the device's thread nothing comes between the two. It also gives that thread what was launched
        // before: it begins only once its queue is full or somebody waits, and the caller may be about to wait long.
        let on = client.clone();
        let launched = client.exclusive(move || {
            let halves = empty(&on, device, Shape::new([total]));
            // SAFETY: threads beyond `values` end at once; `places` puts every prompt's values below `total`.
            unsafe {
                causal_halves_kernel::launch_unchecked(
                    &on,
                    calculate_cube_count_elemwise(&on, values, dim),
                    dim,
                    address_type(values),
                    pattern,
                    places,
                    halves.clone().into_buffer_arg(),
                    values,
                    heads,
                    seq,
                    dtype,
                );
            }
            halves
        });
        launched.unwrap_or_else(|error| panic!("the device's thread broke: {error}"))
    }
}
