//! What a person or a script sees of a run: progress while it goes on, a summary at its end.
//!
//! Talk goes to stderr, data (`--json`) to stdout.

pub mod progress;
pub mod summary;
pub mod tally;

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Writes data to stdout. A reader that has seen enough, as `head` has, is no error.
pub fn say(data: impl Display) {
    let mut out = io::stdout().lock();
    let _ = write!(out, "{data}").and_then(|()| out.flush());
}
