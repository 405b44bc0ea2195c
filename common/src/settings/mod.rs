//! Settings: defaults, then the configuration file, then the environment, then flags; each says where it
//! came from.
//!
//! Owns what can be set, reading it and showing it. What a setting means is its reader's.

mod flags;
mod load;
mod secret;
mod show;
mod span;
mod suggest;
mod tree;

pub use self::{
    flags::Flags,
    load::{FILE_NAME, FILE_VARIABLE, Loaded, Origin, SettingsError, Sources, load},
    secret::{BrokerUrl, REDACTED, Secret},
    show::Row,
    span::Span,
    tree::{Consume, Enqueue, Hub, Log, LogFormat, Queue, Run, Settings},
};

/// The configuration file with every setting at its default and commented out: its own documentation.
pub const DEFAULT_FILE: &str = include_str!("../../../deploy/lenspool.toml");

#[cfg(test)]
mod tests;
