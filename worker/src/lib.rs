//! lenspool's worker: takes jobs, runs the model, keeps the attention patterns.


pub mod data_directory;
pub mod encode;
pub mod engine;
pub mod exit;
pub mod model;
pub mod report;
pub mod serve;
