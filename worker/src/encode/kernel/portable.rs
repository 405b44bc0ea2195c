//! Plain Rust: four table look-ups and one 64-bit write for every four bytes.

use super::super::bits::Cursor;
use super::super::code::BlockCode;
use super::super::runs::Step;
use super::write_match;

/// # Safety
/// The steps cover `bytes`; the cursor has room for the longest codes.
#[inline(always)]
pub(super) unsafe fn write(bytes: &[u8], steps: &[Step], code: &BlockCode, mut cursor: Cursor) -> Cursor {
    // The code above bit 8, its length below: a shift by the whole entry shifts by the length, as
    // the processor takes shift counts modulo 64 and lengths are below that.
    let table: [u32; 256] = std::array::from_fn(|byte| {
        let (bits, len) = code.literal(byte as u8);
        (bits as u32) << 8 | len
    });
    let entry = |byte: u8| u64::from(table[byte as usize]);
    let mut rest = bytes;
    for step in steps {
        let (literals, after) = rest.split_at(step.literals as usize);
        let mut words = literals.chunks_exact(4);
        // SAFETY: the caller's promise.
        unsafe {
            for word in &mut words {
                let (a, b, c, d) = (entry(word[0]), entry(word[1]), entry(word[2]), entry(word[3]));
                let (low, low_len) = pair(a, b);
                let (high, high_len) = pair(c, d);
                cursor.put(low | high.wrapping_shl(low_len), low_len + high_len);
            }
            for &byte in words.remainder() {
                let entry = entry(byte);
                cursor.put(entry >> 8, entry as u32 & 0xff);
            }
            write_match(step, code, &mut cursor);
        }
        rest = &after[step.matched as usize..];
    }
    cursor
}

#[inline(always)]
fn pair(a: u64, b: u64) -> (u64, u32) {
    (a >> 8 | (b >> 8).wrapping_shl(a as u32), (a + b) as u32 & 0xff)
}
