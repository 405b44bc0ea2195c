//! Settings, read once into types that cannot be wrong.

use std::{num::NonZeroUsize, path::PathBuf};

use common::{
    intake::{IntakeOptions, IntakeOptionsError},
    settings::Settings,
};

use crate::{
    encode::{Compression, UnknownCompression},
    model::device::{DeviceChoice, UnknownDevice, default_kernel_cache, keep_kernels},
};

/// What a run was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is planned.
    pub intake: IntakeOptions,
    /// How it is computed.
    pub compute: ComputeOptions,
}

/// How patterns are computed and encoded.
#[derive(Clone, Debug)]
pub struct ComputeOptions {
    /// How compressed.
    pub compression: Compression,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Threads to compute with and to encode with.
    pub threads: Option<usize>,
    /// Where a GPU's compiled and tuned kernels are kept.
    pub kernel_cache: Option<PathBuf>,
}

/// A setting whose value means nothing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OptionsError {
    #[error(transparent)]
    Intake(#[from] IntakeOptionsError),
    #[error("--compress: {0}")]
    Compression(#[from] UnknownCompression),
    #[error("--device: {0}")]
    Device(#[from] UnknownDevice),
}

impl Options {
    /// Reads the settings of a run.
    pub fn parse(settings: &Settings) -> Result<Self, OptionsError> {
        Ok(Options { intake: IntakeOptions::parse(settings)?, compute: ComputeOptions::parse(settings)? })
    }
}

impl ComputeOptions {
    /// Reads the settings of whoever computes.
    pub fn parse(settings: &Settings) -> Result<Self, OptionsError> {
        let run = &settings.run;
        Ok(ComputeOptions {
            compression: run.compress.parse()?,
            device: run.device.parse()?,
            threads: run.threads.map(NonZeroUsize::get),
            kernel_cache: run.kernel_cache.clone().or_else(default_kernel_cache),
        })
    }

    /// Makes ready what belongs to the whole process, before anything is computed.
    pub fn prepare(&self) {
        if let Some(threads) = self.threads {
            // Fails only where a pool exists already, which then stays in use.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        if let Some(directory) = &self.kernel_cache {
            keep_kernels(directory.clone());
        }
    }

    /// Cores to compute with.
    pub fn cores(&self) -> usize {
        let there = || std::thread::available_parallelism().ok().map(Into::into);
        self.threads.or_else(there).unwrap_or(1)
    }
}
