//! Which device a model runs on: what a user may ask for, and what there is.

use std::{fmt, str::FromStr};

use burn::tensor::Device;

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
}

/// A `--device` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such device: {0:?}; give cpu, cuda, cuda:N or auto")]
pub struct UnknownDevice(String);

/// The device asked for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Built without the cuda feature.
    #[error(
        "--device cuda:{0}: this worker was built without CUDA; build it with `--features cuda` or use --device cpu"
    )]
    NotBuilt(usize),
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
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        match text.split_once(':') {
            None if text == "auto" => Ok(DeviceChoice::Auto),
            None if text == "cpu" => Ok(DeviceChoice::Cpu),
            None if text == "cuda" => Ok(DeviceChoice::Cuda(0)),
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

    /// The kind of device, as torch and model_cfg.json name it.
    pub fn torch_name(self) -> &'static str {
        if matches!(self.resolve(), DeviceChoice::Cuda(_)) { "cuda" } else { "cpu" }
    }

    /// burn's device.
    pub(super) fn open(self) -> Result<Device, DeviceError> {
        match self.resolve() {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::flex()),
            DeviceChoice::Cuda(index) => open_cuda(index),
        }
    }
}

/// How many CUDA devices this process can use; none without the feature or a driver.
#[cfg(feature = "cuda")]
pub fn cuda_devices() -> usize {
    Device::enumerate(burn::tensor::DeviceType::Cuda).len()
}

/// How many CUDA devices this process can use; none without the feature or a driver.
#[cfg(not(feature = "cuda"))]
pub fn cuda_devices() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    // Opening a device that is not there panics on a runner thread, so count first.
    let found = cuda_devices();
    if index < found { Ok(Device::cuda(index)) } else { Err(DeviceError::NotThere { index, found }) }
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_and_written_back() {
        for text in ["auto", "cpu", "cuda", "cuda:1"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn another_spelling_is_refused_with_those_there_are() {
        let error = "gpu".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(error.to_string(), r#"no such device: "gpu"; give cpu, cuda, cuda:N or auto"#);
    }
}
