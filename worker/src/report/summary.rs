//! The end of a run: what was done, what was not and why, and where to look next.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use common::job::RunId;
use humantime::format_duration;
use serde::Serialize;

use super::tally::{Tally, rate};

/// Failures shown to a person; a script gets all that were kept.
const FAILURES_SHOWN: usize = 10;

/// One model's part of a run.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSummary {
    /// Directory name of the model.
    pub model: String,
    /// Repository or directory it came from, and the commit.
    pub source: String,
    /// The resolved commit.
    pub commit: String,
    /// Prompts the input gave.
    pub prompts: usize,
    /// Prompts that were committed already, when the run began or when their turn came.
    pub cached: usize,
    /// Prompts cut to the model's context.
    pub truncated: usize,
    /// Prompts left out because they are longer than the model's context.
    pub skipped: usize,
    /// What the pipeline did.
    #[serde(flatten)]
    pub tally: Tally,
    /// Reading and tokenizing prompts and looking at what is cached, in seconds.
    pub prepare_seconds: f64,
    /// Wall-clock seconds for this model.
    pub total_seconds: f64,
    /// Where its files are.
    pub directory: PathBuf,
    /// Why the run of this model ended early, where it did.
    pub error: Option<String>,
}

/// A whole `worker run`.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// The run's id.
    pub run: RunId,
    /// Lines of the prompt file that could not be read.
    pub bad_lines: usize,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Highest resident memory of the process, in bytes.
    pub peak_memory: Option<u64>,
    /// The models, in the order they ran.
    pub models: Vec<ModelSummary>,
}

impl RunSummary {
    /// The summary of a run that has done nothing yet.
    pub fn new(run: RunId) -> Self {
        RunSummary { run, bad_lines: 0, interrupted: false, peak_memory: None, models: Vec::new() }
    }

    /// Whether anything failed that the user should look at.
    pub fn any_failed(&self) -> bool {
        self.bad_lines > 0 || self.models.iter().any(|m| m.tally.failed > 0 || m.error.is_some())
    }

    /// The summary as text for a person.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for model in &self.models {
            model.write(&mut out);
        }
        if self.bad_lines > 0 {
            let _ =
                writeln!(out, "{} bad lines in the prompt file were left out (listed above)", self.bad_lines);
        }
        if self.interrupted {
            out.push_str("stopped before the end: the same command goes on where it stopped\n");
        }
        out
    }
}

impl ModelSummary {
    fn write(&self, out: &mut String) {
        let t = &self.tally;
        let wall = Duration::from_secs_f64(self.total_seconds);
        let seconds = |s: f64| format_duration(Duration::from_millis((s * 1e3) as u64)).to_string();
        let size = |bytes: u64| ByteSize(bytes).display().si();
        let _ = writeln!(
            out,
            "{}: {} done, {} cached, {} failed of {} prompts in {}",
            self.model,
            t.done,
            self.cached,
            t.failed,
            self.prompts,
            seconds(self.total_seconds)
        );
        if t.done > 0 {
            let _ = writeln!(
                out,
                "  {} written ({} of patterns), {:.1} prompts/s, {:.0} tokens/s",
                size(t.npz_bytes),
                size(t.raw_bytes),
                rate(t.done as f64, wall),
                rate(t.tokens as f64, wall)
            );
            let s = &t.seconds;
            let _ = writeln!(
                out,
                "  prepare {}, load {}, forward {}, waiting {}; beside it on other threads: encode {}, commit {}",
                seconds(self.prepare_seconds),
                seconds(s.load),
                seconds(s.forward),
                seconds(s.wait),
                seconds(s.encode),
                seconds(s.commit)
            );
        }
        if self.truncated + self.skipped > 0 {
            let _ = writeln!(
                out,
                "  longer than the model's context: {} cut to it, {} left out (--on-too-long chooses)",
                self.truncated, self.skipped
            );
        }
        for failure in t.failures.iter().take(FAILURES_SHOWN) {
            let _ = writeln!(out, "  failed: {}", failure.reason);
        }
        if t.failed > FAILURES_SHOWN {
            let _ = writeln!(out, "  and {} more failed (--json lists them)", t.failed - FAILURES_SHOWN);
        }
        if let Some(error) = &self.error {
            let _ = writeln!(out, "  stopped: {error}");
        }
        let _ = writeln!(out, "  files: {}", self.directory.display());
    }
}
