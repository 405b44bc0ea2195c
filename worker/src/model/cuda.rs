//! What CUDA needs at run time, looked for before burn does: burn's runtime panics on threads of its own where
//! something is missing.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
use cubecl_cuda::install::cuda_path;
use cudarc::{
    driver::{CudaContext, DriverError},
    nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts},
};

use super::{
    device::{CudaVersion, DeviceError},
    footprint::Room,
};

/// A header that every build of CUDA's headers has.
const HEADER: &str = "cuda_fp16.h";
/// One that kernels for tensor cores include, and that includes one of another package in turn.
const TENSOR_CORES: &str = "mma.h";

/// The devices found to be usable. Their contexts are the ones that burn's runtime uses, and stay as long as it does.
static USABLE: LazyLock<Mutex<HashMap<usize, Arc<CudaContext>>>> = LazyLock::new(Mutex::default);

/// Whether device `index` can be used, and what is missing where it cannot; looked into again until it can.
pub(super) fn check(index: usize) -> Result<(), DeviceError> {
    let mut usable = USABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Entry::Vacant(place) = usable.entry(index) {
        place.insert(look(index)?);
    }
    Ok(())
}

fn look(index: usize) -> Result<Arc<CudaContext>, DeviceError> {
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
    let no_context = |error: DriverError| DeviceError::NoContext { index, reason: error.to_string() };
    let context = CudaContext::new(index).map_err(no_context)?;
    let architecture = architecture(&context).map_err(no_context)?;
    let include = cuda_path().map(|path| path.join("include"));
    let Some(include) = include.as_deref().filter(|include| include.join(HEADER).is_file()) else {
        return Err(DeviceError::NoHeaders { index, looked: include.map(|dir| dir.join(HEADER)) });
    };
    let (compiler, driver) = versions();
    tracing::debug!("the driver is of CUDA {driver}, NVRTC of CUDA {compiler}, the device {architecture}");
    let kernel = compile(&nothing(HEADER), &architecture, include)
        .map_err(|error| uncompiled(index, compiler, &architecture, &error))?;
    match context.load_module(kernel) {
        Ok(_) => Ok(context),
        Err(error) => {
            let reason = error.to_string();
            Err(match compiler > driver {
                true => DeviceError::NewCompiler { index, compiler, driver, reason },
                false => DeviceError::NotLoaded { index, driver, reason },
            })
        }
    }
}

/// Why kernels for device `index`'s tensor cores do not compile, where that is so for some: tuning then chooses among the
/// others.
pub(super) fn without_tensor_cores(index: usize) -> Option<String> {
    let usable = USABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let context = usable.get(&index)?;
    let (architecture, include) = (architecture(context).ok()?, cuda_path()?.join("include"));
    compile(&nothing(TENSOR_CORES), &architecture, &include).err().map(|error| said(&error))
}

/// The device's architecture as burn's runtime names it to NVRTC.
fn architecture(context: &CudaContext) -> Result<String, DriverError> {
    let (major, minor) = context.compute_capability()?;
    let specific = if major >= 9 { "a" } else { "" };
    Ok(format!("sm_{major}{minor}{specific}"))
}

/// NVRTC's version and the newest that the driver knows; zeros where one does not say.
fn versions() -> (CudaVersion, CudaVersion) {
    let (mut driver, mut major, mut minor) = (0, 0, 0);
    // SAFETY: both calls only write to the numbers they are given, and both libraries are there.
    let _ = unsafe {
        (
            cudarc::driver::sys::cuDriverGetVersion(&mut driver),
            cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor),
        )
    };
    let driver = CudaVersion { major: driver / 1000, minor: driver % 1000 / 10 };
    (CudaVersion { major, minor }, driver)
}

/// A kernel without content that includes `header`.
fn nothing(header: &str) -> String {
    format!("#include <{header}>\nextern \"C\" __global__ void nothing() {{}}")
}

/// What NVRTC makes of `source` with the options of burn's runtime.
pub(super) fn compile(source: &str, architecture: &str, include: &Path) -> Result<Ptx, CompileError> {
    let cccl = include.join("cccl");
    let includes = [Some(include), cccl.exists().then_some(cccl.as_path())].into_iter().flatten();
    let options = CompileOptions {
        include_paths: includes.map(|path| path.display().to_string()).collect(),
        options: vec![format!("--gpu-architecture={architecture}"), "-lineinfo".to_owned()],
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source, options)
}

/// What an error of NVRTC says is missing.
fn uncompiled(index: usize, compiler: CudaVersion, architecture: &str, error: &CompileError) -> DeviceError {
    let (architecture, reason) = (architecture.to_owned(), said(error));
    match reason.contains("--gpu-architecture") {
        true => DeviceError::OtherCompiler { index, compiler, architecture },
        false => DeviceError::BrokenCompiler { index, compiler, reason },
    }
}

/// The line of NVRTC's log that says what is wrong, else its code.
pub(super) fn said(error: &CompileError) -> String {
    let CompileError::CompileError { nvrtc, log, .. } = error else { return error.to_string() };
    let log = log.to_string_lossy();
    let line = log.lines().map(str::trim).find(|line| line.contains("error"));
    line.map_or_else(|| nvrtc.to_string(), |line| line.trim_start_matches("nvrtc: error: ").to_owned())
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

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use cudarc::nvrtc::{result::NvrtcError, sys::nvrtcResult};

    use super::*;

    fn refused(code: nvrtcResult, log: &str) -> String {
        let log = CString::new(log).expect("no zero in it");
        let error = CompileError::CompileError { nvrtc: NvrtcError(code), options: Vec::new(), log };
        uncompiled(0, CudaVersion { major: 12, minor: 4 }, "sm_100a", &error).to_string()
    }

    /// With the literal logs of NVRTC 12.4.
    #[test]
    fn what_nvrtc_lacks_is_named() {
        let architecture = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
        assert_eq!(
            refused(nvrtcResult::NVRTC_ERROR_INVALID_OPTION, architecture),
            "--device cuda:0: NVRTC (libnvrtc.so) is of CUDA 12.4 and does not compile for this device (sm_100a); load \
             a CUDA module of the driver's version, or install that version of the package cuda-nvrtc-dev"
        );
        let builtins = "nvrtc: error: failed to open libnvrtc-builtins.so.12.4.\n  Make sure that \
                        libnvrtc-builtins.so.12.4 is installed correctly.";
        let told = refused(nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE, builtins);
        assert!(told.contains("(failed to open libnvrtc-builtins.so.12.4.)"), "{told}");
        let header = "/opt/include/cuda_fp16.h(113): catastrophic error: cannot open source file \"vector_types.h\"\n  \
                      #include \"vector_types.h\"\n\n1 catastrophic error detected in the compilation of \
                      \"default_program\".\nCompilation terminated.\n";
        let told = refused(nvrtcResult::NVRTC_ERROR_COMPILATION, header);
        let reason =
            "(/opt/include/cuda_fp16.h(113): catastrophic error: cannot open source file \"vector_types.h\")";
        assert!(told.contains(reason), "{told}");
        assert!(refused(nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR, "").contains("NVRTC_ERROR_INTERNAL_ERROR"));
    }
}
