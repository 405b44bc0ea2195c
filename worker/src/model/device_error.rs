//! Why a device cannot be had: what is missing, and what to do about it.

use std::{fmt, path::PathBuf};

use common::job::FailureKind;

use super::device::DeviceChoice;

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// As 12 in 12.4.
    pub major: i32,
    /// As 4 in 12.4.
    pub minor: i32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The device asked for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Built without the feature.
    #[error(
        "--device {0}: this worker was built without it; build it with `--features {1}` or use --device cpu"
    )]
    NotBuilt(DeviceChoice, &'static str),
    /// No driver.
    #[error(
        "--device cuda:{index}: there is no NVIDIA driver (libcuda.so.1) here; run on a node with a GPU (Slurm: \
         --gres=gpu:1), or use --device cpu"
    )]
    NoDriver {
        /// The index asked for.
        index: usize,
    },
    /// No run-time compiler.
    #[error(
        "--device cuda:{index}: kernels are compiled by NVRTC, which is found neither as libnvrtc.so nor as \
         libnvrtc.so.12; load the CUDA module of this cluster, or install the package cuda-nvrtc-dev and add its \
         directory to LD_LIBRARY_PATH"
    )]
    NoCompiler {
        /// The index asked for.
        index: usize,
    },
    /// No headers for it.
    #[error(
        "--device cuda:{index}: kernels include CUDA's headers, and {} is not there; load the CUDA module of this \
         cluster, or install the package cuda-cudart-dev and set CUDA_PATH to the directory above its include",
        looked.as_ref().map_or("/usr/local/cuda/include/cuda_fp16.h".into(), |path| path.display().to_string())
    )]
    NoHeaders {
        /// The index asked for.
        index: usize,
        /// Where they were looked for.
        looked: Option<PathBuf>,
    },
    /// The driver does not let this process use it, now at least.
    #[error(
        "--device cuda:{index}: the driver gives no context on this device ({reason}); see in nvidia-smi whether another \
         process has it to itself or has filled its memory, and start again when it is free"
    )]
    NoContext {
        /// The index asked for.
        index: usize,
        /// What the driver said.
        reason: String,
    },
    /// A run-time compiler that does not know the device.
    #[error(
        "--device cuda:{index}: NVRTC (libnvrtc.so) is of CUDA {compiler} and does not compile for this device \
         ({architecture}); load a CUDA module of the driver's version, or install that version of the package \
         cuda-nvrtc-dev"
    )]
    OtherCompiler {
        /// The index asked for.
        index: usize,
        /// Its version.
        compiler: CudaVersion,
        /// What the device is of, as NVRTC calls it.
        architecture: String,
    },
    /// A run-time compiler that lacks something.
    #[error(
        "--device cuda:{index}: NVRTC (libnvrtc.so, of CUDA {compiler}) does not compile a kernel without content \
         ({reason}); load the CUDA module of this cluster, or install the packages cuda-nvrtc-dev and cuda-cudart-dev of \
         one version, whole"
    )]
    BrokenCompiler {
        /// The index asked for.
        index: usize,
        /// Its version.
        compiler: CudaVersion,
        /// What it said.
        reason: String,
    },
    /// A driver that takes no kernels.
    #[error(
        "--device cuda:{index}: the driver, of CUDA {driver}, does not load a kernel without content ({reason}); is it \
         installed whole, libnvidia-ptxjitcompiler.so.1 included?"
    )]
    NotLoaded {
        /// The index asked for.
        index: usize,
        /// The newest CUDA it knows.
        driver: CudaVersion,
        /// What it said.
        reason: String,
    },
    /// A run-time compiler that is too new for the driver.
    #[error(
        "--device cuda:{index}: NVRTC (libnvrtc.so) is of CUDA {compiler}, and the driver, of CUDA {driver}, does not \
         load what it compiles ({reason}); use an NVRTC of CUDA {driver} or older, or a newer driver"
    )]
    NewCompiler {
        /// The index asked for.
        index: usize,
        /// Its version.
        compiler: CudaVersion,
        /// The newest the driver knows.
        driver: CudaVersion,
        /// What the driver said.
        reason: String,
    },
    /// Fewer GPUs than that.
    #[error(
        "--device cuda:{index}: {found} CUDA device(s) visible; check nvidia-smi and CUDA_VISIBLE_DEVICES, \
         or use --device cpu"
    )]
    NotThere {
        /// The index asked for.
        index: usize,
        /// How many there are.
        found: usize,
    },
    /// Too little memory for the weights.
    #[error(
        "the model does not fit the device: {0}; it takes a device with more memory free, or less of it with \
         --compute-dtype bf16 or with the first --layers only"
    )]
    NoRoom(String),
    /// It fails before anything is computed.
    #[error(
        "the device failed while the model was placed on it: {0}; see what nvidia-smi and the system's log say, and \
         start again"
    )]
    Failed(String),
}

impl DeviceError {
    /// Whether trying again may help.
    pub fn kind(&self) -> FailureKind {
        match self {
            DeviceError::NoContext { .. } | DeviceError::Failed(_) => FailureKind::Retryable,
            _ => FailureKind::Permanent,
        }
    }
}
