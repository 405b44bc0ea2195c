//! The `dispatcher` command: the planning half of a distributed run, and what operators need.

use std::process::ExitCode;

use clap::Parser;
use common::{
    exit::Exit,
    settings::{self, Sources},
    talk::{Talk, start_log},
};
use dispatcher::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let loaded = settings::load(&Sources::of_process(cli.config.clone(), cli.command.layer()));
    let talk = match &cli.command {
        Command::Enqueue(args) if args.quiet => Talk::Quiet,
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
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("starting the async runtime: {error}");
            return Exit::Transient.into();
        }
    };
    match dispatcher::run(&cli.command, &loaded.settings, &runtime) {
        Ok(exit) => exit.into(),
        Err(error) => {
            tracing::error!("{error}");
            error.exit().into()
        }
    }
}
