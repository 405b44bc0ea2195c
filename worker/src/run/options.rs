//! Settings, read once into types that cannot be wrong.

use std::path::PathBuf;

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
    tokenize::{OnTooLong, PrependBos, UnknownWord},
};
use regex::Regex;

use crate::{
    encode::Compression,
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
    #[error("--batch-size must be at least 1")]
    NoBatch,
    #[error("--threads must be at least 1")]
    NoThreads,
    #[error("--max-chars must be at least 1 and no less than --min-chars ({min}), not {max}")]
    Lengths { min: usize, max: usize },
    #[error("--batch-memory {given:?} is no size: {reason}; write it as in 512MiB or 2GB")]
    Size { given: String, reason: String },
    #[error(transparent)]
    Layers(#[from] SelectionError),
    #[error("--names-filter is no regular expression: {0}")]
    Names(#[from] regex::Error),
    #[error("--dtype {0:?} is neither float32 nor float16")]
    Dtype(String),
    #[error(
        "--stacked-heads holds every layer in one array, so it cannot be combined with --layers or --names-filter"
    )]
    StackedSelection,
    #[error("--compress {given:?}: {reason}")]
    Compression { given: String, reason: String },
    #[error("--device: {0}")]
    Device(#[from] UnknownDevice),
    #[error("--{flag}: {error}")]
    Word { flag: &'static str, error: UnknownWord },
    #[error("the current directory cannot be read: {0}")]
    Here(std::io::Error),
}

impl Options {
    /// Reads the settings of a run.
    pub fn parse(s: &Settings) -> Result<Self, OptionsError> {
        let names =
            s.model.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        let models =
            names.map(|name| ModelRef::parse(name, s.revision.as_deref())).collect::<Result<Vec<_>, _>>()?;
        if models.is_empty() {
            return Err(OptionsError::NoModel);
        }
        if s.batch_size == 0 {
            return Err(OptionsError::NoBatch);
        }
        if s.threads == Some(0) {
            return Err(OptionsError::NoThreads);
        }
        if s.max_chars == 0 || s.max_chars < s.min_chars {
            return Err(OptionsError::Lengths { min: s.min_chars, max: s.max_chars });
        }
        let selection = Selection {
            layers: s.layers.as_deref().map(str::parse::<LayerList>).transpose()?,
            names: s.names_filter.as_deref().map(Regex::new).transpose()?,
        };
        let layout = if s.stacked_heads { ArrayLayout::Stacked } else { ArrayLayout::PerLayer };
        if s.stacked_heads && (selection.layers.is_some() || selection.names.is_some()) {
            return Err(OptionsError::StackedSelection);
        }
        let batch_bytes = s
            .batch_memory
            .as_deref()
            .map(size)
            .transpose()?
            .unwrap_or_else(|| default_batch_memory().batch_bytes);
        let lengths = LengthRules { min_chars: s.min_chars, max_chars: s.max_chars };
        let load = LoadOptions {
            raw: s.raw_prompts,
            lengths,
            shuffle: s.shuffle,
            seed: s.seed,
            n_samples: s.n_samples,
            ..LoadOptions::new(PathBuf::new())
        };
        Ok(Options {
            models,
            prompts: s.prompts.clone(),
            load,
            save_path: std::path::absolute(&s.save_path).map_err(OptionsError::Here)?,
            hub: hub(s),
            selection,
            layout,
            dtype: match s.dtype.as_str() {
                "float32" => Dtype::Float32,
                "float16" => Dtype::Float16,
                other => return Err(OptionsError::Dtype(other.to_owned())),
            },
            compression: s.compress.parse().map_err(|error| OptionsError::Compression {
                given: s.compress.clone(),
                reason: format!("{error}"),
            })?,
            device: s.device.parse()?,
            prepend_bos: s
                .prepend_bos
                .parse()
                .map_err(|error| OptionsError::Word { flag: "prepend-bos", error })?,
            on_too_long: s
                .on_too_long
                .parse()
                .map_err(|error| OptionsError::Word { flag: "on-too-long", error })?,
            limits: PlanLimits { batch_size: s.batch_size, batch_bytes, max_message_bytes: None },
            force: s.force,
            index_html: !s.no_index_html,
            threads: s.threads,
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

/// The hub as Hugging Face's tools would use it, but for what the settings say.
pub fn hub(s: &Settings) -> HubOptions {
    let base = HubOptions::from_env();
    HubOptions {
        cache: s.hub_cache.clone().unwrap_or(base.cache),
        endpoint: s
            .hub_endpoint
            .as_deref()
            .map(|url| url.trim_end_matches('/').to_owned())
            .unwrap_or(base.endpoint),
        offline: s.hub_offline.unwrap_or(base.offline),
        token: s.hub_token.clone().or(base.token),
        ..base
    }
}

fn size(given: &str) -> Result<u64, OptionsError> {
    match given.parse::<ByteSize>() {
        Ok(ByteSize(0)) => {
            Err(OptionsError::Size { given: given.to_owned(), reason: "it is nothing".to_owned() })
        }
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(reason) => Err(OptionsError::Size { given: given.to_owned(), reason }),
    }
}
