//! The `worker` command.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use common::settings::{self, Effective, Sources};
use tracing_subscriber::EnvFilter;
use worker::{
    bench,
    cli::{Cli, Command, RunArgs, RunFlags},
    exit::Exit,
    inspect,
    report::progress::View,
    run,
};

// Large tensors come and go with every layer; the system's allocator returns their pages each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = matches!(&cli.command, Command::Run(RunArgs { quiet: true, .. }));
    start_log(quiet);
    let settings = |flags: &RunFlags| settings::load(&Sources::of_process(cli.config.clone(), flags));
    let exit = match &cli.command {
        Command::Run(args) => settings(&args.flags).map(|Effective { settings, .. }| {
            let terminal = std::io::stderr().is_terminal();
            let view = if quiet {
                View::Quiet
            } else if terminal {
                View::Bar
            } else {
                View::Log
            };
            run::run(&settings, view, args.json)
        }),
        Command::Config { flags, json } => {
            settings(flags).map(|effective| inspect::config(&effective, *json))
        }
        Command::Models { name, revision, json } => {
            let flags = RunFlags { revision: revision.clone(), ..RunFlags::default() };
            settings(&flags).map(|effective| inspect::models(name.as_deref(), &effective.settings, *json))
        }
        Command::Bench(bench) => {
            settings(&RunFlags::default()).map(|effective| bench::run(bench, &effective.settings))
        }
    };
    exit.unwrap_or_else(|error| {
        tracing::error!("{error}");
        Exit::Configuration
    })
    .into()
}

/// Talk goes to stderr: plain for a person, filtered by RUST_LOG.
fn start_log(quiet: bool) {
    let default = if quiet { "error" } else { "warn,worker=info,common=info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::io::stderr().is_terminal() {
        log.without_time().init();
    } else {
        log.with_ansi(false).init();
    }
}
