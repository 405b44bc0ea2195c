//! `worker consume`: the computing half of a distributed run. Takes jobs from a broker until there is no more work,
//! time is up, or somebody says so; everything else is the pipeline of `worker run`.

mod finish;
mod fleet;
mod guard;
mod journal;
mod models;
mod options;
mod report;

use std::time::Duration;

use common::{
    exit::Exit,
    job::FailureKind,
    queue::rabbitmq::{BrokerError, Consumer},
    settings::Settings,
    talk::say,
};
pub use finish::Finisher;
pub use guard::Guard;
pub use journal::RunJournal;
pub use models::PinnedModels;
pub use options::{ConsumeOptionsError, Options, slurm_end};
pub use report::ConsumeSummary;
use report::Report;

use crate::{
    data_directory::DataDirectory,
    model::device::DeviceChoice,
    run::pipeline_of,
    serve::{self, End, Event, JobEnd, Models, ServeError, Shutdown},
    signals,
};

/// Takes jobs as `settings` say, by this process or, where they name several devices, by one started for each; a
/// process that was so started is a `member_of` the one that did.
pub fn start(settings: &Settings, member_of: Option<u32>, json: bool) -> Exit {
    if let Some(parent) = member_of {
        fleet::join(parent);
    } else if !settings.consume.devices.is_empty() {
        return match fleet::devices(&settings.consume.devices) {
            Ok(devices) => fleet::run(&devices, fleet::Share::of(&settings.run, devices.len()), json),
            Err(error) => {
                tracing::error!("{error}");
                Exit::Configuration
            }
        };
    }
    run(settings, json)
}

/// Takes jobs as `settings` say and returns how it ended. Talk goes to stderr; with `json`, the summary to stdout.
pub fn run(settings: &Settings, json: bool) -> Exit {
    let options = match Options::parse(settings, slurm_end()) {
        Ok(options) => options,
        Err(error) => {
            tracing::error!("{error}");
            return Exit::Configuration;
        }
    };
    options.compute.prepare();
    let (asked, device) = (options.compute.device, options.compute.device.resolve());
    let why = match (asked, device) {
        (DeviceChoice::Auto, DeviceChoice::Cpu) => {
            " (no GPU that this build can use; --device cuda says what is missing)"
        }
        _ => "",
    };
    tracing::info!("computing on {device}{why}");
    let models = PinnedModels { hub: options.hub.clone(), device: options.compute.device };
    run_with(options, models, json)
}

/// The same with models of the caller's, as the measurements of the queue have.
pub fn run_with(options: Options, models: impl Models, json: bool) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("starting the async runtime: {error}");
            return Exit::Transient;
        }
    };
    let (summary, ended) = runtime.block_on(consume(options, models));
    if json {
        say(format_args!("{}\n", serde_json::to_string_pretty(&summary).expect("a summary is plain data")));
    }
    tracing::info!("{summary}");
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => {
            tracing::error!("{error}");
            error.exit()
        }
    }
}

/// Why a worker left before it was done.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConsumeError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("{0}; of the jobs in hand, those that did not fail went back to their queue")]
    Serve(ServeError),
    #[error("--allow-save-path cannot be resolved: {0}")]
    Allowed(std::io::Error),
}

impl ConsumeError {
    /// The exit code it leads to.
    pub fn exit(&self) -> Exit {
        let kind = match self {
            ConsumeError::Broker(error) => error.kind(),
            ConsumeError::Serve(ServeError::Queue(error)) => {
                error.downcast_ref::<BrokerError>().map_or(FailureKind::Bug, BrokerError::kind)
            }
            ConsumeError::Serve(error) => error.kind(),
            ConsumeError::Allowed(_) => FailureKind::Permanent,
        };
        kind.into()
    }
}

async fn consume(options: Options, models: impl Models) -> (ConsumeSummary, Result<(), ConsumeError>) {
    let shutdown = Shutdown::default();
    tokio::spawn(signals::watch(shutdown.clone()));
    tokio::spawn(limit(shutdown.clone(), options.max_runtime, options.grace));
    let mut report = Report::begin();
    let ended = serve_broker(&options, models, shutdown, &mut report).await;
    (report.end(), ended)
}

async fn serve_broker(
    options: &Options,
    models: impl Models,
    shutdown: Shutdown,
    report: &mut Report,
) -> Result<(), ConsumeError> {
    let guard = Guard::new(&options.allow_save_path).map_err(ConsumeError::Allowed)?;
    let mut consumer = Consumer::connect(&options.broker, options.consume.clone()).await?;
    tracing::info!("connected to {}", options.broker.shown());
    let pipeline = pipeline_of(&options.compute, usize::from(options.consume.prefetch), options.batch_bytes);
    let finisher = Finisher::start();
    let observe = |event: &Event| {
        // A refused job's save path is anybody's word.
        if let Event::JobSettled { job, how, .. } = event
            && *how != JobEnd::Refused
        {
            finisher.worked_for(job);
        }
        report.take(event);
    };
    let directory = DataDirectory::guarded(guard);
    let served = serve::serve(&mut consumer, models, directory, &pipeline, shutdown, observe).await;
    report.waiting(consumer.waiting().await);
    consumer.close().await;
    finisher.close().await;
    match served {
        Ok(End::Drained) => {
            let idle = options.consume.leave.idle.unwrap_or_default();
            tracing::info!("no work for {}: leaving", humantime::format_duration(idle));
            Ok(())
        }
        Ok(End::Stopped) => Ok(()),
        Err(error) => Err(ConsumeError::Serve(error)),
    }
}

/// Asks for the end when time is up, and for an end at once when the grace is over, too.
async fn limit(shutdown: Shutdown, max_runtime: Option<Duration>, grace: Duration) {
    tokio::select! {
        () = shutdown.stop.cancelled() => {}
        () = sleep_or_never(max_runtime) => {
            tracing::warn!("the time is up (--max-runtime or the Slurm job's end): taking no more work");
            shutdown.stop.cancel();
        }
    }
    tokio::time::sleep(grace).await;
    tracing::warn!(
        "what is in hand was not finished within {} (--grace): it goes back to its queue",
        humantime::format_duration(grace)
    );
    shutdown.leave.cancel();
}

async fn sleep_or_never(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
