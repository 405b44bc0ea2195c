//! `dispatcher enqueue`: from a prompt file to jobs on the broker, and to a record of them beside the results.
//!
//! A run is announced on disk before its first job is published, and each confirmed job is noted there. So an
//! enqueue that was interrupted goes on: the same request finds its own unfinished record and leaves out what the
//! broker has.

mod request;
mod summary;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Instant};

use common::{
    exit::Exit,
    intake::{IntakeOptions, KnownModel, Place},
    job::RunId,
    model::{locate::fetch_weights, reference::ModelRef},
    prompt::{
        PromptSet,
        load::{LoadOptions, load},
    },
    queue::rabbitmq::{Broker, MESSAGE_BYTES, Publisher},
    settings::Settings,
    store::runs,
    talk::{View, peak_memory, say},
};
use jiff::Timestamp;
use request::Earlier;
use summary::{EnqueueSummary, ModelSummary};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{Error, bar::bar, cli::EnqueueArgs, index, publish::Publishing, signals};

/// Bytes of a message besides its prompts, at most.
const FRAME_BYTES: usize = 8 << 10;

/// Plans and publishes. Talk goes to stderr; to stdout the run's id, or with `--json` the summary.
pub fn run(args: &EnqueueArgs, settings: &Settings, runtime: &Runtime) -> Result<Exit, Error> {
    let mut options = IntakeOptions::parse(settings)?;
    options.limits.max_message_bytes = Some(MESSAGE_BYTES - FRAME_BYTES);
    let broker = Broker::new(&settings.queue)?;
    let stop = CancellationToken::new();
    runtime.spawn(signals::watch(stop.clone()));
    // A broker that cannot be used is told before an hour of tokenizing.
    let publisher = if args.dry_run { None } else { Some(runtime.block_on(Publisher::connect(&broker))?) };
    let mut enqueue = Enqueue {
        args,
        device: if settings.run.device == "cpu" { "cpu" } else { "cuda" },
        prefetch: !settings.enqueue.no_prefetch,
        view: View::of_stderr(args.quiet),
        broker,
        runtime,
        publisher,
        stop,
        loaded: HashMap::new(),
        summary: EnqueueSummary::new(RunId::fresh(), args.dry_run),
        options,
    };
    let exit = enqueue.models();
    let Enqueue { mut summary, stop, publisher, .. } = enqueue;
    if let Some(publisher) = publisher {
        runtime.block_on(publisher.close());
    }
    summary.interrupted = stop.is_cancelled();
    summary.peak_memory = peak_memory();
    let exit = match exit {
        _ if summary.interrupted => Exit::Interrupted,
        Exit::Done if summary.any_failed() => Exit::SomeFailed,
        exit => exit,
    };
    if args.json {
        say(format_args!("{}\n", serde_json::to_string_pretty(&summary).expect("a summary is plain data")));
    } else if !args.dry_run {
        summary.runs().for_each(|run| say(format_args!("{run}\n")));
    }
    if !args.quiet {
        eprint!("{}", summary.text());
    }
    Ok(exit)
}

/// Builds the index of runs that are done and whose last worker died before it could.
fn index_what_was_left(place: &Place) -> Result<(), Error> {
    let mut left = Vec::new();
    let as_of = Timestamp::now();
    for record in runs::list_runs(place.layout())? {
        if record.complete && !record.indexed && index::is_over(place.layout(), &record.card.run)? {
            left.push(record.card.run);
        }
    }
    if !left.is_empty() {
        place.index()?;
    }
    for run in left {
        runs::mark_indexed(place.layout(), &run, as_of)?;
    }
    Ok(())
}

struct Enqueue<'a> {
    args: &'a EnqueueArgs,
    options: IntakeOptions,
    /// What model_cfg.json says of where workers compute.
    device: &'static str,
    prefetch: bool,
    view: View,
    broker: Broker,
    runtime: &'a Runtime,
    publisher: Option<Publisher>,
    stop: CancellationToken,
    /// Prompt files by path: models that share one share its prompts.
    loaded: HashMap<PathBuf, Arc<PromptSet>>,
    summary: EnqueueSummary,
}

impl Enqueue<'_> {
    /// One model after the other; the worst of their exits.
    fn models(&mut self) -> Exit {
        let mut exit = Exit::Done;
        for model in self.options.models.clone() {
            if self.stop.is_cancelled() {
                break;
            }
            match self.model(&model) {
                Ok(summary) => self.summary.models.push(summary),
                Err(error) => {
                    tracing::error!("{error}");
                    let ended = error.exit();
                    exit = if exit == Exit::Done { ended } else { exit.max(ended) };
                    self.summary.models.push(ModelSummary::failed(model.name.as_str(), error.to_string()));
                }
            }
        }
        exit
    }

    fn prompts(&mut self, path: PathBuf) -> Result<Arc<PromptSet>, Error> {
        if let Some(prompts) = self.loaded.get(&path) {
            return Ok(Arc::clone(prompts));
        }
        let loaded = load(&LoadOptions { path: path.clone(), ..self.options.load.clone() })?;
        loaded.report.tell();
        // One seed for the files of all models, so that it can be told.
        self.options.load.seed = loaded.report.seed.or(self.options.load.seed);
        self.summary.seed = loaded.report.seed;
        self.summary.bad_lines += loaded.report.bad_lines + loaded.report.conflicting;
        let prompts = Arc::new(loaded.prompts);
        self.loaded.insert(path, Arc::clone(&prompts));
        Ok(prompts)
    }

    fn model(&mut self, model: &ModelRef) -> Result<ModelSummary, Error> {
        let begin = Instant::now();
        let mut request = self.options.request(self.summary.run.clone());
        let known = KnownModel::find(&request, model, &mut |event| event.tell())?;
        if let Some(warning) = known.warning() {
            tracing::warn!("{}: {warning}", known.located.name);
        }
        let place = Place::open(&request, &known, self.options.index_html);
        let path = self.options.prompts.clone().unwrap_or_else(|| place.own_prompts());
        let prompts = self.prompts(path)?;

        let digest = request::digest(&request, &known, self.broker.names.namespace(), &prompts);
        let earlier = request::earlier(place.layout(), &digest)?;
        if let Earlier::Interrupted(record) = &earlier {
            request.run = record.card.run.clone();
            tracing::warn!(
                "going on with run {}, which was interrupted after {} prompts were published",
                request.run,
                record.published
            );
        }
        let published = if let Earlier::Interrupted(record) = &earlier {
            runs::published(place.layout(), &record.card.run)?
        } else {
            Default::default()
        };

        let bar = bar(self.view, known.located.name.as_str(), "tokenizing", prompts.len());
        let planned = known
            .plan(&request, prompts, &published, self.options.spool(), |n| bar.set_position(n as u64))?;
        bar.finish_and_clear();
        let mut summary = ModelSummary::planned(&request.run, &known, &planned, begin.elapsed());
        if self.args.dry_run {
            return Ok(summary.ended(begin.elapsed()));
        }
        // Also where there is nothing to do: what dead workers left behind is swept.
        place.begin(&request, &known, self.device)?;
        if planned.todo() == 0 && published.is_empty() {
            index_what_was_left(&place)?;
            return Ok(summary.ended(begin.elapsed()));
        }
        if let Earlier::Complete(run) = &earlier {
            tracing::warn!(
                "run {run} asked for the same: what of it is still in the queue is published a second time, which \
                 costs workers a look at each prompt"
            );
        }

        if self.prefetch {
            fetch_weights(&known.located, &request.hub, &mut |event| event.tell())?;
        }
        let publisher = self.publisher.as_mut().expect("connected unless this is a dry run");
        let publishing = Publishing {
            names: &self.broker.names,
            publisher,
            stop: &self.stop,
            layout: place.layout(),
            view: self.view,
        };
        let ledger = match earlier {
            Earlier::Interrupted(record) => publishing.resume(record.card)?,
            Earlier::None | Earlier::Complete(_) => {
                publishing.announce(&request, &known, &planned, &digest)?
            }
        };
        summary.publish(self.runtime.block_on(publishing.publish(&planned, ledger, |_| Ok(())))?);
        // Workers may have been done before they could know that this was all.
        index_what_was_left(&place)?;
        Ok(summary.ended(begin.elapsed()))
    }
}
