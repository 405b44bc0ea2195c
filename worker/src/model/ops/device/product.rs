//! Matrix products on a GPU, as exact as they are asked for.
//!
//! burn's own choice of a kernel takes tensor cores for float32 where it finds them faster, and those round to TF32. For
//! exact products the choice is among cubek's kernels that use none, and is burn's in every other respect: measured
//! once for each class of shapes, and kept.

use burn::{
    backend::{TensorMetadata, calculate_matmul_output, cubecl::dtype_to_storage_type},
    cubecl::tune::{LocalTuner, Tunable, TunableSet, TuneGroup, local_tuner},
    tensor::{DType, Shape},
};
use burn_cubecl::{
    CubeTuneId,
    kernel::matmul::{MatmulStrategy, matmul},
    ops::numeric::empty_device_contiguous_dtype,
    tensor::CubeTensor,
};
use common::capture::MatmulPrecision;
use cubek_matmul::{
    definition::{MatmulElems, MatmulGlobalElems},
    launch::launch_ref,
    multi_level::{
        Strategy,
        routines::{
            TileSizeSelection,
            batch::{double_unit::DoubleUnitSelectionArgs, simple_unit::SimpleUnitSelectionArgs},
        },
    },
    routine::BlueprintStrategy,
    tune_key::{MatmulAutotuneKey, MatmulGlobalScale},
};
use cubek_std::InputBinding;

type Operands = (CubeTensor, CubeTensor, CubeTensor);

/// `lhs rhs` in float32.
pub(super) fn launch(lhs: CubeTensor, rhs: CubeTensor, precision: MatmulPrecision) -> CubeTensor {
    let shape = calculate_matmul_output(&lhs.shape(), &rhs.shape())
        .unwrap_or_else(|error| panic!("no matrix product: {error:?}"));
    let out = empty(&lhs, shape);
    match (lhs.dtype, precision) {
        (DType::F32, MatmulPrecision::Float32) => exact(lhs, rhs, out),
        // Halves lose nothing on tensor cores, which sum in float32.
        _ => matmul(lhs, rhs, Some(out), MatmulStrategy::default(), DType::F32)
            .unwrap_or_else(|error| panic!("no kernel for a matrix product: {error:?}")),
    }
}

/// Room for a product where `beside` is. Left to itself, CUDA's runtime pads rows to 512 bytes, or to a power of two
/// below: a third more memory for scores of 96 or 192 keys, which the softmax's kernel would copy together again.
/// `model::batch` pads rows enough. Kernels are measured on what they will write to, so on room of the same layout.
fn empty(beside: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape, DType::F32)
}

fn exact(lhs: CubeTensor, rhs: CubeTensor, out: CubeTensor) -> CubeTensor {
    static TUNER: LocalTuner<MatmulAutotuneKey, CubeTuneId> = local_tuner!("lenspool-float32-product");
    let client = lhs.client.clone();
    let id = CubeTuneId::new(&lhs.client, &lhs.device);
    let tunables = TUNER.init(&id, candidates);
    TUNER.execute(&id, &client, tunables, (lhs, rhs, out.clone()));
    out
}

/// Kernels without tensor cores. Where none can be measured, as when memory runs out meanwhile, the first is taken and
/// kept; so the one that does any shape, slowly, comes last.
fn candidates() -> TunableSet<MatmulAutotuneKey, Operands, ()> {
    let units = TuneGroup::<MatmulAutotuneKey>::new("unit", |_| 1);
    let mut set = TunableSet::new(key, |_: &MatmulAutotuneKey, (lhs, rhs, out): &Operands| {
        (lhs.clone(), rhs.clone(), empty(out, out.shape()))
    });
    for tile_size in [TileSizeSelection::MaxTileSize, TileSizeSelection::MinTileSize] {
        let simple = SimpleUnitSelectionArgs { tile_size };
        let double = DoubleUnitSelectionArgs { tile_size };
        for strategy in [
            Strategy::SimpleUnit(BlueprintStrategy::Inferred(simple)),
            Strategy::DoubleUnit(BlueprintStrategy::Inferred(double)),
        ] {
            set = set.with(candidate(strategy).group(&units, |_| 1));
        }
    }
    set.with(candidate(Strategy::Naive).group(&units, |key| match key.analysis.scale_global {
        MatmulGlobalScale::Small => 1,
        // Trying it would take longer than the work.
        _ => 0,
    }))
}

fn candidate(strategy: Strategy) -> Tunable<MatmulAutotuneKey, Operands, ()> {
    Tunable::new(&strategy.to_string(), move |operands: Operands| run(&strategy, operands))
}

fn run(strategy: &Strategy, (lhs, rhs, out): Operands) -> Result<(), String> {
    let elem = |tensor: &CubeTensor| dtype_to_storage_type(tensor.dtype);
    let globals = MatmulGlobalElems { lhs: elem(&lhs), rhs: elem(&rhs), out: elem(&out) };
    let mut elems = MatmulElems::from_globals(&globals);
    let client = out.client.clone();
    let lhs = InputBinding::new(lhs.binding(), globals.lhs);
    let rhs = InputBinding::new(rhs.binding(), globals.rhs);
    launch_ref(&strategy.clone().into(), &client, lhs, rhs, out.binding(), &mut elems)
        .map_err(|error| format!("{error:?}"))
}

fn key((lhs, rhs, out): &Operands) -> MatmulAutotuneKey {
    let elem = |tensor: &CubeTensor| dtype_to_storage_type(tensor.dtype);
    MatmulAutotuneKey::generate(
        &lhs.client,
        lhs.meta.shape(),
        rhs.meta.shape(),
        lhs.meta.strides(),
        rhs.meta.strides(),
        lhs.meta.tiling,
        rhs.meta.tiling,
        elem(lhs),
        elem(rhs),
        elem(out),
        None,
        None,
    )
}
