//! One model's part of a run: plan it, serve it, index it.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use common::{
    capture::Capture,
    exit::Exit,
    intake::{IntakeError, KnownModel, Place, PlaceError, Planned},
    job::ModelPin,
    model::{
        hub::HubOptions,
        locate::{LocateError, LocatedModel, fetch_weights},
        reference::ModelRef,
        spec::ModelSpec,
    },
    prompt::load::LoadError,
    queue::{Publish, memory},
    spool::SpoolError,
    store::StoreError,
};

use super::{ComputeOptions, Options, Run};
use crate::{
    data_directory::DataDirectory,
    model::{
        self,
        device::{DeviceChoice, DeviceError},
    },
    report::{progress::Progress, summary::ModelSummary, tally::Tally},
    serve::{self, Event, Models, OpenError, OpenModel, Scope, ServeError},
};

/// Jobs planned ahead of the model: one computing, one looked up, one waiting.
const JOBS_AHEAD: usize = 3;

/// Why a model's part of a run ended early.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ModelError {
    #[error(transparent)]
    Prompts(#[from] LoadError),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ModelError {
    /// The exit code it leads to.
    pub fn exit(&self) -> Exit {
        match self {
            ModelError::Prompts(_) | ModelError::Place(PlaceError::OtherModel { .. }) => Exit::Configuration,
            ModelError::Intake(IntakeError::Locate(error)) => error.kind().into(),
            ModelError::Intake(IntakeError::Store(error))
            | ModelError::Store(error)
            | ModelError::Place(PlaceError::Store(error)) => error.kind().into(),
            ModelError::Intake(IntakeError::Spool(_)) | ModelError::Spool(_) => Exit::Transient,
            ModelError::Intake(_) => Exit::Configuration,
            ModelError::Device(error) => error.kind().into(),
            ModelError::Serve(error) => error.kind().into(),
        }
    }
}

/// Runs one model. What was done stands in the summary even where an error ended it.
pub(super) fn run(
    run: &mut Run,
    reference: &ModelRef,
    begin: Instant,
) -> Result<(ModelSummary, Option<ModelError>), ModelError> {
    let request = run.request();
    let known = KnownModel::find(&request, reference, &mut |event| event.tell())?;
    if let Some(warning) = known.warning() {
        tracing::warn!("{}: {warning}", known.located.name);
    }
    let files = Place::open(&request, &known, run.options.intake.index_html);
    let path = run.options.intake.prompts.clone().unwrap_or_else(|| files.own_prompts());
    let prompts = run.prompts(&path)?;
    let planned =
        Arc::new(known.plan(&request, prompts, &HashSet::new(), run.options.intake.spool(), |_| {})?);
    let prepared = begin.elapsed();
    if planned.todo() > 0 {
        // Before the directory says what its patterns are computed with: another device may have to do.
        run.options.compute.device.check()?;
    }
    files.begin(&request, &known, run.options.compute.device.torch_name())?;

    let mut tally = Tally::default();
    planned.failures().for_each(|failure| tally.fail(failure));
    let report = planned.report().clone();
    if report.truncated > 0 {
        let n_ctx = known.spec.n_ctx;
        tracing::warn!(
            "{}: {} prompts are longer than {n_ctx} tokens and are cut to it",
            known.located.name,
            report.truncated
        );
    }
    let todo = planned.todo();
    tracing::info!(
        "{} ({} at {}): {} prompts, {} cached, {todo} to compute in {} batches",
        known.located.name,
        known.located.source,
        known.located.commit.get(..12).unwrap_or(&known.located.commit),
        planned.prompts,
        planned.cached,
        planned.batches().len()
    );
    let served = if todo > 0 { serve(run, &known, &planned, &mut tally) } else { Ok(()) };
    // Whatever was committed is indexed, also after an error.
    let error = match (served, files.index()) {
        (Err(error), _) => Some(error),
        (Ok(()), Err(error)) => Some(ModelError::Store(error)),
        (Ok(()), Ok(())) => None,
    };
    let summary = ModelSummary {
        model: known.located.name.to_string(),
        source: known.located.source.clone(),
        commit: known.located.commit.clone(),
        prompts: planned.prompts,
        cached: planned.cached + tally.cached,
        truncated: report.truncated,
        skipped: report.skipped,
        tally,
        prepare_seconds: prepared.as_secs_f64(),
        total_seconds: begin.elapsed().as_secs_f64(),
        directory: files.directory(),
        error: error.as_ref().map(ToString::to_string),
    };
    Ok((summary, error))
}

/// Feeds the planned jobs to the embedded queue and serves it until it is drained or stopped.
fn serve(run: &Run, known: &KnownModel, planned: &Arc<Planned>, tally: &mut Tally) -> Result<(), ModelError> {
    let (mut publisher, consumer) = memory::queue(1);
    let models = RunModels {
        located: known.located.clone(),
        spec: known.spec.clone(),
        hub: run.options.intake.hub.clone(),
        device: run.options.compute.device,
    };
    let feed_error = Arc::new(Mutex::new(None));
    let handle = run.runtime.handle().clone();
    let feed = {
        let (planned, feed_error) = (Arc::clone(planned), Arc::clone(&feed_error));
        run.runtime.spawn_blocking(move || {
            for batch in planned.batches() {
                match planned.job(batch) {
                    // The serving end closes the queue when it stops: nobody wants more.
                    Ok(job) => match handle.block_on(publisher.publish(job)) {
                        Ok(()) => {}
                        Err(memory::Closed) => return,
                    },
                    Err(error) => {
                        *feed_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        return;
                    }
                }
            }
        })
    };
    let mut progress = Progress::new(run.view, known.located.name.as_str(), planned.todo());
    let served = run.runtime.block_on(async {
        let observe = |event: &Event| {
            tally.add(event);
            progress.show(tally);
        };
        let options = pipeline(&run.options);
        let served =
            serve::serve(consumer, models, DataDirectory::default(), &options, run.shutdown.clone(), observe)
                .await;
        // Serving has dropped its end of the queue, so feeding ends too.
        let _ = feed.await;
        served
    });
    progress.finish();
    served?;
    match feed_error.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// How wide the pipeline is on this machine.
fn pipeline(options: &Options) -> serve::Options {
    let batch_bytes = usize::try_from(options.intake.limits.batch_bytes).unwrap_or(usize::MAX);
    pipeline_of(&options.compute, JOBS_AHEAD, batch_bytes)
}

/// A pipeline for batches of so many bytes of patterns.
pub(crate) fn pipeline_of(compute: &ComputeOptions, jobs_ahead: usize, batch_bytes: usize) -> serve::Options {
    let cores = compute.cores();
    serve::Options {
        jobs_ahead,
        batch_bytes,
        // One batch being computed and one being encoded, within what the user gave for one.
        raw_bytes: batch_bytes,
        encoded_bytes: batch_bytes / 2,
        encoders: cores,
        // They wait for fsync, not for a core.
        committers: cores.clamp(4, 16),
        compression: compute.compression,
    }
}

/// Opens the one model of this part of the run.
struct RunModels {
    located: LocatedModel,
    spec: ModelSpec,
    hub: HubOptions,
    device: DeviceChoice,
}

impl Models for RunModels {
    fn open(&mut self, _: &ModelPin, capture: &Capture) -> Result<OpenModel, OpenError> {
        let (n_layers, n_heads) = (self.spec.n_layers(), self.spec.n_heads);
        let files = fetch_weights(&self.located, &self.hub, &mut |event| event.tell()).map_err(refuse)?;
        let dir = files
            .first()
            .and_then(|file| file.parent())
            .map_or_else(|| self.located.dir.clone(), PathBuf::from);
        let highest = capture.layers.indices(n_layers).last().copied().unwrap_or(0);
        let engine =
            model::load(&dir, &self.spec, self.device, capture.numerics, highest).map_err(|error| {
                OpenError { kind: error.kind(), scope: Scope::Worker, reason: error.to_string() }
            })?;
        Ok(OpenModel { engine, n_layers, n_heads })
    }
}

/// The run is about this model alone: where it cannot be opened, there is nothing to go on with.
fn refuse(error: LocateError) -> OpenError {
    OpenError { kind: error.kind(), scope: Scope::Worker, reason: error.to_string() }
}
