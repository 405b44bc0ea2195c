//! How work is timed, the same for every bench.

use std::time::{Duration, Instant};

/// How long a measurement goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// Fewest passes of a measurement.
const PASSES: usize = 3;

/// What `work` gives, and how long it took.
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

/// The fastest of several passes of `work`, after one to warm up.
pub(super) fn fastest(mut work: impl FnMut()) -> Duration {
    work();
    let begin = Instant::now();
    let mut best = Duration::MAX;
    let mut passes = 0;
    while passes < PASSES || begin.elapsed() < PATIENCE {
        best = best.min(timed(&mut work).1);
        passes += 1;
    }
    best
}

/// Megabytes (10^6 bytes) a second.
pub(super) fn mb_per_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}
