//! `worker bench`: what this machine is worth, stage by stage, before a campaign.
//!
//! Each bench but the soak repeats its work for about two seconds and reports the fastest pass: noise of other
//! processes only ever adds.

mod encode;
mod forward;
mod opened;
mod soak;
mod store;
mod timing;

use std::{fmt, path::Path};

use common::{
    exit::Exit, job::FailureKind, model::locate::LocateError, settings::Settings, store::StoreError,
    talk::say,
};
use serde::Serialize;

use crate::{cli::Bench, encode::Sample, model::LoadError};

/// What a bench prints: JSON or a few lines.
trait Report: Serialize {
    /// The report for a person.
    fn text(&self) -> String;
}

/// Why there is nothing to report.
#[derive(Debug)]
struct Failed {
    reason: String,
    exit: Exit,
}

impl Failed {
    /// A failure that the user must do something about.
    fn new(reason: impl fmt::Display) -> Failed {
        Failed::of(FailureKind::Permanent, reason)
    }

    fn of(kind: FailureKind, reason: impl fmt::Display) -> Failed {
        Failed { reason: reason.to_string(), exit: kind.into() }
    }
}

impl From<LocateError> for Failed {
    fn from(error: LocateError) -> Failed {
        Failed::of(error.kind(), error)
    }
}

impl From<LoadError> for Failed {
    fn from(error: LoadError) -> Failed {
        Failed::of(error.kind(), error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Failed {
        Failed::of(error.kind(), error)
    }
}

/// Measures one stage and prints what it found.
pub fn run(bench: &Bench, settings: &Settings) -> Exit {
    let (told, json) = match bench {
        Bench::Encode { files, json } => (encode::measure(files).map(boxed), *json),
        Bench::Store { dir, files, json } => (store::measure(dir, files).map(boxed), *json),
        Bench::Forward { model, device, n, batch_size, json } => {
            (forward::measure(model, device.as_deref(), n, *batch_size, settings).map(boxed), *json)
        }
        Bench::Soak { model, device, batches, batch_size, seed, json } => {
            let plan = soak::Plan { batches: *batches, batch_size: *batch_size, seed: *seed };
            (soak::measure(model, device.as_deref(), plan, settings).map(boxed), *json)
        }
    };
    match told {
        Ok((_, value)) if json => {
            say(format_args!("{value:#}\n"));
            Exit::Done
        }
        Ok((text, _)) => {
            say(format_args!("{text}"));
            Exit::Done
        }
        Err(Failed { reason, exit }) => {
            tracing::error!("{reason}");
            exit
        }
    }
}

fn boxed(report: impl Report) -> (String, serde_json::Value) {
    (report.text(), serde_json::to_value(&report).expect("a report is plain data"))
}

/// Every attention pattern in `file`: one at least.
fn samples(file: &Path) -> Result<Vec<Sample>, Failed> {
    let problem = match Sample::load(file) {
        Ok(samples) if samples.is_empty() => format!("{} holds no arrays", file.display()),
        Ok(samples) => return Ok(samples),
        Err(error) => error.to_string(),
    };
    Err(Failed::new(format_args!("{problem}; give files as a run writes them (PROMPT/activations.npz)")))
}
