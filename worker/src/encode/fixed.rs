//! A block in deflate's fixed code (RFC 1951, 3.2.6): for the npy header, which is too short and too
//! unlike the values to share their code.

use super::bits::BitWriter;
use super::tables::{LENGTH_CODES, LONGEST_MATCH};

/// Equal bytes worth a match with the byte before.
const SHORTEST_RUN: usize = 4;

/// Writes `bytes` as one block, not the stream's last; runs of equal bytes (the header's padding) as
/// matches.
pub(crate) fn write(bits: &mut BitWriter, bytes: &[u8]) {
    bits.put(0, 1);
    bits.put(0b01, 2);
    let mut rest = bytes;
    while let Some(&byte) = rest.first() {
        symbol(bits, byte.into());
        let run = rest.iter().take(LONGEST_MATCH as usize + 1).take_while(|&&b| b == byte).count();
        if run > SHORTEST_RUN {
            let code = LENGTH_CODES[run - 1];
            symbol(bits, code.symbol);
            bits.put(code.extra.into(), code.extra_bits.into());
            // Distance 1: symbol 0, five bits, no extra ones.
            bits.put(0, 5);
            rest = &rest[run..];
        } else {
            rest = &rest[1..];
        }
    }
    symbol(bits, 256);
}

/// Writes an empty last block.
pub(crate) fn write_end(bits: &mut BitWriter) {
    bits.put(1, 1);
    bits.put(0b01, 2);
    symbol(bits, 256);
}

/// Codes are defined highest bit first, the stream is lowest bit first.
fn symbol(bits: &mut BitWriter, symbol: u16) {
    let (code, len) = match symbol {
        0..=143 => (0b0011_0000 + symbol, 8),
        144..=255 => (0b1_1001_0000 + symbol - 144, 9),
        256..=279 => (symbol - 256, 7),
        _ => (0b1100_0000 + symbol - 280, 8),
    };
    bits.put((code.reverse_bits() >> (16 - len)).into(), len);
}

/// Writes an empty stored block, which ends on a whole byte (zlib's `Z_SYNC_FLUSH`).
pub(crate) fn write_boundary(bits: &mut BitWriter) {
    bits.put(0, 3);
    bits.align();
    bits.put(0xffff_0000, 32);
}
