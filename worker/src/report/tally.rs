//! What a run has done so far, in numbers: pure sums over the pipeline's events.

use std::time::Duration;

use common::job::Failure;
use serde::Serialize;

use crate::serve::{Event, PromptEnd};

/// Failures kept with their reasons; beyond it they are only counted.
const FAILURES_KEPT: usize = 100;

/// The sums of one model's run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Prompts computed and committed.
    pub done: usize,
    /// Prompts found committed by a worker's last look. The summary adds them to those found before.
    #[serde(skip)]
    pub cached: usize,
    /// Prompts that failed.
    pub failed: usize,
    /// Prompts not begun or interrupted.
    pub unfinished: usize,
    /// The first failures, with reasons.
    pub failures: Vec<Failure>,
    /// Tokens of the prompts done.
    pub tokens: usize,
    /// Bytes of npz files written.
    pub npz_bytes: u64,
    /// Bytes of raw patterns those hold.
    pub raw_bytes: u64,
    /// Longest sequence of the batch being computed: nothing that a summary could tell.
    #[serde(skip)]
    pub n_ctx: usize,
    /// Where the time went.
    pub seconds: StageSeconds,
}

/// Seconds by stage. Stages overlap: their sum is more than the run's wall-clock time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StageSeconds {
    /// Reading weights and placing them on the device.
    pub load: f64,
    /// Compiling and tuning kernels for shapes of batches not seen before.
    pub warm_up: f64,
    /// Computing and reading back.
    pub forward: f64,
    /// Waiting for encoders or the disk.
    pub wait: f64,
    /// Encoding, summed over threads.
    pub encode: f64,
    /// Writing and syncing, summed over threads.
    pub commit: f64,
}

impl Tally {
    /// Adds one event.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::ModelOpened { took, .. } => self.seconds.load += took.as_secs_f64(),
            Event::WarmedUp { took } => self.seconds.warm_up += took.as_secs_f64(),
            Event::BatchBegan { n_ctx, .. } => self.n_ctx = *n_ctx,
            Event::BatchEnded { forward, waited, .. } => {
                self.seconds.forward += forward.as_secs_f64();
                self.seconds.wait += waited.as_secs_f64();
            }
            Event::PromptEnded { end, written } => {
                match end {
                    PromptEnd::Committed => self.done += 1,
                    PromptEnd::Cached => self.cached += 1,
                    PromptEnd::Unfinished => self.unfinished += 1,
                    PromptEnd::Failed(failure) => self.fail(failure.clone()),
                }
                if let Some(written) = written {
                    self.tokens += written.tokens;
                    self.npz_bytes += written.npz_bytes;
                    self.raw_bytes += written.raw_bytes;
                    self.seconds.encode += written.encode.as_secs_f64();
                    self.seconds.commit += written.commit.as_secs_f64();
                }
            }
            Event::JobSettled { .. } => {}
        }
    }

    /// Counts a prompt that failed, here or before it became a job.
    pub fn fail(&mut self, failure: Failure) {
        self.fail_all(1, failure);
    }

    /// Counts prompts that failed together.
    pub fn fail_all(&mut self, prompts: usize, failure: Failure) {
        self.failed += prompts;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(failure);
        }
    }

    /// Prompts that ended for good.
    pub fn ended(&self) -> usize {
        self.done + self.cached + self.failed
    }
}

/// `amount` a second over `elapsed`, 0 before the clock has moved.
pub fn rate(amount: f64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}
