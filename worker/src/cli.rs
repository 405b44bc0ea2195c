//! The command line. Flags are optional here: what is not given comes from the settings (environment,
//! file, defaults), so a flag's default is written down in one place, `common::settings`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand, value_parser};
use common::{
    flags::{HubFlags, IntakeFlags, QueueFlags},
    settings::Flags,
};
use serde::Serialize;

/// Runs a language model over prompts and keeps every head's attention pattern.
#[derive(Debug, Parser)]
#[command(name = "worker", version, propagate_version = true)]
pub struct Cli {
    /// Settings file [default: lenspool.toml here, over the one in the user's configuration directory]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load prompts, run the model and write the patterns, all in this process
    Run(RunArgs),
    /// Take jobs from a broker, run the model and write the patterns, until there is no more work or time
    Consume(ConsumeArgs),
    /// Print the effective settings and where each came from
    Config {
        /// Flags of `run`, to see what they change
        #[command(flatten)]
        flags: AllFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the supported families and aliases, or say whether one model is supported and why not
    Models {
        /// A model as `run --model` takes it
        #[arg(value_name = "MODEL")]
        name: Option<String>,
        /// Where it comes from.
        #[command(flatten)]
        flags: HubFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure what this machine does with the stages of a run
    #[command(subcommand)]
    Bench(Bench),
}

/// `worker run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The settings.
    #[command(flatten)]
    pub flags: AllFlags,
    /// Print a JSON summary to stdout at the end
    #[arg(long)]
    pub json: bool,
    /// No progress, no summary; errors only
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

/// `worker consume`.
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    /// Models to take jobs of, separated by commas, as `dispatcher enqueue` takes them [default: all of the namespace]
    #[arg(long, short = 'm')]
    pub model: Option<String>,
    /// How to compute.
    #[command(flatten)]
    pub compute: ComputeFlags,
    /// Most memory the patterns of one forward pass may take, as in 2GiB [default: from the machine]
    #[arg(long, value_name = "SIZE")]
    pub batch_memory: Option<String>,
    /// How jobs are taken.
    #[command(flatten)]
    pub consume: ConsumeFlags,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
    /// Print a JSON summary to stdout at the end
    #[arg(long)]
    pub json: bool,
    /// Errors only
    #[arg(long, short = 'q')]
    pub quiet: bool,
    /// This worker is one of several that the process of this id started
    #[arg(long, hide = true, value_name = "PID")]
    pub member_of: Option<u32>,
}

impl ConsumeArgs {
    /// The flags as a layer of the settings.
    pub fn layer(&self) -> Flags {
        #[derive(Serialize)]
        struct Run<'a> {
            model: &'a Option<String>,
            batch_memory: &'a Option<String>,
            #[serde(flatten)]
            compute: &'a ComputeFlags,
        }
        let run = Run { model: &self.model, batch_memory: &self.batch_memory, compute: &self.compute };
        Flags::new().section("run", &run).section("consume", &self.consume).section("queue", &self.queue)
    }
}

/// The flags of the section `consume`. Times are written as in 90s, 2m or 1h 30m.
#[derive(Debug, Default, Args, Serialize)]
pub struct ConsumeFlags {
    /// Jobs held at once, the one being computed included [default: 3]
    #[arg(long, value_name = "N")]
    pub prefetch: Option<u16>,
    /// Write only to data directories under this one; may be given several times [default: to any in which the run
    /// was announced]
    #[arg(long, value_name = "DIR")]
    pub allow_save_path: Vec<PathBuf>,
    /// Leave after so long without work
    #[arg(long, value_name = "TIME")]
    pub max_idle: Option<String>,
    /// Leave once the queues were empty for the time of --max-idle [10s without it]
    #[arg(long)]
    pub exit_when_empty: bool,
    /// Without work, stay for jobs whose wait for another try is at most so long [default: leave them to others]
    #[arg(long, value_name = "TIME")]
    pub wait_for_retries: Option<String>,
    /// Leave after so long [default: in time before the Slurm job ends]
    #[arg(long, value_name = "TIME")]
    pub max_runtime: Option<String>,
    /// How long work in hand may go on after the first signal [default: 2m]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<String>,
    /// Start one worker for each of these devices, separated by commas; all: for every GPU that is visible
    #[arg(long, value_name = "LIST")]
    pub devices: Option<String>,
}

/// `worker bench`.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// How fast and how small this machine encodes the arrays of npz files
    Encode {
        /// Files as a run writes them
        #[arg(required = true, value_name = "FILE.npz")]
        files: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// How fast this machine commits files to a directory, beside a plain write of the same bytes
    Store {
        /// A directory on the storage to measure; what is written there is removed again
        dir: PathBuf,
        /// Files as a run writes them; their bytes are what is written
        #[arg(required = true, value_name = "FILE.npz")]
        files: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// How fast this machine runs a model's forward pass, by sequence length
    Forward {
        /// The model, as `run --model` takes it
        #[arg(long, short = 'm')]
        model: String,
        /// Where to compute [default: auto]
        #[arg(long)]
        device: Option<String>,
        /// Sequence lengths, separated by commas
        #[arg(long, value_delimiter = ',', default_value = "32,128,512")]
        n: Vec<NonZeroUsize>,
        /// Prompts in a batch [default: as many as make 1024 tokens]
        #[arg(long, short = 'b')]
        batch_size: Option<NonZeroUsize>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Whether memory grows over many batches of mixed length
    Soak {
        /// The model, as `run --model` takes it
        #[arg(long, short = 'm')]
        model: String,
        /// Where to compute [default: auto]
        #[arg(long)]
        device: Option<String>,
        /// Batches in all; memory is looked at after every tenth of them
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(10..))]
        batches: u64,
        /// Prompts in a batch
        #[arg(long, short = 'b', value_name = "N", default_value = "8")]
        batch_size: NonZeroUsize,
        /// Which lengths and token ids
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The flags of every section of the settings.
#[derive(Debug, Default, Args)]
pub struct AllFlags {
    /// What to compute and where it goes.
    #[command(flatten)]
    pub run: RunFlags,
    /// Where models come from.
    #[command(flatten)]
    pub hub: HubFlags,
}

impl AllFlags {
    /// The flags as a layer of the settings.
    pub fn layer(&self) -> Flags {
        Flags::new().section("run", &self.run).section("hub", &self.hub)
    }
}

/// The flags of a run: what to plan, and how to compute it.
#[derive(Debug, Default, Args, Serialize)]
pub struct RunFlags {
    /// What to plan.
    #[command(flatten)]
    #[serde(flatten)]
    pub intake: IntakeFlags,
    /// How to compute it.
    #[command(flatten)]
    #[serde(flatten)]
    pub compute: ComputeFlags,
}

/// The flags of whoever computes.
#[derive(Debug, Default, Args, Serialize)]
pub struct ComputeFlags {
    /// Where to compute: cpu, cuda, cuda:1, wgpu, or auto [default: auto]
    #[arg(long, overrides_with = "device")]
    pub device: Option<String>,
    /// How files are compressed: causal, zlib:0 to zlib:9, or store [default: causal]
    #[arg(long, value_name = "HOW")]
    pub compress: Option<String>,
    /// Threads to compute with, and to encode with [default: one a core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where a GPU's compiled and tuned kernels are kept for the next worker [default: ~/.cache/lenspool/NODE]
    #[arg(long, value_name = "DIR")]
    pub kernel_cache: Option<PathBuf>,
}
