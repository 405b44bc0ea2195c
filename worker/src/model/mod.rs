//! The models, in burn: a checkpoint and its [`ModelSpec`] in, an [`Engine`](crate::engine::Engine) out.
//!
//! Owns weights, devices and the forward pass. Which file is which model, and what a config.json means, is
//! decided in [`common::model`]; what happens to patterns is the sink's business.

mod batch;
mod checkpoint;
mod crossing;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
mod device_engine;
mod device_error;
mod embed;
mod failure;
mod footprint;
mod host;
mod ops;
mod readback;
mod rotary;
mod transformer;
mod values;
mod weights;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use common::{
    capture::{ComputeDtype, Numerics},
    job::FailureKind,
    model::{
        spec::ModelSpec,
        weights::{Plan, WeightsError},
    },
};

pub use self::crossing::Crossing;
use self::{
    batch::Packing,
    checkpoint::Checkpoint,
    device::{DeviceChoice, DeviceError},
    device_engine::DeviceEngine,
    embed::Embedding,
    footprint::{Footprint, Room},
    host::HostEngine,
    ops::{Heads, Ops},
    rotary::RotaryTables,
    transformer::Transformer,
    weights::Loader,
};
use crate::engine::Engine;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A directory without weights.
    #[error(
        "no weights in {dir}: no model.safetensors, no pytorch_model.bin and no index of shards; \
         give a directory that holds a whole checkpoint"
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that is not what it should be.
    #[error("{path} is damaged: {reason}; fetch it again")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A number type that is not supported.
    #[error("tensor {tensor} is stored as {found}; supported are F32, F16 and BF16, so no quantized weights")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// What it is stored as.
        found: String,
    },
    /// A tensor that cannot be read.
    #[error("cannot read tensor {tensor}: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What went wrong.
        reason: String,
    },
    /// The tensors are not those the configuration calls for.
    #[error("{dir}: {error}")]
    Tensors {
        /// The checkpoint.
        dir: PathBuf,
        /// Which.
        error: WeightsError,
    },
    /// No such device, or none that takes the model.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A layer the model does not have.
    #[error("layer {asked} was asked for; the model has {n_layers}, counted from 0")]
    NoSuchLayer {
        /// The layer.
        asked: usize,
        /// How many there are.
        n_layers: usize,
    },
}

impl LoadError {
    /// Whether trying again may help.
    pub fn kind(&self) -> FailureKind {
        match self {
            LoadError::Device(error) => error.kind(),
            _ => FailureKind::Permanent,
        }
    }
}

/// Loads the checkpoint in `dir` onto `device`, as far as `highest_layer`'s softmax, to be computed as `numerics` says.
pub fn load(
    dir: &Path,
    spec: &ModelSpec,
    device: DeviceChoice,
    numerics: Numerics,
    highest_layer: usize,
) -> Result<Box<dyn Engine>, LoadError> {
    let choice = device.resolve();
    let native = numerics.compute_dtype == ComputeDtype::Float32;
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let ops = if native { Ops::Native } else { Ops::Composed(numerics) };
            let packing = Packing::Unpadded { max_rows: host::ROWS };
            let model = load_as(dir, spec, &choice.open()?, None, highest_layer, ops, packing)?;
            Ok(Box::new(HostEngine::new(model)))
        }
        DeviceChoice::Cuda(_) | DeviceChoice::Wgpu => {
            let device = choice.open()?;
            if numerics != Numerics::default() {
                choice.warn_without_tensor_cores();
            }
            // What an engine before this one has left in pools is not free yet. Each thread has pools of its own; burn
            // empties them all.
            device.memory_cleanup();
            let (room, packing) = (choice.room(), Packing::Padded { n_ctx: spec.n_ctx });
            let ops = Ops::Composed(numerics);
            let model = load_as(dir, spec, &device, room.as_ref(), highest_layer, ops, packing)?;
            // The weights are on their way; only once they have arrived is what is left free for batches.
            device.sync().map_err(|error| failure::unplaced(&error, room.as_ref()))?;
            // Weights in half precision leave those they were made of in the pool, which keeps what is free of it.
            device.memory_cleanup();
            Ok(Box::new(DeviceEngine::new(model, Footprint::new(spec, choice.room()))))
        }
    }
}

/// As [`load`], with a choice of how to compute, onto a device that has `room`, where that is known.
fn load_as(
    dir: &Path,
    spec: &ModelSpec,
    device: &Device,
    room: Option<&Room>,
    highest_layer: usize,
    ops: Ops,
    packing: Packing,
) -> Result<Transformer, LoadError> {
    let n_layers = spec.n_layers();
    if highest_layer >= n_layers {
        return Err(LoadError::NoSuchLayer { asked: highest_layer, n_layers });
    }
    let checkpoint = Checkpoint::open(dir)?;
    let plan = Plan::new(spec, &checkpoint.header())
        .map_err(|error| LoadError::Tensors { dir: dir.to_owned(), error })?;
    let loader = Loader { checkpoint: &checkpoint, spec, device, ops, room };
    if let Some(room) = room {
        room.takes(loader.bytes(&plan, highest_layer))?;
    }
    let make = || {
        let projection = plan.embedding_projection.as_ref().map(|plan| loader.linear(&[plan]));
        Ok(Transformer {
            ops,
            packing,
            embedding: Embedding::new(&checkpoint, spec, &plan)?,
            embedding_projection: projection.transpose()?,
            embedding_norm: plan.embedding_norm.as_ref().map(|norm| loader.norm(norm)).transpose()?,
            layers: loader.layers(&plan, highest_layer)?,
            rules: transformer::rules(spec),
            rotary: RotaryTables::new(spec, device),
            heads: Heads { query: spec.n_heads, key: spec.n_kv_heads, width: spec.d_head },
            activation: spec.activation,
            d_model: spec.d_model,
            n_layers,
            device: device.clone(),
        })
    };
    // Weights stay as long as the model: no use in pools made for what comes and goes. A panic waits until the device
    // is told that what follows does come and go: it would never be told otherwise.
    let made = device.memory_persistent_allocations((), |()| catch_unwind(AssertUnwindSafe(&make)));
    made.unwrap_or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests;
