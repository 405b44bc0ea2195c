//! The models, in burn: a checkpoint and its [`ModelSpec`] in, an [`Engine`](crate::engine::Engine) out.
//!
//! Owns weights, devices and the forward pass. Which file is which model, and what a config.json means, is
//! decided in [`common::model`]; what happens to patterns is the sink's business.

mod batch;
mod checkpoint;
pub mod device;
mod embed;
mod ops;
mod rotary;
mod transformer;
mod weights;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use common::model::{
    spec::ModelSpec,
    weights::{Plan, WeightsError},
};

pub use self::transformer::Transformer;
use self::{
    batch::Packing,
    checkpoint::Checkpoint,
    device::{DeviceChoice, DeviceError},
    embed::Embedding,
    ops::{Heads, Ops},
    rotary::RotaryTables,
    weights::Loader,
};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A directory without weights.
    #[error(
        "no weights in {dir}: neither model.safetensors nor model.safetensors.index.json; \
         give a directory that holds a whole checkpoint"
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// Pickled weights only.
    #[error(
        "{path} is a pickle, which can run code when read, so it is not; convert it once with: python -c \"from \
         transformers import AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('DIR')\""
    )]
    Pickled {
        /// The file.
        path: PathBuf,
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
    /// The tensors are not those the configuration calls for.
    #[error("{dir}: {error}")]
    Tensors {
        /// The checkpoint.
        dir: PathBuf,
        /// Which.
        error: WeightsError,
    },
    /// No such device.
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

/// Loads the checkpoint in `dir` onto `device`, as far as `highest_layer`'s softmax.
pub fn load(
    dir: &Path,
    spec: &ModelSpec,
    device: &DeviceChoice,
    highest_layer: usize,
) -> Result<Transformer, LoadError> {
    let n_layers = spec.n_layers();
    if highest_layer >= n_layers {
        return Err(LoadError::NoSuchLayer { asked: highest_layer, n_layers });
    }
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let plan = Plan::new(spec, &checkpoint.header())
        .map_err(|error| LoadError::Tensors { dir: dir.to_owned(), error })?;
    let choice = device.resolve();
    let device = choice.open()?;
    let packing = match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Packing::Unpadded { max_rows: transformer::CPU_ROWS },
        DeviceChoice::Cuda(_) => Packing::Padded,
    };
    let ops = Ops::of(choice);
    let loader = Loader { checkpoint: &checkpoint, spec, device: &device, ops };
    Ok(Transformer {
        ops,
        packing,
        embedding: Embedding::new(Arc::clone(&checkpoint), spec, &plan)?,
        embedding_projection: plan
            .embedding_projection
            .as_ref()
            .map(|plan| loader.linear(&[plan]))
            .transpose()?,
        embedding_norm: plan.embedding_norm.as_ref().map(|norm| loader.norm(norm)).transpose()?,
        layers: loader.layers(&plan, highest_layer)?,
        rules: transformer::rules(spec),
        rotary: RotaryTables::new(spec, &device),
        heads: Heads { query: spec.n_heads, key: spec.n_kv_heads, width: spec.d_head },
        activation: spec.activation,
        d_model: spec.d_model,
        n_layers,
        device,
    })
}
