//! The command line. Flags are optional here: what is not given comes from the settings, as for the worker.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::{
    flags::{HubFlags, IntakeFlags, QueueFlags},
    settings::Flags,
};
use serde::Serialize;

/// Turns prompt files into jobs for workers, and watches over them.
#[derive(Debug, Parser)]
#[command(name = "dispatcher", version, propagate_version = true)]
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
    /// Load prompts, leave out what is cached, tokenize the rest and publish it for workers
    Enqueue(Box<EnqueueArgs>),
    /// Say how far things are: queues, workers, runs, failures
    Status(StatusArgs),
    /// Status, again and again, until what is enqueued is done
    Watch(WatchArgs),
    /// Look at jobs that failed for good, send them again, or remove them
    #[command(subcommand)]
    Dead(Dead),
    /// Call a run off: workers drop its jobs as they meet them, and what is committed stays
    Cancel(CancelArgs),
    /// Read every committed file of a run and report, or repair, what is broken
    Verify(VerifyArgs),
    /// Bring prompts.jsonl up to date with what is committed
    Index(IndexArgs),
    /// Print the exchanges and queues that must exist, for an administrator who makes them
    Topology(TopologyArgs),
}

/// `dispatcher enqueue`.
#[derive(Debug, Args)]
pub struct EnqueueArgs {
    /// What to plan.
    #[command(flatten)]
    pub intake: IntakeFlags,
    /// Where models come from.
    #[command(flatten)]
    pub hub: HubFlags,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
    /// How.
    #[command(flatten)]
    pub enqueue: EnqueueFlags,
    /// Do all but publish: say what would be
    #[arg(long)]
    pub dry_run: bool,
    /// Print a JSON summary to stdout at the end
    #[arg(long)]
    pub json: bool,
    /// No progress, no summary; errors only
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

/// The flags of the section `enqueue`.
#[derive(Debug, Default, Args, Serialize)]
pub struct EnqueueFlags {
    /// Do not bring the model's weights to the shared hub cache
    #[arg(long)]
    pub no_prefetch: bool,
}

/// Which runs a command is about. Where they lie is known from the broker, or from `--save-path` without one.
#[derive(Debug, Default, Args)]
pub struct Scope {
    /// This run alone
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// This model alone
    #[arg(long, short = 'm', value_name = "MODEL")]
    pub model: Option<String>,
    /// The data directory, instead of those the broker knows of
    #[arg(long, short = 's', value_name = "DIR")]
    pub save_path: Option<PathBuf>,
}

/// `dispatcher status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which runs.
    #[command(flatten)]
    pub scope: Scope,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `dispatcher watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// What to watch.
    #[command(flatten)]
    pub status: StatusArgs,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub every: common::settings::Span,
}

/// `dispatcher dead`.
#[derive(Debug, Subcommand)]
pub enum Dead {
    /// One line a dead letter, or a count a reason
    List {
        /// Which.
        #[command(flatten)]
        which: DeadFilter,
        /// Which broker.
        #[command(flatten)]
        queue: QueueFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// All that is known of them: reasons, hosts and times of every try, prompts
    Show {
        /// Which.
        #[command(flatten)]
        which: DeadFilter,
        /// Which broker.
        #[command(flatten)]
        queue: QueueFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send them to their models' queues again, as if they had never been tried
    Requeue {
        /// Which.
        #[command(flatten)]
        which: DeadFilter,
        /// Which broker.
        #[command(flatten)]
        queue: QueueFlags,
    },
    /// Remove them for good
    Purge {
        /// Which.
        #[command(flatten)]
        which: DeadFilter,
        /// Which broker.
        #[command(flatten)]
        queue: QueueFlags,
        /// Remove without a filter: all there are
        #[arg(long)]
        all: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Default, Args)]
pub struct DeadFilter {
    /// Those of this run
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Those of this model
    #[arg(long, short = 'm', value_name = "MODEL")]
    pub model: Option<String>,
    /// Those whose reason holds this text
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// The one of this job
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,
}

/// `dispatcher cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The run, as `enqueue` and `status` print it
    pub run: String,
    /// The data directory, instead of the one the broker knows of
    #[arg(long, short = 's', value_name = "DIR")]
    pub save_path: Option<PathBuf>,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
}

/// `dispatcher verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The run, as `enqueue` and `status` print it; without it, every committed prompt of the data directory
    pub run: Option<String>,
    /// This model alone
    #[arg(long, short = 'm', value_name = "MODEL")]
    pub model: Option<String>,
    /// The data directory, instead of the one the broker knows of
    #[arg(long, short = 's', value_name = "DIR")]
    pub save_path: Option<PathBuf>,
    /// Remove broken files and enqueue their prompts again
    #[arg(long)]
    pub repair: bool,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `dispatcher index`.
#[derive(Debug, Args)]
pub struct IndexArgs {
    /// Which runs; without one, everything that is committed.
    #[command(flatten)]
    pub scope: Scope,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
}

/// `dispatcher topology`.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// Models whose queues are wanted, separated by commas
    #[arg(long, short = 'm', value_delimiter = ',', value_name = "MODEL")]
    pub model: Vec<String>,
    /// Print definitions, as `rabbitmqctl import_definitions` takes them
    #[arg(long)]
    pub json: bool,
    /// Which broker.
    #[command(flatten)]
    pub queue: QueueFlags,
}

impl Command {
    /// The flags as a layer of the settings.
    pub fn layer(&self) -> Flags {
        let queue = |queue: &QueueFlags| Flags::new().section("queue", queue);
        match self {
            Command::Enqueue(args) => queue(&args.queue)
                .section("run", &args.intake)
                .section("hub", &args.hub)
                .section("enqueue", &args.enqueue),
            Command::Status(args) | Command::Watch(WatchArgs { status: args, .. }) => queue(&args.queue),
            Command::Dead(
                Dead::List { queue: q, .. }
                | Dead::Show { queue: q, .. }
                | Dead::Requeue { queue: q, .. }
                | Dead::Purge { queue: q, .. },
            ) => queue(q),
            Command::Cancel(args) => queue(&args.queue),
            Command::Verify(args) => queue(&args.queue),
            Command::Index(args) => queue(&args.queue),
            Command::Topology(args) => queue(&args.queue),
        }
    }
}
