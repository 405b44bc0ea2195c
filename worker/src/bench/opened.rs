//! A model opened as a run opens it, for the benches that compute.

use std::time::Duration;

use common::{
    capture::Numerics,
    model::{
        family,
        locate::{fetch_weights, locate_config},
        reference::ModelRef,
        spec::ModelSpec,
    },
    settings::{Run, Settings},
};

use super::{Failed, timing::timed};
use crate::{
    engine::Engine,
    model::{self, device::DeviceChoice},
    run::ComputeOptions,
};

/// A model on its device.
pub(super) struct Opened {
    pub(super) name: String,
    pub(super) spec: ModelSpec,
    /// Where it is: never `auto`.
    pub(super) device: DeviceChoice,
    pub(super) engine: Box<dyn Engine>,
    /// What reading and placing its weights took.
    pub(super) load: Duration,
}

impl Opened {
    /// Opens the model that `run --model` would call `name`, on `device` rather than on the settings' where it is given.
    pub(super) fn open(name: &str, device: Option<&str>, settings: &Settings) -> Result<Opened, Failed> {
        let mut settings = settings.clone();
        if let Some(device) = device {
            settings.run.device = device.to_owned();
        }
        let compute = ComputeOptions::parse(&settings).map_err(Failed::new)?;
        compute.prepare();
        let Run { compute_dtype, matmul_precision, .. } = settings.run;
        let numerics = Numerics { compute_dtype, matmul_precision };
        let hub = settings.hub.options();
        let reference = ModelRef::parse(name, settings.hub.revision.as_deref()).map_err(Failed::new)?;
        let located = locate_config(&reference, &hub, &mut |_| {})?;
        let spec = family::read_spec(&located.dir.join("config.json")).map_err(Failed::new)?;
        let files = fetch_weights(&located, &hub, &mut |_| {})?;
        let dir = files.first().and_then(|file| file.parent()).unwrap_or(&located.dir);
        let device = compute.device.resolve();
        let (engine, load) = timed(|| model::load(dir, &spec, device, numerics, spec.n_layers() - 1));
        Ok(Opened { name: located.name.to_string(), device, engine: engine?, load, spec })
    }
}
