//! The `worker` command.

use std::process::ExitCode;

use clap::Parser;
use common::{
    exit::Exit,
    settings::{self, Flags, Sources},
    talk::{Talk, View, start_log},
};
use worker::{
    bench,
    cli::{Cli, Command, ConsumeArgs, RunArgs},
    consume, inspect, run,
};

// Large tensors come and go with every layer; the system's allocator returns their pages each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let flags = match &cli.command {
        Command::Run(RunArgs { flags, .. }) | Command::Config { flags, .. } => flags.layer(),
        Command::Consume(args) => args.layer(),
        Command::Models { flags, .. } => Flags::new().section("hub", flags),
        Command::Bench(_) => Flags::new(),
    };
    let loaded = settings::load(&Sources::of_process(cli.config.clone(), flags));
    let talk = match &cli.command {
        Command::Run(RunArgs { quiet: true, .. }) | Command::Consume(ConsumeArgs { quiet: true, .. }) => {
            Talk::Quiet
        }
        Command::Consume(_) => Talk::Full,
        _ => Talk::Brief,
    };
    start_log(loaded.as_ref().map(|loaded| &loaded.settings.log).ok(), talk);
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!("{error}");
            return Exit::Configuration.into();
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let settings = &loaded.settings;
    let exit = match &cli.command {
        Command::Run(args) => {
            let view = View::of_stderr(args.quiet);
            run::run(settings, view, args.json)
        }
        Command::Consume(args) => consume::start(settings, args.member_of, args.json),
        Command::Config { json, .. } => inspect::config(&loaded, *json),
        Command::Models { name, json, .. } => inspect::models(name.as_deref(), settings, *json),
        Command::Bench(bench) => bench::run(bench, settings),
    };
    exit.into()
}
