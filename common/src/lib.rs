//! The vocabulary and the contracts every part of lenspool shares. No tensor library lives here,
//! so the dispatcher builds in a minute on a login node.
//!
//! One direction: JSONL line -> [`prompt::Prompt`] -> [`tokenize`] -> [`plan`] -> [`job::Job`] ->
//! [`queue`] -> (worker: patterns -> npz bytes) -> [`store`]. A stage takes the previous noun and
//! gives the next; nothing calls back upstream.

pub mod capture;
pub mod exit;
pub mod flags;
pub mod intake;
pub mod job;
pub mod model;
pub mod npz;
pub mod plan;
pub mod prompt;
pub mod queue;
pub mod selection;
pub mod settings;
pub mod spool;
pub mod store;
pub mod talk;
pub mod tokenize;
