//! lenspool's worker: takes jobs, runs the model, keeps the attention patterns.

pub mod encode;
pub mod engine;
pub mod model;
