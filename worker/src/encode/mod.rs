//! Attention patterns to npz entries: standard deflate, written by an encoder that knows what it is given.
//!
//! # What the bytes are
//! One layer of one prompt is `n_heads` matrices of `n` by `n` float32 numbers. Above the diagonal they are
//! zero (a query sees no later key), and under a window zero on the left as well. The rest is softmax output:
//! sign and exponent take few values, the mantissa's low bits are noise. No two values are equal, so a
//! search for repeats, on which general encoders spend their time, finds next to nothing.
//!
//! # What is written
//! Deflate (RFC 1951) with only the repeats there are: the value before, again (`runs`). Everything else is
//! a literal in a Huffman code made for its block ([`blocks`], [`code`], [`prefix_code`]); the loop that looks
//! codes up and packs them is all that touches every byte ([`kernel`]).
//!
//! Some data repeat more, and a few values of each head tell ([`repeats`]). Where rows repeat rows above (equal
//! heads, position biases alone), matches with those are looked for as well ([`rows`]). Where values repeat anywhere
//! (rounded to half precision, one-hot heads, zeros), the segments also go through zlib's algorithm
//! ([`general`]), and the shorter is kept ([`blocks`]). That costs what a search costs, only for the heads
//! concerned. What the sample does not show is written as everything else: correctly, and possibly larger
//! than by zlib.
//!
//! # Why that is safe
//! - The output is plain deflate in a plain zip: blocks of every kind the format has, and nothing else. Any
//!   inflater reads it; window and distances stay within what the oldest readers take.
//! - Nothing is assumed about the values. Runs are found by comparing bits, so a pattern without a mask, with
//!   NaN, infinities or negative zeros is written as exactly and only compresses differently.
//! - The checksum is taken from the values' bytes, not from what the encoder thinks of them: a reader notices
//!   if the encoder were ever wrong.
//! - The same values from the same layout in memory give the same bytes, whatever the processor. There are three
//!   kernels, plain Rust, BMI2 and AVX-512; tests compare bit by bit those that the processor runs.
//!
//! # float16
//! `Dtype::Float16` rounds to nearest, ties to even. For patterns, which lie in `[0, 1]`, the error is at most
//! `2^-11` of the value (0.05 %) from `2^-14` up and at most `2^-25` (3e-8) below. Readers get float16 arrays.

mod bits;
mod blocks;
mod code;
mod compression;
mod encoder;
mod fixed;
mod frequencies;
mod general;
mod header;
mod kernel;
mod literals;
mod pattern;
mod prefix_code;
mod repeats;
mod rows;
mod runs;
mod sample;
mod tables;
mod values;

pub use compression::{Compression, UnknownCompression, ZlibLevel};
pub use encoder::Encoder;
pub use pattern::PatternView;
pub use sample::{Sample, SampleError};

#[cfg(test)]
mod tests;
