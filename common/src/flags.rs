//! The flags both binaries take, named as the settings they stand for (see [`crate::settings`]). A flag's default is
//! written down there, in one place.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

/// The flags that say where models come from.
#[derive(Debug, Default, Args, Serialize)]
pub struct HubFlags {
    /// Branch, tag or commit of the models' repositories [default: main]
    #[arg(long)]
    pub revision: Option<String>,
}

/// The flags that say what to plan: upstream's, by the same names, then ours. What was not given is none or false,
/// and does not override the settings.
#[derive(Debug, Default, Args, Serialize)]
pub struct IntakeFlags {
    /// Models, separated by commas: aliases, hub ids, tails of hub ids, or directories
    #[arg(long, short = 'm')]
    pub model: Option<String>,
    /// Prompts, one JSON object a line with a "text" key [default: the model's own prompts.jsonl]
    #[arg(long, short = 'p', value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// The data directory [default: attn_data]
    #[arg(long, short = 's', value_name = "DIR")]
    pub save_path: Option<PathBuf>,
    /// With --raw-prompts: leave out shorter texts [default: 100]
    #[arg(long, value_name = "N")]
    pub min_chars: Option<usize>,
    /// With --raw-prompts: cut longer texts into pieces of this many characters [default: 1000]
    #[arg(long, value_name = "N")]
    pub max_chars: Option<usize>,
    /// Take only the first N prompts
    #[arg(long, short = 'n', value_name = "N")]
    pub n_samples: Option<usize>,
    /// Most prompts in one forward pass [default: 32]
    #[arg(long, short = 'b', value_name = "N")]
    pub batch_size: Option<usize>,
    /// Compute again what is cached
    #[arg(long, short = 'f')]
    pub force: bool,
    /// Write no index.html
    #[arg(long)]
    pub no_index_html: bool,
    /// The prompts are raw: filter, split and hash them
    #[arg(long, short = 'r')]
    pub raw_prompts: bool,
    /// Shuffle before taking the first N
    #[arg(long)]
    pub shuffle: bool,
    /// Write one array of all layers a prompt
    #[arg(long)]
    pub stacked_heads: bool,
    /// Seed of --shuffle [default: random, and printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Keep only these layers, as in 0,3-5
    #[arg(long, value_name = "LIST")]
    pub layers: Option<String>,
    /// Keep only the patterns whose hook name this expression matches
    #[arg(long, value_name = "REGEX")]
    pub names_filter: Option<String>,
    /// Most memory the patterns of one forward pass may take, as in 2GiB [default: from the machine]
    #[arg(long, value_name = "SIZE")]
    pub batch_memory: Option<String>,
    /// Number type of the arrays: float32 or float16 [default: float32]
    #[arg(long)]
    pub dtype: Option<String>,
    /// Number type in which matrices are multiplied: float32, bf16 or f16 [default: float32]
    #[arg(long, value_name = "DTYPE")]
    pub compute_dtype: Option<String>,
    /// How a GPU multiplies float32 matrices: float32, or tf32 on tensor cores, off by up to 1e-3 [default: float32]
    #[arg(long, value_name = "HOW")]
    pub matmul_precision: Option<String>,
    /// Put the beginning-of-sequence token in front: auto, always or never [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub prepend_bos: Option<String>,
    /// A prompt longer than the model's context: truncate, skip or fail [default: truncate]
    #[arg(long, value_name = "WHAT")]
    pub on_too_long: Option<String>,
}

/// The flags that say which broker.
#[derive(Debug, Default, Args, Serialize)]
pub struct QueueFlags {
    /// The broker, as in amqp://USER@HOST:5672/VHOST, or amqps:// for TLS; the nodes of a cluster with commas. A
    /// password is better in AMQP_URL or a file (queue.password_file) [default: the one on this machine]
    #[arg(long, value_name = "URL")]
    pub amqp: Option<String>,
    /// The prefix of the queues' names [default: lenspool]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
}
