//! The kernels as CUDA C++, and what NVRTC says of it where there is one: a card is not needed for that.

use std::sync::Arc;

use burn::cubecl::{
    Compiler, CubeKernel,
    ir::{
        DeviceIdentity, HardwareProperties, IntKind, MemoryDeviceProperties, VectorSize, features::Features,
        settings::ExecutionMode,
    },
    prelude::*,
    profile::TimingMethod,
};
use cubecl_cuda::{CudaCompilationOptions, CudaCompiler, install::cuda_path};

use super::{UNITS, causal_halves_kernel::CausalHalvesKernel, masked_softmax_kernel::MaskedSoftmaxKernel};
use crate::model::cuda::{compile, said};

/// The properties a kernel may ask for; ours ask for none.
fn properties() -> Arc<DeviceProperties> {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 32,
        max_shared_memory_size: 48 << 10,
        max_cube_count: (u32::MAX, u16::MAX.into(), u16::MAX.into()),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity { name: "none".to_owned(), fingerprint: "none".to_owned(), physical: None };
    let memory = MemoryDeviceProperties::new(u64::MAX, 512);
    Arc::new(DeviceProperties::new(Features::default(), memory, hardware, TimingMethod::Device, identity))
}

fn source(kernel: &impl CubeKernel) -> String {
    let mut options = CudaCompilationOptions::default();
    options.cpp.supports_features.fast_math = true;
    options.cpp.supports_features.grid_constants = true;
    let compiled = CudaCompiler::default().compile(kernel.define(), &options);
    compiled.unwrap_or_else(|error| panic!("{error}")).to_string()
}

/// Every version of every kernel, by name.
fn sources() -> Vec<(String, String)> {
    let buffer = || BufferCompilationArg { inplace: None };
    let mut sources = Vec::new();
    for address in [AddressType::U32, AddressType::U64] {
        let settings =
            || KernelSettings::new(*CubeDim::new_1d(UNITS as u32), ExecutionMode::Unchecked, address);
        for rule in 0..8 {
            let [capped, windowed, sloped] = [1, 2, 4].map(|flag| rule & flag != 0);
            let kernel = MaskedSoftmaxKernel::new(
                settings(),
                properties(),
                Arc::default(),
                buffer(),
                buffer(),
                buffer(),
                (),
                (),
                (),
                (),
                (),
                (),
                capped,
                windowed,
                sloped,
            );
            let name = format!("softmax, {address:?}: capped {capped}, windowed {windowed}, sloped {sloped}");
            sources.push((name, source(&kernel)));
        }
        for kind in [IntKind::I32, IntKind::I64] {
            let kernel = CausalHalvesKernel::new(
                settings(),
                properties(),
                Arc::default(),
                buffer(),
                buffer(),
                buffer(),
                (),
                (),
                (),
                ElemType::Int(kind),
            );
            sources.push((format!("halves, {address:?}, {kind:?}"), source(&kernel)));
        }
    }
    sources
}

#[test]
fn kernels_compile_and_compute_nothing_in_double_precision() {
    let sources = sources();
    // SAFETY: it only tries to load a library by the names it goes by.
    let nvrtc = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    let Some(include) = cuda_path().map(|path| path.join("include")).filter(|_| nvrtc) else {
        println!("not compiled: there is no NVRTC, or CUDA_PATH is not set");
        return;
    };
    for (name, source) in sources {
        for architecture in ["sm_80", "sm_90a"] {
            let compiled = compile(&source, architecture, &include);
            let ptx =
                compiled.unwrap_or_else(|error| panic!("{name}, {architecture}: {}\n{source}", said(&error)));
            // A GPU computes those at a thirtieth of the rate, or less.
            assert!(!ptx.to_src().contains(".f64"), "{name}, {architecture}: double precision\n{source}");
        }
    }
}
