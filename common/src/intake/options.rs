//! Settings of the planning half, read once into types that cannot be wrong.

use std::{num::NonZeroUsize, path::PathBuf};

use bytesize::ByteSize;
use regex::Regex;

use super::Request;
use crate::{
    capture::{ArrayLayout, Dtype, Numerics},
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

/// What a run was asked for, as far as planning it goes.
#[derive(Clone, Debug)]
pub struct IntakeOptions {
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
    /// How exactly it is computed.
    pub numerics: Numerics,
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
}

/// A setting whose value means nothing.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum IntakeOptionsError {
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
    #[error("the current directory cannot be read: {0}")]
    Here(std::io::Error),
}

impl IntakeOptions {
    /// Reads the settings.
    pub fn parse(settings: &Settings) -> Result<Self, IntakeOptionsError> {
        let Settings { run: s, hub, .. } = settings;
        let named = |name: &String| ModelRef::parse(name, hub.revision.as_deref());
        let models = s.model.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        if models.is_empty() {
            return Err(IntakeOptionsError::NoModel);
        }
        let lengths = LengthRules { min_chars: s.min_chars, max_chars: s.max_chars.get() };
        if lengths.max_chars < lengths.min_chars {
            return Err(IntakeOptionsError::Lengths { min: lengths.min_chars, max: lengths.max_chars });
        }
        let selection = Selection {
            layers: s.layers.as_deref().map(str::parse::<LayerList>).transpose()?,
            names: s.names_filter.as_deref().map(Regex::new).transpose()?,
        };
        let layout = if s.stacked_heads { ArrayLayout::Stacked } else { ArrayLayout::PerLayer };
        if s.stacked_heads && (selection.layers.is_some() || selection.names.is_some()) {
            return Err(IntakeOptionsError::StackedSelection);
        }
        let batch_bytes = match s.batch_memory {
            None => default_batch_memory().batch_bytes,
            Some(ByteSize(0)) => return Err(IntakeOptionsError::NoMemory),
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
        Ok(IntakeOptions {
            models,
            prompts: s.prompts.clone(),
            load,
            save_path: std::path::absolute(&s.save_path).map_err(IntakeOptionsError::Here)?,
            hub: hub.options(),
            selection,
            layout,
            dtype: s.dtype,
            numerics: Numerics { compute_dtype: s.compute_dtype, matmul_precision: s.matmul_precision },
            prepend_bos: s.prepend_bos,
            on_too_long: s.on_too_long,
            limits: PlanLimits { batch_size: s.batch_size.get(), batch_bytes, max_message_bytes: None },
            force: s.force,
            index_html: !s.no_index_html,
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
            numerics: self.numerics,
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
