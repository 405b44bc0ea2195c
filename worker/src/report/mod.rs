//! What a person or a script sees of a run: progress while it goes on, a summary at its end.
//!
//! Talk goes to stderr, data (`--json`) to stdout.

pub mod progress;
pub mod summary;
pub mod tally;
