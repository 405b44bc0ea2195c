//! What CUDA needs at run time, looked for before burn does: burn's runtime panics on threads of its own where a
//! library is missing.

use std::path::PathBuf;

use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
use cubecl_cuda::install::cuda_path;
use cudarc::{driver::CudaContext, nvrtc::compile_ptx};

use super::{
    device::{CudaVersion, DeviceError},
    footprint::Room,
};

/// A header that kernels include; where it is, the others are.
const HEADER: &str = "cuda_fp16.h";

/// Whether device `index` can be used, and what is missing where it cannot.
pub(super) fn check(index: usize) -> Result<(), DeviceError> {
    // SAFETY: both calls only try to load a library by the names it goes by.
    let (driver, nvrtc) =
        unsafe { (cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()) };
    if !driver {
        return Err(DeviceError::NoDriver { index });
    }
    let found = devices();
    if index >= found {
        return Err(DeviceError::NotThere { index, found });
    }
    if !nvrtc {
        return Err(DeviceError::NoCompiler { index });
    }
    check_compiler(index)?;
    let include = cuda_path().map(|path| path.join("include"));
    match include {
        Some(include) if include.join(HEADER).is_file() => Ok(()),
        include => Err(DeviceError::NoHeaders { index, looked: include.map(|dir| dir.join(HEADER)) }),
    }
}

/// Whether the driver loads what NVRTC compiles. Where NVRTC is the newer of the two it most often does not, and every
/// kernel would fail; so then one without content is tried.
fn check_compiler(index: usize) -> Result<(), DeviceError> {
    let (mut driver, mut major, mut minor) = (0, 0, 0);
    // SAFETY: both calls only write to the numbers they are given, and both libraries are there.
    let known = unsafe {
        let driver = cudarc::driver::sys::cuDriverGetVersion(&mut driver);
        driver.result().is_ok() && cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor).result().is_ok()
    };
    let compiler = CudaVersion { major, minor };
    let driver = CudaVersion { major: driver / 1000, minor: driver % 1000 / 10 };
    tracing::debug!("the driver is of CUDA {driver}, NVRTC of CUDA {compiler}");
    if !known || compiler <= driver {
        return Ok(());
    }
    let compiled =
        compile_ptx("extern \"C\" __global__ void nothing() {}").map_err(|error| error.to_string());
    let loaded = compiled.and_then(|kernel| {
        let context = CudaContext::new(index).map_err(|error| error.to_string())?;
        context.load_module(kernel).map_err(|error| error.to_string())
    });
    loaded.map(drop).map_err(|reason| DeviceError::NewCompiler { index, compiler, driver, reason })
}

/// How many devices the driver shows this process; none without a driver.
pub(super) fn devices() -> usize {
    // SAFETY: it only tries to load a library by the names it goes by.
    if unsafe { cudarc::driver::sys::is_culib_present() } {
        CudaContext::device_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
    } else {
        0
    }
}

/// A device's memory as it is now; none where the driver does not say.
pub(super) fn room(index: usize) -> Option<Room> {
    let context = CudaContext::new(index).ok()?;
    let (free, total) = context.mem_get_info().ok()?;
    let name = context.name().unwrap_or_else(|_| format!("cuda:{index}"));
    Some(Room { name, total: total as u64, free: free as u64 })
}

/// Keeps compiled and tuned kernels in `directory`, for the next worker on this node. Only the first call counts, and
/// only before a device is used; a cubecl.toml in the working directory or above is not read.
pub(super) fn keep_kernels(directory: PathBuf) {
    let mut config = CubeClRuntimeConfig::default();
    config.compilation.cache = true;
    config.environment.path = CacheConfig::Directory(directory);
    if CubeClRuntimeConfig::try_set(config.override_from_env()) {
        tracing::debug!("kernels are kept");
    }
}
