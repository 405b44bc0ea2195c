//! Opening the models that jobs name, exactly: this repository at this commit, or this directory with these files.

use std::path::PathBuf;

use common::{
    capture::Capture,
    job::{FailureKind, ModelPin},
    model::{
        family,
        hub::HubOptions,
        locate::{LocateError, fetch_weights, locate_config},
        reference::{ModelRef, ModelRefError},
    },
};

use crate::{
    model::{self, LoadError, device::DeviceChoice},
    serve::{Models, OpenError, OpenModel, Scope},
};

/// Opens models from the hub cache or from directories.
#[derive(Debug)]
pub struct PinnedModels {
    /// Where they come from.
    pub hub: HubOptions,
    /// Where they run.
    pub device: DeviceChoice,
}

/// A failure that says something of the job, or of this node's model files: others may do better.
fn of_job(kind: FailureKind, reason: String) -> OpenError {
    OpenError { kind, scope: Scope::Job, reason }
}

fn located(error: &LocateError) -> OpenError {
    let kind = match error {
        // The dispatcher fetched it; a node that does not see the shared cache is one of many.
        LocateError::NotCached { .. } => FailureKind::Retryable,
        error => error.kind(),
    };
    of_job(kind, error.to_string())
}

impl Models for PinnedModels {
    fn open(&mut self, pin: &ModelPin, capture: &Capture) -> Result<OpenModel, OpenError> {
        let permanent = |reason: String| of_job(FailureKind::Permanent, reason);
        let reference = ModelRef::pinned(pin).map_err(|error| match error {
            // A node that lacks a mount is one of many.
            ModelRefError::NoSuchDirectory { path } => of_job(
                FailureKind::Retryable,
                format!("this machine does not see the model's directory {path}; mount it where workers run"),
            ),
            error => permanent(error.to_string()),
        })?;
        let found = locate_config(&reference, &self.hub, &mut |event| event.tell())
            .map_err(|error| located(&error))?;
        if found.commit != pin.commit {
            return Err(permanent(format!(
                "the job is for {} as {}, and here that directory holds {}: its files changed since it was \
                 enqueued; enqueue again",
                pin.source, pin.commit, found.commit
            )));
        }
        let spec = family::read_spec(&found.dir.join("config.json"))
            .map_err(|error| permanent(error.to_string()))?;
        let files =
            fetch_weights(&found, &self.hub, &mut |event| event.tell()).map_err(|error| located(&error))?;
        let dir = files.first().and_then(|file| file.parent()).map_or(found.dir, PathBuf::from);
        let (n_layers, n_heads) = (spec.n_layers(), spec.n_heads);
        let highest = capture.layers.indices(n_layers).last().copied().unwrap_or(0);
        let engine = model::load(&dir, &spec, self.device, capture.numerics, highest);
        let engine = engine.map_err(|error| match error {
            // Another worker has another device.
            LoadError::Device(_) => {
                OpenError { kind: error.kind(), scope: Scope::Worker, reason: error.to_string() }
            }
            error => permanent(error.to_string()),
        })?;
        Ok(OpenModel { engine, n_layers, n_heads })
    }
}
