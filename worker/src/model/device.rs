//! Which device a model runs on: what a user may ask for, and what there is.

use std::{fmt, path::PathBuf, str::FromStr, sync::Once};

use burn::tensor::Device;

pub use super::device_error::{CudaVersion, DeviceError};
use super::footprint::Room;

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The first GPU where there is one and this build can use it, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index, as CUDA counts the visible ones.
    Cuda(usize),
    /// Whatever Vulkan reaches, by way of wgpu: the GPU half without an NVIDIA card.
    Wgpu,
}

/// A device's memory as it is now, whoever uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes in use.
    pub used: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A `--device` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such device: {0:?}; give cpu, cuda, cuda:N, wgpu or auto")]
pub struct UnknownDevice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        match text.split_once(':') {
            None if text == "auto" => Ok(DeviceChoice::Auto),
            None if text == "cpu" => Ok(DeviceChoice::Cpu),
            None if text == "cuda" => Ok(DeviceChoice::Cuda(0)),
            None if text == "wgpu" => Ok(DeviceChoice::Wgpu),
            Some(("cuda", index)) => index.parse().map(DeviceChoice::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(0) => f.write_str("cuda"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::Wgpu => f.write_str("wgpu"),
        }
    }
}

impl DeviceChoice {
    /// The choice with `auto` decided.
    pub fn resolve(self) -> DeviceChoice {
        match self {
            DeviceChoice::Auto if cuda_devices() > 0 => DeviceChoice::Cuda(0),
            DeviceChoice::Auto => DeviceChoice::Cpu,
            chosen => chosen,
        }
    }

    /// The kind of device, as model_cfg.json names it: as torch does, where that knows it.
    pub fn torch_name(self) -> &'static str {
        match self.resolve() {
            DeviceChoice::Auto | DeviceChoice::Cpu => "cpu",
            DeviceChoice::Cuda(_) => "cuda",
            DeviceChoice::Wgpu => "wgpu",
        }
    }

    /// The device's memory as it is now, where that can be known.
    pub fn memory(self) -> Option<DeviceMemory> {
        let Room { total, free, .. } = self.room()?;
        Some(DeviceMemory { used: total.saturating_sub(free), total })
    }

    /// Whether there is such a device, and this build can use it.
    pub fn check(self) -> Result<(), DeviceError> {
        self.open().map(drop)
    }

    /// burn's device.
    pub(super) fn open(self) -> Result<Device, DeviceError> {
        match self.resolve() {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::flex()),
            DeviceChoice::Cuda(index) => open_cuda(index),
            DeviceChoice::Wgpu => open_wgpu(),
        }
    }

    /// What the device is called and how much memory it has free, where that can be known.
    pub(super) fn room(self) -> Option<Room> {
        match self.resolve() {
            DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::Wgpu => None,
            DeviceChoice::Cuda(index) => cuda_room(index),
        }
    }

    /// Warns, the first time, where products that may use tensor cores may have to do without.
    pub(super) fn warn_without_tensor_cores(self) {
        // A process has one device.
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            if let DeviceChoice::Cuda(index) = self.resolve()
                && let Some(reason) = cuda_without_tensor_cores(index)
            {
                tracing::warn!(
                    "--device cuda:{index}: kernels that use tensor cores do not all compile ({reason}), so half \
                     precision and TF32 may be slow; install the package cuda-crt of the same version, which has \
                     crt/mma.h, and remove the kernel cache: it keeps what was fastest without"
                );
            }
        });
    }
}

/// Where a GPU's compiled and tuned kernels are kept where nobody says: in the user's cache directory, `lenspool` and the
/// node's name. On a cluster that directory is shared, and the database of kernels must not be: its locks hold on one
/// node.
pub fn default_kernel_cache() -> Option<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Some(cache.join("lenspool").join(node))
}

/// Keeps a GPU's compiled and tuned kernels in `directory`. To be called before a device is used.
pub fn keep_kernels(directory: PathBuf) {
    #[cfg(feature = "cuda")]
    super::cuda::keep_kernels(directory);
    #[cfg(not(feature = "cuda"))]
    drop(directory);
}

/// How many CUDA devices this process can use; none without the feature or a driver.
pub fn cuda_devices() -> usize {
    #[cfg(feature = "cuda")]
    let found = super::cuda::devices();
    #[cfg(not(feature = "cuda"))]
    let found = 0;
    found
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    super::cuda::check(index)?;
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt(DeviceChoice::Cuda(index), "cuda"))
}

#[cfg(feature = "cuda")]
fn cuda_room(index: usize) -> Option<Room> {
    super::cuda::room(index)
}

#[cfg(not(feature = "cuda"))]
fn cuda_room(_: usize) -> Option<Room> {
    None
}

#[cfg(feature = "cuda")]
fn cuda_without_tensor_cores(index: usize) -> Option<String> {
    super::cuda::without_tensor_cores(index)
}

#[cfg(not(feature = "cuda"))]
fn cuda_without_tensor_cores(_: usize) -> Option<String> {
    None
}

#[cfg(feature = "wgpu")]
fn open_wgpu() -> Result<Device, DeviceError> {
    Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice))
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt(DeviceChoice::Wgpu, "wgpu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_and_written_back() {
        for text in ["auto", "cpu", "cuda", "cuda:1", "wgpu"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn another_spelling_is_refused_with_those_there_are() {
        let error = "gpu".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(error.to_string(), r#"no such device: "gpu"; give cpu, cuda, cuda:N, wgpu or auto"#);
    }
}
