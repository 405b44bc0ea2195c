//! Waiting for something another process does, bounded, with the last state told when it does not come.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Calls `look` until it is content and returns what it found; panics after `limit` with what it said last.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if begin.elapsed() > limit => {
                panic!("waited {limit:?} for {what}; last: {state}")
            }
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}
