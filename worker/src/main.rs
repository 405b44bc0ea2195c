//! The `worker` command.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use common::settings::{self, Flags, LogFormat, Sources};
use tracing_subscriber::EnvFilter;
use worker::{
    bench,
    cli::{Cli, Command, RunArgs},
    exit::Exit,
    inspect,
    report::progress::{BesideBars, View},
    run,
};

// Large tensors come and go with every layer; the system's allocator returns their pages each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let flags = match &cli.command {
        Command::Run(RunArgs { flags, .. }) | Command::Config { flags, .. } => flags.layer(),
        Command::Models { flags, .. } => Flags::new().section("hub", flags),
        Command::Bench(_) => Flags::new(),
    };
    let loaded = settings::load(&Sources::of_process(cli.config.clone(), flags));
    let quiet = matches!(&cli.command, Command::Run(RunArgs { quiet: true, .. }));
    start_log(loaded.as_ref().map(|loaded| &loaded.settings.log).ok(), quiet);
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
            let terminal = std::io::stderr().is_terminal();
            let view = match (quiet, terminal) {
                (true, _) => View::Quiet,
                (false, true) => View::Bar,
                (false, false) => View::Log,
            };
            run::run(settings, view, args.json)
        }
        Command::Config { json, .. } => inspect::config(&loaded, *json),
        Command::Models { name, json, .. } => inspect::models(name.as_deref(), settings, *json),
        Command::Bench(bench) => bench::run(bench, settings),
    };
    exit.into()
}

/// Talk goes to stderr: what the settings or RUST_LOG ask for; for a person at a terminal, also how a run goes on.
fn start_log(log: Option<&settings::Log>, quiet: bool) {
    let terminal = std::io::stderr().is_terminal();
    let filter = if quiet {
        "error".to_owned()
    } else {
        let asked = log.map_or("warn", |log| log.filter.as_str());
        if terminal && asked == settings::Log::default().filter {
            format!("{asked},worker=info,common=info")
        } else {
            asked.to_owned()
        }
    };
    let asked = if quiet { None } else { EnvFilter::try_from_default_env().ok() };
    let filter = asked.unwrap_or_else(|| EnvFilter::new(filter));
    let log_lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(BesideBars::default);
    match log.map(|log| log.format) {
        Some(LogFormat::Json) => log_lines.json().init(),
        _ if terminal => log_lines.with_target(false).without_time().init(),
        _ => log_lines.with_target(false).with_ansi(false).init(),
    }
}
