//! The end of a run: what was done, what was not and why, and where to look next.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use common::{
    job::{FailureKind, RunId},
    talk::counted,
};
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
    /// Seed of the shuffle, where there was one.
    pub seed: Option<u64>,
    /// Whether what was cached was computed again.
    pub forced: bool,
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
        RunSummary {
            run,
            bad_lines: 0,
            seed: None,
            forced: false,
            interrupted: false,
            peak_memory: None,
            models: Vec::new(),
        }
    }

    /// Whether everything that failed may succeed when it is tried again.
    pub fn all_retryable(&self) -> bool {
        let kinds = || self.models.iter().flat_map(|m| &m.tally.failures).map(|failure| failure.kind);
        self.bad_lines == 0 && kinds().next().is_some() && kinds().all(|kind| kind == FailureKind::Retryable)
    }

    /// Whether anything failed that the user should look at.
    pub fn any_failed(&self) -> bool {
        self.bad_lines > 0 || self.models.iter().any(|m| m.tally.failed > 0 || m.error.is_some())
    }

    /// The summary as text for a person.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Errors were told as they came. Between several models they are looked for here again.
        let alone = self.models.len() == 1;
        for model in &self.models {
            model.write(&mut out, alone);
        }
        if self.bad_lines > 0 {
            let lines = counted(self.bad_lines as u64, "bad line");
            let _ = writeln!(out, "{lines} in the prompt file left out (listed above)");
        }
        if let (Some(seed), false) = (self.seed, self.interrupted) {
            let _ = writeln!(out, "shuffled with --seed {seed}");
        }
        if self.interrupted {
            out.push_str("stopped before the end: the same command goes on where it stopped");
            if let Some(seed) = self.seed {
                let _ = write!(out, ", with --seed {seed} (the shuffle's)");
            }
            if self.forced {
                out.push_str(", without --force (which computes everything again)");
            }
            out.push('\n');
        }
        out
    }
}

impl ModelSummary {
    /// A model that could not even be planned for.
    pub fn failed(model: &str, error: String) -> Self {
        ModelSummary {
            model: model.to_owned(),
            source: String::new(),
            commit: String::new(),
            prompts: 0,
            cached: 0,
            truncated: 0,
            skipped: 0,
            tally: Tally::default(),
            prepare_seconds: 0.0,
            total_seconds: 0.0,
            directory: PathBuf::new(),
            error: Some(error),
        }
    }

    fn write(&self, out: &mut String, alone: bool) {
        if let (Some(error), "") = (&self.error, self.source.as_str()) {
            if !alone {
                let _ = writeln!(out, "{}: not run: {error}", self.model);
            }
            return;
        }
        let t = &self.tally;
        let wall = Duration::from_secs_f64(self.total_seconds);
        let seconds = |s: f64| format_duration(Duration::from_millis((s * 1e3) as u64)).to_string();
        let size = |bytes: u64| ByteSize(bytes).display().si();
        let _ = writeln!(
            out,
            "{}: {} done, {} cached, {} failed of {} in {}",
            self.model,
            t.done,
            self.cached,
            t.failed,
            counted(self.prompts as u64, "prompt"),
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
            // Only a GPU's kernels are compiled as they are met.
            let warm_up =
                if s.warm_up > 0.0 { format!("warm-up {}, ", seconds(s.warm_up)) } else { String::new() };
            let _ = writeln!(
                out,
                "  prepare {}, load {}, {warm_up}forward {}, waiting {}; beside it on other threads: encode {}, \
                 commit {}",
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
            let _ = writeln!(out, "  failed: {failure}");
        }
        if t.failed > FAILURES_SHOWN {
            let _ = writeln!(
                out,
                "  and {} more failed (--json lists the first hundred)",
                t.failed - FAILURES_SHOWN
            );
        }
        if let (Some(error), false) = (&self.error, alone) {
            let _ = writeln!(out, "  stopped: {error}");
        }
        let _ = writeln!(out, "  files: {}", self.directory.display());
    }
}
