//! What a worker says while it takes jobs, and at its end.

use std::{
    fmt,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use common::{job::FailureKind, queue::rabbitmq::Waiting, settings::Span};
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
    /// Jobs of the namespace that wait for another try, by their wait; null where the broker could not be asked.
    pub waiting: Option<Vec<WaitingRow>>,
    /// Seconds from start to end.
    pub total_seconds: f64,
}

/// Jobs that wait for another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WaitingRow {
    /// How long each of them does.
    pub delay_seconds: u64,
    /// How many do.
    pub jobs: u64,
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
        )?;
        match self.waiting.as_deref().unwrap_or_default() {
            [] => Ok(()),
            rows => write!(f, "; jobs that wait for another try: {}", shown(rows)),
        }
    }
}

fn shown(rows: &[WaitingRow]) -> String {
    let row = |row: &WaitingRow| format!("{} for up to {}", row.jobs, Span::seconds(row.delay_seconds));
    rows.iter().map(row).collect::<Vec<_>>().join(", ")
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
            Event::JobSettled { job, attempt, failures, how, .. } => {
                let count = match how {
                    JobEnd::Over | JobEnd::Refused => &mut self.summary.jobs,
                    JobEnd::HandedBack => &mut self.summary.handed_back,
                    JobEnd::Lost => &mut self.summary.lost,
                    JobEnd::Cancelled => &mut self.summary.cancelled,
                };
                *count += 1;
                for failure in failures {
                    let is_dead = attempt.is_last() || failure.kind != FailureKind::Retryable;
                    let now = if is_dead { " (a dead letter now)" } else { "" };
                    tracing::warn!("job {} of run {}, {attempt}{now}: {}", job.id, job.run, failure.reason);
                    if failure.hash.is_none() {
                        self.summary.tally.fail_all(job.prompts.len(), failure.clone());
                    }
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

    /// Notes what waits for another try, at the end.
    pub(super) fn waiting(&mut self, waiting: Option<Vec<Waiting>>) {
        let row = |wait: &Waiting| WaitingRow { delay_seconds: wait.delay.as_secs(), jobs: wait.jobs };
        self.summary.waiting =
            waiting.map(|waits| waits.iter().filter(|wait| wait.jobs > 0).map(row).collect());
        if let Some(rows @ [_, ..]) = self.summary.waiting.as_deref() {
            tracing::warn!(
                "jobs wait for another try ({}) and are left to the next worker; --wait-for-retries stays for them",
                shown(rows)
            );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_another_try_is_told_at_the_end() {
        let wait =
            |seconds, jobs| Waiting { queue: String::new(), delay: Duration::from_secs(seconds), jobs };
        let mut report = Report::begin();
        report.waiting(Some(vec![wait(30, 2), wait(300, 0), wait(1800, 1)]));
        let summary = report.end();
        assert!(
            summary
                .to_string()
                .ends_with("; jobs that wait for another try: 2 for up to 30s, 1 for up to 30m"),
            "{summary}"
        );
        let mut report = Report::begin();
        report.waiting(Some(vec![wait(30, 0)]));
        let summary = report.end();
        assert!(!summary.to_string().contains("wait"), "{summary}");
        assert_eq!(summary.waiting, Some(Vec::new()));
    }
}
