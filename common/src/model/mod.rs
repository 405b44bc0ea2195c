//! Models: which one is meant, what it is in numbers, which tensors it is made of.

pub mod family;
pub mod spec;
pub mod weights;
