//! Blocks without a code of their own (RFC 1951, 3.2.4 and 3.2.6): the fixed code for the npy header, which
//! is too short and too unlike the values to share theirs; stored blocks for what no code makes shorter.

use super::bits::BitWriter;
use super::tables::{LENGTH_CODES, LONGEST_MATCH};

/// Bytes a stored block holds at most.
pub(crate) const LONGEST_STORED: usize = u16::MAX as usize;

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

/// Writes an empty last block, to a whole byte.
pub(crate) fn write_end(bits: &mut BitWriter) {
    bits.put(1, 1);
    bits.put(0b01, 2);
    symbol(bits, 256);
    bits.align();
}

/// Writes an empty block that ends on a whole byte (zlib's `Z_SYNC_FLUSH`): more may follow.
pub(crate) fn write_boundary(bits: &mut BitWriter) {
    stored(bits, &[]);
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

/// Writes `bytes` as they are, in blocks none of which is the stream's last.
pub(crate) fn write_stored(bits: &mut BitWriter, bytes: &[u8]) {
    bytes.chunks(LONGEST_STORED).for_each(|chunk| stored(bits, chunk));
}

fn stored(bits: &mut BitWriter, bytes: &[u8]) {
    let len = bytes.len() as u16;
    bits.put(0b000, 3);
    bits.align();
    bits.put(u64::from(len) | u64::from(!len) << 16, 32);
    bits.bytes(bytes);
}
