//! `dispatcher topology`: what an administrator makes where users may not.

use common::{
    exit::Exit, model::reference::ModelRef, queue::rabbitmq::Broker, settings::Settings, talk::say,
};

use crate::{Error, cli::TopologyArgs};

/// Prints one line an exchange or queue.
pub fn run(args: &TopologyArgs, settings: &Settings) -> Result<Exit, Error> {
    let broker = Broker::new(&settings.queue)?;
    let models = args.model.iter().map(|model| Ok(ModelRef::parse(model, None)?.name));
    let models = models.collect::<Result<Vec<_>, Error>>()?;
    for line in broker.names.describe(&models) {
        say(format_args!("{line}\n"));
    }
    if models.is_empty() {
        tracing::warn!("a queue for each model is needed besides: name models with --model");
    }
    Ok(Exit::Done)
}
