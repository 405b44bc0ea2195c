//! What can be set. A field here, its default below and its line in deploy/lenspool.toml are all there is
//! to a new setting: file key, environment variable and provenance follow from its name.

use std::{
    fmt::Display,
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize};

use super::{BrokerUrl, Secret, Span};
use crate::{
    capture::{ComputeDtype, Dtype, MatmulPrecision},
    model::hub::{DEFAULT_ENDPOINT, HubOptions},
    tokenize::{OnTooLong, PrependBos},
};

/// Everything that can be set, by section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// What to compute and where it goes.
    pub run: Run,
    /// Where models come from.
    pub hub: Hub,
    /// The broker.
    pub queue: Queue,
    /// How a worker takes jobs from the broker.
    pub consume: Consume,
    /// How jobs are brought to the broker.
    pub enqueue: Enqueue,
    /// What is logged.
    pub log: Log,
}

/// What to compute and where it goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The models, one after the other. A comma list or an array.
    #[serde(deserialize_with = "one_or_many")]
    pub model: Vec<String>,
    /// The prompt file; none: each model's own prompts.jsonl.
    pub prompts: Option<PathBuf>,
    /// The data directory.
    pub save_path: PathBuf,
    /// Raw prompts: shorter texts are dropped.
    pub min_chars: usize,
    /// Raw prompts: longer texts are split.
    pub max_chars: NonZeroUsize,
    /// Only the first so many.
    pub n_samples: Option<NonZeroUsize>,
    /// The most prompts in a batch.
    pub batch_size: NonZeroUsize,
    /// The most bytes of patterns in a batch; none: fitted to the machine.
    pub batch_memory: Option<ByteSize>,
    /// Compute again what is there.
    pub force: bool,
    /// Write no viewer page.
    pub no_index_html: bool,
    /// The prompt file is raw text to be split and filtered.
    pub raw_prompts: bool,
    /// Shuffle before taking the first.
    pub shuffle: bool,
    /// Of the shuffle; none: a fresh one, which is reported.
    pub seed: Option<u64>,
    /// One array for all layers.
    pub stacked_heads: bool,
    /// Layers to keep, as in 0,3-5; none: all.
    pub layers: Option<String>,
    /// A regular expression of activation names to keep.
    pub names_filter: Option<String>,
    /// How files are compressed.
    pub compress: String,
    /// The number type of patterns on disk.
    #[serde(deserialize_with = "word")]
    pub dtype: Dtype,
    /// The number type of the model's products.
    #[serde(deserialize_with = "word")]
    pub compute_dtype: ComputeDtype,
    /// How exactly a GPU multiplies float32 matrices.
    #[serde(deserialize_with = "word")]
    pub matmul_precision: MatmulPrecision,
    /// Where the model runs.
    pub device: String,
    /// Whether a BOS token comes first.
    #[serde(deserialize_with = "word")]
    pub prepend_bos: PrependBos,
    /// What becomes of prompts longer than the model's context.
    #[serde(deserialize_with = "word")]
    pub on_too_long: OnTooLong,
    /// Threads to compute with, and to encode with; none: one a core.
    pub threads: Option<NonZeroUsize>,
    /// Where a GPU's compiled and tuned kernels are kept; none: in the user's cache directory.
    pub kernel_cache: Option<PathBuf>,
}

impl Default for Run {
    fn default() -> Run {
        Run {
            model: Vec::new(),
            prompts: None,
            save_path: PathBuf::from("attn_data"),
            min_chars: 100,
            max_chars: const { NonZeroUsize::new(1000).unwrap() },
            n_samples: None,
            batch_size: const { NonZeroUsize::new(32).unwrap() },
            batch_memory: None,
            force: false,
            no_index_html: false,
            raw_prompts: false,
            shuffle: false,
            seed: None,
            stacked_heads: false,
            layers: None,
            names_filter: None,
            compress: "causal".to_owned(),
            dtype: Dtype::Float32,
            compute_dtype: ComputeDtype::Float32,
            matmul_precision: MatmulPrecision::Float32,
            device: "auto".to_owned(),
            prepend_bos: PrependBos::Auto,
            on_too_long: OnTooLong::Truncate,
            threads: None,
            kernel_cache: None,
        }
    }
}

/// Where models come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hub {
    /// Branch, tag or commit of models named without one; none: main.
    pub revision: Option<String>,
    /// The directory of downloads; none: where Hugging Face's tools keep theirs.
    pub cache: Option<PathBuf>,
    /// The hub's address.
    pub endpoint: String,
    /// Never use the network.
    pub offline: bool,
    /// For gated and private models; none: what `hf auth login` left.
    pub token: Option<Secret>,
    /// Seconds without a byte after which a transfer is given up.
    pub timeout: u64,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub {
            revision: None,
            cache: None,
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            offline: false,
            token: None,
            timeout: 30,
        }
    }
}

impl Hub {
    /// The same as the model locator wants it, completed from this process's environment.
    pub fn options(&self) -> HubOptions {
        let env = HubOptions::from_env();
        HubOptions {
            cache: self.cache.clone().unwrap_or(env.cache),
            endpoint: self.endpoint.trim_end_matches('/').to_owned(),
            offline: self.offline,
            token: self.token.clone().or(env.token),
            patience: Duration::from_secs(self.timeout),
        }
    }
}

/// The broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Its address; several of one cluster with commas.
    pub amqp: BrokerUrl,
    /// The user, in place of the address's.
    pub user: Option<String>,
    /// The password, in place of the address's.
    pub password: Option<Secret>,
    /// A file whose first line is the password, in place of both.
    pub password_file: Option<PathBuf>,
    /// PEM file of certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The prefix of all queues' names.
    pub namespace: String,
    /// Declare nothing: an administrator made exchanges and queues.
    pub passive: bool,
    /// How long a connection may take.
    pub timeout: Span,
    /// For how long a lost broker is tried again.
    pub patience: Span,
    /// How long jobs that failed wait before each further try. As many tries as there are waits.
    #[serde(deserialize_with = "spans")]
    pub retry_delays: Vec<Span>,
    /// The management API's address, for the count of unacknowledged jobs; none: not asked.
    pub management: Option<BrokerUrl>,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            amqp: BrokerUrl::new("amqp://localhost:5672/%2f"),
            user: None,
            password: None,
            password_file: None,
            ca_file: None,
            namespace: "lenspool".to_owned(),
            passive: false,
            timeout: Span::seconds(10),
            patience: Span::seconds(600),
            retry_delays: vec![Span::seconds(30), Span::seconds(300), Span::seconds(1800)],
            management: None,
        }
    }
}

/// How a worker takes jobs from the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Consume {
    /// Jobs held at once, the one being computed included.
    pub prefetch: NonZeroU16,
    /// Only data directories under these are written to; none: any in which the run was announced.
    #[serde(deserialize_with = "paths")]
    pub allow_save_path: Vec<PathBuf>,
    /// Leave after so long without work.
    pub max_idle: Option<Span>,
    /// Leave once the queues were empty for `max_idle`, or for a short while where that is not set.
    pub exit_when_empty: bool,
    /// Without work, stay for jobs whose wait for another try is at most so long; none: leave them to others.
    pub wait_for_retries: Option<Span>,
    /// Leave after so long; none: in time before the Slurm job ends, where it is one.
    pub max_runtime: Option<Span>,
    /// How long work in hand may go on after the first signal.
    pub grace: Span,
    /// Start a worker for each of these devices; `all`: for every GPU there is. None: this one is the worker.
    #[serde(deserialize_with = "one_or_many")]
    pub devices: Vec<String>,
}

impl Default for Consume {
    fn default() -> Consume {
        Consume {
            prefetch: const { NonZeroU16::new(3).unwrap() },
            allow_save_path: Vec::new(),
            max_idle: None,
            exit_when_empty: false,
            wait_for_retries: None,
            max_runtime: None,
            grace: Span::seconds(120),
            devices: Vec::new(),
        }
    }
}

/// How jobs are brought to the broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Enqueue {
    /// Do not bring the model's weights to the shared hub cache beforehand.
    pub no_prefetch: bool,
}

/// What is logged, on stderr.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// As in `warn,common::model=debug`.
    pub filter: String,
    /// For people or for machines.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Log {
        Log { filter: "warn".to_owned(), format: LogFormat::Text }
    }
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads a word that names one of a few values; the error names them all.
fn word<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Reads spans as [`one_or_many`] reads names.
fn spans<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Span>, D::Error> {
    let texts = one_or_many(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

/// Reads paths as [`one_or_many`] reads names.
fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(one_or_many(deserializer)?.into_iter().map(PathBuf::from).collect())
}

/// Reads `"a,b"` and `["a", "b"]` alike.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a name, or an array of names")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let many = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(many) => many,
    };
    let names = many.iter().flat_map(|text| text.split(',')).map(str::trim);
    Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
