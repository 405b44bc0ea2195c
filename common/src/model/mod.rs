//! Models: which one is meant, where its files are, what it is in numbers, which tensors it is made of.

pub mod alias;
pub mod card;
pub mod family;
pub mod hub;
pub mod locate;
pub mod name;
pub mod reference;
pub mod spec;
pub mod weights;
