//! Parts of one compressed array that were made apart, and how they become an entry.
//!
//! A piece ends on a whole byte and between blocks, and refers to no byte before it. So pieces made by
//! several threads, in whatever order, are one deflate stream when put one after the other.

use common::capture::Dtype;
use common::npz::{Entry, Method, NpyHeader};

use super::bits::BitWriter;
use super::fixed;

/// One layer's values within an array of several layers.
#[derive(Clone, Debug)]
pub struct Piece {
    pub(super) method: Method,
    pub(super) dtype: Dtype,
    pub(super) n_heads: usize,
    pub(super) n: usize,
    /// Checksum and length of the uncompressed values.
    pub(super) crc: crc32fast::Hasher,
    pub(super) uncompressed_len: u64,
    pub(super) payload: Vec<u8>,
}

/// Joins layers, in their order, into one array of shape `(1, n_layers, n_heads, n, n)`.
///
/// # Panics
/// If there are none, or they differ in shape, dtype or method: they must come from encoders with the
/// same settings and from one prompt.
pub fn stack(name: &str, pieces: Vec<Piece>) -> Entry {
    let first = pieces.first().expect("an array has at least one layer");
    let (method, dtype, n_heads, n) = (first.method, first.dtype, first.n_heads, first.n);
    let header = NpyHeader { dtype, shape: vec![1, pieces.len(), n_heads, n, n] }.to_bytes();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header);
    let mut uncompressed_len = header.len() as u64;
    let total: usize = pieces.iter().map(|piece| piece.payload.len()).sum();
    let mut payload = Vec::with_capacity(header.len() + total + 16);
    match method {
        Method::Deflate => payload = piece_of(&header, payload),
        _ => payload.extend_from_slice(&header),
    }
    for piece in pieces {
        assert_eq!((piece.method, piece.dtype, piece.n_heads, piece.n), (method, dtype, n_heads, n));
        crc.combine(&piece.crc);
        uncompressed_len += piece.uncompressed_len;
        payload.extend_from_slice(&piece.payload);
    }
    if method == Method::Deflate {
        let mut bits = BitWriter::new(payload);
        fixed::write_end(&mut bits);
        bits.align();
        payload = bits.into_bytes();
    }
    Entry { name: name.to_owned(), method, crc32: crc.finalize(), uncompressed_len, payload }
}

fn piece_of(header: &[u8], out: Vec<u8>) -> Vec<u8> {
    let mut bits = BitWriter::new(out);
    fixed::write(&mut bits, header);
    fixed::write_stored(&mut bits, &[]);
    bits.into_bytes()
}
