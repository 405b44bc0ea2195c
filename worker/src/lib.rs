//! lenspool's worker: takes jobs, runs the model, keeps the attention patterns.

pub mod bench;
pub mod cli;
pub mod consume;
pub mod data_directory;
pub mod encode;
pub mod engine;
pub mod inspect;
pub mod model;
pub mod report;
pub mod run;
pub mod serve;
mod signals;
