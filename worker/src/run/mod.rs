//! `worker run`: the whole path from a prompt file to a data directory in one process, with the
//! embedded queue between its halves.

mod model;
mod options;

use std::{collections::HashMap, path::Path, sync::Arc, time::Instant};

use common::{
    exit::Exit,
    intake::Request,
    job::RunId,
    model::reference::ModelRef,
    prompt::{
        PromptSet,
        load::{LoadOptions, load},
    },
    settings::Settings,
    talk::{self, View, say},
};
pub(crate) use model::pipeline_of;
pub use options::{ComputeOptions, Options, OptionsError};

use crate::{
    report::summary::{ModelSummary, RunSummary},
    serve::Shutdown,
    signals,
};

/// Runs what `settings` say and returns how it ended. Talk goes to stderr; with `json`, the summary to stdout.
pub fn run(settings: &Settings, view: View, json: bool) -> Exit {
    let options = match Options::parse(settings) {
        Ok(options) => options,
        Err(error) => return fail(&error, Exit::Configuration),
    };
    options.compute.prepare();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("starting the async runtime: {error}"), Exit::Transient),
    };
    let shutdown = Shutdown::default();
    runtime.spawn(signals::watch(shutdown.clone()));

    let mut run = Run {
        options,
        view,
        shutdown,
        runtime,
        loaded: HashMap::new(),
        summary: RunSummary::new(RunId::fresh()),
    };
    run.summary.forced = run.options.intake.force;
    let mut exit = run.models();
    let Run { mut summary, shutdown, .. } = run;
    summary.interrupted = shutdown.stop.is_cancelled();
    summary.peak_memory = talk::peak_memory();
    if summary.interrupted {
        exit = Exit::Interrupted;
    } else if exit == Exit::Done && summary.all_retryable() {
        exit = Exit::Transient;
    } else if exit == Exit::Done && summary.any_failed() {
        exit = Exit::SomeFailed;
    }
    if json {
        say(format_args!("{}\n", serde_json::to_string_pretty(&summary).expect("a summary is plain data")));
    }
    if view != View::Quiet {
        eprint!("{}", summary.text());
    }
    exit
}

struct Run {
    options: Options,
    view: View,
    shutdown: Shutdown,
    runtime: tokio::runtime::Runtime,
    /// Prompt files by path: models that share one share its prompts.
    loaded: HashMap<std::path::PathBuf, Arc<PromptSet>>,
    summary: RunSummary,
}

impl Run {
    /// One model after the other; the worst of their exits.
    fn models(&mut self) -> Exit {
        let mut exit = Exit::Done;
        for model in self.options.intake.models.clone() {
            if self.shutdown.stop.is_cancelled() {
                break;
            }
            if let Err(error) = self.model(&model) {
                let ended = fail(&error, error.exit());
                // What must be changed by hand is told before what may pass by itself.
                exit = if exit == Exit::Done { ended } else { exit.max(ended) };
            }
        }
        exit
    }

    fn request(&self) -> Request {
        self.options.intake.request(self.summary.run.clone())
    }

    /// The prompts of a file, loaded once. What is wrong with it is told here.
    fn prompts(&mut self, path: &Path) -> Result<Arc<PromptSet>, model::ModelError> {
        if let Some(prompts) = self.loaded.get(path) {
            return Ok(Arc::clone(prompts));
        }
        let options = LoadOptions { path: path.to_owned(), ..self.options.intake.load.clone() };
        let loaded = load(&options)?;
        loaded.report.tell();
        // One seed for the files of all models, so that it can be told.
        self.options.intake.load.seed = loaded.report.seed.or(self.options.intake.load.seed);
        self.summary.seed = loaded.report.seed;
        self.summary.bad_lines += loaded.report.bad_lines + loaded.report.conflicting;
        let prompts = Arc::new(loaded.prompts);
        self.loaded.insert(path.to_owned(), Arc::clone(&prompts));
        Ok(prompts)
    }

    fn model(&mut self, model: &ModelRef) -> Result<(), model::ModelError> {
        let (summary, error) = match model::run(self, model, Instant::now()) {
            Ok((summary, error)) => (summary, error),
            Err(error) => (ModelSummary::failed(model.name.as_str(), error.to_string()), Some(error)),
        };
        self.summary.models.push(summary);
        error.map_or(Ok(()), Err)
    }
}

/// Says an error with its causes and returns `exit`.
fn fail(error: &dyn std::fmt::Display, exit: Exit) -> Exit {
    tracing::error!("{error}");
    exit
}
