//! What an enqueue did, for a person and for a script.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use bytesize::ByteSize;
use common::{
    intake::{KnownModel, Planned},
    job::{Failure, RunId},
    talk::counted,
};
use serde::Serialize;

use crate::publish::Published;

/// Failures kept with their reasons; beyond it they are only counted.
const FAILURES_KEPT: usize = 100;
/// Failures shown to a person.
const FAILURES_SHOWN: usize = 10;

/// One model's part.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelSummary {
    /// Directory name of the model.
    pub model: String,
    /// The run its jobs belong to: an earlier one's where that was interrupted.
    pub run: Option<RunId>,
    /// Repository or directory.
    pub source: String,
    /// The resolved commit.
    pub commit: String,
    /// Prompts the input gave.
    pub prompts: usize,
    /// Prompts committed already.
    pub cached: usize,
    /// Prompts the broker had already, from an interrupted enqueue.
    pub published_before: usize,
    /// Prompts cut to the model's context.
    pub truncated: usize,
    /// Prompts left out because they are longer than the model's context.
    pub skipped: usize,
    /// Prompts to publish, and the batches they make.
    pub planned: usize,
    /// Batches planned now.
    pub batches: usize,
    /// Prompts published now and confirmed.
    pub published: usize,
    /// Bytes of their messages.
    pub bytes: u64,
    /// Jobs of the run that the broker confirmed, earlier ones included.
    pub jobs: usize,
    /// Tokens of the planned prompts.
    pub tokens: u64,
    /// Prompts that could not be planned or published.
    pub failed: usize,
    /// The first of them, with reasons.
    pub failures: Vec<Failure>,
    /// Seconds of reading, looking and tokenizing.
    pub prepare_seconds: f64,
    /// Seconds in all.
    pub total_seconds: f64,
    /// Why it ended early, where it did.
    pub error: Option<String>,
}

impl ModelSummary {
    /// A model that could not be enqueued.
    pub fn failed(model: &str, error: String) -> Self {
        ModelSummary { model: model.to_owned(), error: Some(error), ..ModelSummary::default() }
    }

    /// A model whose jobs are planned.
    pub fn planned(run: &RunId, known: &KnownModel, planned: &Planned, prepared: Duration) -> Self {
        let report = planned.report();
        let mut summary = ModelSummary {
            model: known.located.name.to_string(),
            run: Some(run.clone()),
            source: known.located.source.clone(),
            commit: known.located.commit.clone(),
            prompts: planned.prompts,
            cached: planned.cached,
            published_before: planned.published,
            truncated: report.truncated,
            skipped: report.skipped,
            planned: planned.todo(),
            batches: planned.batches().len(),
            tokens: report.tokens,
            prepare_seconds: prepared.as_secs_f64(),
            ..ModelSummary::default()
        };
        planned.failures().for_each(|failure| summary.fail(failure));
        summary
    }

    /// Counts a prompt that failed.
    fn fail(&mut self, failure: Failure) {
        self.failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(failure);
        }
    }

    /// Notes what was published.
    pub fn publish(&mut self, published: Published) {
        self.published = published.prompts;
        self.bytes = published.bytes;
        self.jobs = published.jobs;
        published.failures.into_iter().for_each(|failure| self.fail(failure));
    }

    /// The same at its end.
    pub fn ended(mut self, elapsed: Duration) -> Self {
        self.total_seconds = elapsed.as_secs_f64();
        self
    }

    fn write(&self, dry_run: bool, alone: bool, out: &mut String) {
        if let Some(error) = &self.error {
            if !alone {
                let _ = writeln!(out, "{}: not enqueued: {error}", self.model);
            }
            return;
        }
        let prompts = counted(self.prompts as u64, "prompt");
        let _ = write!(out, "{}: {prompts}, {} cached", self.model, self.cached);
        for (count, what) in [
            (self.published_before, "published before"),
            (self.truncated, "cut to the model's context"),
            (self.skipped, "over-long and left out"),
            (self.failed, "failed"),
        ] {
            if count > 0 {
                let _ = write!(out, ", {count} {what}");
            }
        }
        if dry_run {
            let jobs = counted(self.batches as u64, "job");
            let _ = writeln!(out, "; would publish {} in {jobs}", self.planned);
        } else {
            let publishing = self.total_seconds - self.prepare_seconds;
            let rate = if publishing > 0.0 { self.published as f64 / publishing } else { 0.0 };
            let _ = writeln!(
                out,
                "; published {} in {} ({rate:.0} prompts/s, after {:.1} s of reading and tokenizing)",
                self.published,
                ByteSize(self.bytes).display().si(),
                self.prepare_seconds
            );
            if let (Some(run), true) = (&self.run, self.jobs > 0) {
                let _ = writeln!(
                    out,
                    "  run {run}: {}; `dispatcher watch --run {run}` follows it",
                    counted(self.jobs as u64, "job")
                );
            }
        }
        for failure in self.failures.iter().take(FAILURES_SHOWN) {
            let _ = writeln!(out, "  failed: {failure}");
        }
        if self.failed > FAILURES_SHOWN {
            let _ = writeln!(out, "  and {} more", self.failed - FAILURES_SHOWN);
        }
    }
}

/// A whole enqueue.
#[derive(Clone, Debug, Serialize)]
pub struct EnqueueSummary {
    /// The run that was begun; a model of an interrupted one names that.
    pub run: RunId,
    /// Whether nothing was published on purpose.
    pub dry_run: bool,
    /// Lines of the prompt file that could not be read.
    pub bad_lines: usize,
    /// Seed of the shuffle, where there was one.
    pub seed: Option<u64>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// Highest resident memory of the process, in bytes.
    pub peak_memory: Option<u64>,
    /// The models.
    pub models: Vec<ModelSummary>,
}

impl EnqueueSummary {
    /// The summary of a run of which nothing is done.
    pub fn new(run: RunId, dry_run: bool) -> Self {
        EnqueueSummary {
            run,
            dry_run,
            bad_lines: 0,
            seed: None,
            interrupted: false,
            peak_memory: None,
            models: Vec::new(),
        }
    }

    /// The runs that have jobs.
    pub fn runs(&self) -> impl Iterator<Item = &RunId> {
        let with_jobs = self.models.iter().filter(|model| model.jobs > 0);
        with_jobs.filter_map(|model| model.run.as_ref()).collect::<BTreeSet<_>>().into_iter()
    }

    /// Whether anything failed that the user should look at.
    pub fn any_failed(&self) -> bool {
        self.bad_lines > 0 || self.models.iter().any(|model| model.failed > 0 || model.error.is_some())
    }

    /// The summary for a person.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Errors were told as they came. Between several models they are looked for here again.
        let alone = self.models.len() == 1;
        self.models.iter().for_each(|model| model.write(self.dry_run, alone, &mut out));
        if self.bad_lines > 0 {
            let lines = counted(self.bad_lines as u64, "bad line");
            let _ = writeln!(out, "{lines} in the prompt file left out (listed above)");
        }
        if self.interrupted {
            out.push_str("interrupted: the same command goes on from here");
            if let Some(seed) = self.seed {
                let _ = write!(out, ", with --seed {seed} (the shuffle's)");
            }
            out.push('\n');
        } else if let Some(seed) = self.seed {
            let _ = writeln!(out, "shuffled with --seed {seed}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_again_between_models_alone_and_seeds_always() {
        let mut summary = EnqueueSummary::new(RunId("r".to_owned()), false);
        summary.models.push(ModelSummary::failed("gpt2", "it is not there".to_owned()));
        assert_eq!(summary.text(), "");
        let other = ModelSummary { model: "pythia".to_owned(), prompts: 1, cached: 1, ..Default::default() };
        summary.models.push(other);
        summary.bad_lines = 1;
        summary.seed = Some(7);
        let text = summary.text();
        assert!(
            text.starts_with(
                "gpt2: not enqueued: it is not there\npythia: 1 prompt, 1 cached; published 0 in "
            ),
            "{text}"
        );
        assert!(
            text.ends_with(
                "\n1 bad line in the prompt file left out (listed above)\nshuffled with --seed 7\n"
            ),
            "{text}"
        );
        summary.interrupted = true;
        assert!(summary.text().ends_with("goes on from here, with --seed 7 (the shuffle's)\n"));
    }
}
