//! Settings: defaults, then the configuration file, then the environment, then flags.

mod secret;

pub use secret::{REDACTED, Secret};
