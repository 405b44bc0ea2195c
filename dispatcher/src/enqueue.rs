//! `dispatcher enqueue`.

use common::{exit::Exit, settings::Settings};
use tokio::runtime::Runtime;

use crate::{Error, cli::EnqueueArgs};

/// Plans and publishes.
pub fn run(_: &EnqueueArgs, _: &Settings, _: &Runtime) -> Result<Exit, Error> {
    Err(Error::Request("this command is not built yet".to_owned()))
}
