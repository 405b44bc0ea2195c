//! What a worker says while it takes jobs, and at its end.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use serde::Serialize;

use crate::{
    report::tally::{Tally, rate},
    serve::{Event, JobEnd},
};

/// How often a line is written.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// What a worker did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConsumeSummary {
    /// Jobs that are over.
    pub jobs: usize,
    /// Jobs given back.
    pub handed_back: usize,
    /// Jobs the broker took back meanwhile; what was done of them stays.
    pub lost: usize,
    /// Jobs of runs that were called off.
    pub cancelled: usize,
    /// Prompts found committed.
    pub cached: usize,
    /// Prompts.
    #[serde(flatten)]
    pub tally: Tally,
    /// Seconds from start to end.
    pub total_seconds: f64,
}

impl fmt::Display for ConsumeSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { done, failed, npz_bytes, .. } = &self.tally;
        let elapsed = Duration::from_secs_f64(self.total_seconds);
        let size = |bytes: u64| ByteSize(bytes).display().si();
        write!(
            f,
            "{} jobs over ({} handed back, {} lost, {} cancelled); prompts: {done} done, {} cached, {failed} failed; \
             {} written, {:.1} prompts/s",
            self.jobs,
            self.handed_back,
            self.lost,
            self.cancelled,
            self.cached,
            size(*npz_bytes),
            rate(*done as f64, elapsed)
        )
    }
}

/// Sums up events and says now and then how things go.
pub(super) struct Report {
    summary: ConsumeSummary,
    begin: Instant,
    line: Instant,
}

impl Report {
    pub(super) fn begin() -> Report {
        let now = Instant::now();
        Report { summary: ConsumeSummary::default(), begin: now, line: now }
    }

    pub(super) fn take(&mut self, event: &Event) {
        self.summary.tally.add(event);
        match event {
            Event::ModelOpened { pin, took } => {
                tracing::info!("{} ({} at {}) is ready after {took:.1?}", pin.name, pin.source, pin.commit);
            }
            Event::JobSettled { job, failures, how, .. } => {
                let count = match how {
                    JobEnd::Over | JobEnd::Refused => &mut self.summary.jobs,
                    JobEnd::HandedBack => &mut self.summary.handed_back,
                    JobEnd::Lost => &mut self.summary.lost,
                    JobEnd::Cancelled => &mut self.summary.cancelled,
                };
                *count += 1;
                for failure in failures {
                    tracing::warn!("job {} of run {}: {}", job.id, job.run, failure.reason);
                }
            }
            _ => {}
        }
        if self.line.elapsed() >= LINE_EVERY {
            self.line = Instant::now();
            self.close();
            tracing::info!("{}", self.summary);
        }
    }

    fn close(&mut self) {
        self.summary.total_seconds = self.begin.elapsed().as_secs_f64();
        self.summary.cached = self.summary.tally.cached;
    }

    pub(super) fn end(mut self) -> ConsumeSummary {
        self.close();
        self.summary
    }
}
