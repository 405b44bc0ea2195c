//! `dispatcher topology`: what an administrator makes where users may not, as a list to read, or with `--json` as
//! definitions to import: `rabbitmqctl import_definitions FILE`.

use common::{
    exit::Exit, model::reference::ModelRef, queue::rabbitmq::Broker, settings::Settings, talk::say,
};

use crate::{Error, cli::TopologyArgs};

/// Prints one line an exchange or queue, or all of them as definitions.
pub fn run(args: &TopologyArgs, settings: &Settings) -> Result<Exit, Error> {
    let broker = Broker::new(&settings.queue)?;
    let models = args.model.iter().map(|model| Ok(ModelRef::parse(model, None)?.name));
    let models = models.collect::<Result<Vec<_>, Error>>()?;
    if args.json {
        let definitions = broker.definitions(&models);
        say(format_args!(
            "{}\n",
            serde_json::to_string_pretty(&definitions).expect("definitions are plain data")
        ));
    } else {
        for line in broker.names.describe(&models) {
            say(format_args!("{line}\n"));
        }
    }
    if models.is_empty() {
        tracing::warn!("a queue for each model is needed besides: name models with --model");
    }
    Ok(Exit::Done)
}
