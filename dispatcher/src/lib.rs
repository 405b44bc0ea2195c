//! lenspool's dispatcher: plans runs and publishes their jobs, and shows and mends what becomes of them.

mod bar;
mod cancel;
pub mod cli;
mod dead;
mod enqueue;
mod error;
mod follow;
mod index;
mod pace;
mod publish;
mod scope;
mod signals;
mod status;
mod table;
mod topology;
mod verify;
mod watch;

use cli::Command;
use common::{exit::Exit, settings::Settings};
pub use error::Error;
use tokio::runtime::Runtime;

/// Runs a command and returns how it ended. Talk goes to stderr, data to stdout.
pub fn run(command: &Command, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    match command {
        Command::Enqueue(args) => enqueue::run(args, settings, runtime),
        Command::Status(args) => status::run(args, settings, runtime),
        Command::Watch(args) => watch::run(args, settings, runtime),
        Command::Dead(command) => dead::run(command, settings, runtime),
        Command::Cancel(args) => cancel::run(args, settings, runtime),
        Command::Index(args) => index::run(args, settings, runtime),
        Command::Topology(args) => topology::run(args, settings),
        Command::Verify(args) => verify::run(args, settings, runtime),
    }
}
