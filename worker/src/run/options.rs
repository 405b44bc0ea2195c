//! Settings, read once into types that cannot be wrong.

use std::{num::NonZeroUsize, path::PathBuf};

use bytesize::ByteSize;
use common::{
    capture::{ArrayLayout, Dtype},
    intake::Request,
    job::RunId,
    model::{
        hub::HubOptions,
        reference::{ModelRef, ModelRefError},
    },
    plan::{PlanLimits, memory::default_batch_memory},
    prompt::load::{LengthRules, LoadOptions},
    selection::{LayerList, Selection, SelectionError},
    settings::Settings,
    spool::SpoolOptions,
    tokenize::{OnTooLong, PrependBos},
};
use regex::Regex;

use crate::{
    encode::{Compression, UnknownCompression},
    model::device::{DeviceChoice, UnknownDevice},
};

/// What a run was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The models, in order.
    pub models: Vec<ModelRef>,
    /// The prompt file, where one was given.
    pub prompts: Option<PathBuf>,
    /// How prompt files are read; the path is filled in later.
    pub load: LoadOptions,
    /// The data directory, absolute.
    pub save_path: PathBuf,
    /// Where models come from.
    pub hub: HubOptions,
    /// Which layers.
    pub selection: Selection,
    /// As which arrays.
    pub layout: ArrayLayout,
    /// In which number type.
    pub dtype: Dtype,
    /// How compressed.
    pub compression: Compression,
    /// Where to compute.
    pub device: DeviceChoice,
    /// BOS or not.
    pub prepend_bos: PrependBos,
    /// What becomes of too long prompts.
    pub on_too_long: OnTooLong,
    /// How large a batch may be.
    pub limits: PlanLimits,
    /// Compute again what is cached.
    pub force: bool,
    /// Write the viewer page.
    pub index_html: bool,
    /// Threads to compute with and to encode with.
    pub threads: Option<usize>,
}

/// A setting whose value means nothing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OptionsError {
    #[error(
        "no model was given: name one with --model, as in --model gpt2; `worker models` lists what is supported"
    )]
    NoModel,
    #[error(transparent)]
    Model(#[from] ModelRefError),
    #[error("--max-chars must be at least 1 and no less than --min-chars ({min}), not {max}")]
    Lengths { min: usize, max: usize },
    #[error("--batch-memory must be more than nothing, as in 512MiB or 2GB")]
    NoMemory,
    #[error(transparent)]
    Layers(#[from] SelectionError),
    #[error("--names-filter is no regular expression: {0}")]
    Names(#[from] regex::Error),
    #[error(
        "--stacked-heads holds every layer in one array, so it cannot be combined with --layers or --names-filter"
    )]
    StackedSelection,
    #[error("--compress: {0}")]
    Compression(#[from] UnknownCompression),
    #[error("--device: {0}")]
    Device(#[from] UnknownDevice),
    #[error("the current directory cannot be read: {0}")]
    Here(std::io::Error),
}

impl Options {
    /// Reads the settings of a run.
    pub fn parse(settings: &Settings) -> Result<Self, OptionsError> {
        let Settings { run: s, hub, .. } = settings;
        let named = |name: &String| ModelRef::parse(name, hub.revision.as_deref());
        let models = s.model.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        if models.is_empty() {
            return Err(OptionsError::NoModel);
        }
        let lengths = LengthRules { min_chars: s.min_chars, max_chars: s.max_chars.get() };
        if lengths.max_chars < lengths.min_chars {
            return Err(OptionsError::Lengths { min: lengths.min_chars, max: lengths.max_chars });
        }
        let selection = Selection {
            layers: s.layers.as_deref().map(str::parse::<LayerList>).transpose()?,
            names: s.names_filter.as_deref().map(Regex::new).transpose()?,
        };
        let layout = if s.stacked_heads { ArrayLayout::Stacked } else { ArrayLayout::PerLayer };
        if s.stacked_heads && (selection.layers.is_some() || selection.names.is_some()) {
            return Err(OptionsError::StackedSelection);
        }
        let batch_bytes = match s.batch_memory {
            None => default_batch_memory().batch_bytes,
            Some(ByteSize(0)) => return Err(OptionsError::NoMemory),
            Some(ByteSize(bytes)) => bytes,
        };
        let load = LoadOptions {
            raw: s.raw_prompts,
            lengths,
            shuffle: s.shuffle,
            seed: s.seed,
            n_samples: s.n_samples.map(NonZeroUsize::get),
            ..LoadOptions::new(PathBuf::new())
        };
        Ok(Options {
            models,
            prompts: s.prompts.clone(),
            load,
            save_path: std::path::absolute(&s.save_path).map_err(OptionsError::Here)?,
            hub: hub.options(),
            selection,
            layout,
            dtype: s.dtype,
            compression: s.compress.parse()?,
            device: s.device.parse()?,
            prepend_bos: s.prepend_bos,
            on_too_long: s.on_too_long,
            limits: PlanLimits { batch_size: s.batch_size.get(), batch_bytes, max_message_bytes: None },
            force: s.force,
            index_html: !s.no_index_html,
            threads: s.threads.map(NonZeroUsize::get),
        })
    }

    /// What the planning half needs.
    pub fn request(&self, run: RunId) -> Request {
        Request {
            run,
            save_path: self.save_path.clone(),
            hub: self.hub.clone(),
            selection: self.selection.clone(),
            layout: self.layout,
            dtype: self.dtype,
            force: self.force,
            prepend_bos: self.prepend_bos,
            on_too_long: self.on_too_long,
            limits: self.limits,
        }
    }

    /// How tokens and prompts that outgrow memory are kept.
    pub fn spool(&self) -> SpoolOptions {
        self.load.spool.clone()
    }
}
