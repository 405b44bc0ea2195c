//! A stream of bits, least significant first, as deflate wants it.
//!
//! Owns the output bytes and the bits not yet written. The block writers know how many bits a block
//! can take at most, ask for that room once ([`BitWriter::reserve`]) and then write without checks
//! through a [`Cursor`].

/// Bits on their way into a byte vector.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    out: Vec<u8>,
    /// Bits not yet in `out`, the oldest lowest; zero above `held`.
    acc: u64,
    /// How many bits `acc` holds: below 8 between calls.
    held: u32,
}

impl BitWriter {
    /// Continues `out`, whose bytes stay as they are.
    pub(crate) fn new(out: Vec<u8>) -> Self {
        BitWriter { out, acc: 0, held: 0 }
    }

    /// Appends the lowest `len` bits of `bits`; `len` at most 56, the bits above `len` zero.
    pub(crate) fn put(&mut self, bits: u64, len: u32) {
        debug_assert!(len <= 56 && bits >> len == 0);
        self.acc |= bits << self.held;
        self.held += len;
        let whole = (self.held / 8) as usize;
        self.out.extend_from_slice(&self.acc.to_le_bytes()[..whole]);
        self.acc >>= 8 * whole;
        self.held %= 8;
    }

    /// Fills up the last byte with zero bits.
    pub(crate) fn align(&mut self) {
        self.put(0, (8 - self.held) % 8);
    }

    /// Appends whole bytes; only between bytes (after [`BitWriter::align`]).
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        assert_eq!(self.held, 0, "whole bytes follow whole bytes");
        self.out.extend_from_slice(bytes);
    }

    /// Whole bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// Writes `bytes` over all from byte `start` on; only between bytes.
    pub(crate) fn replace(&mut self, start: usize, bytes: &[u8]) {
        assert_eq!(self.held, 0, "whole bytes follow whole bytes");
        self.out.truncate(start);
        self.out.extend_from_slice(bytes);
    }

    /// Makes room for `bytes` more bytes, and eight for the last unaligned word.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes + 8);
    }

    /// Gives the bytes back; the stream must end on a whole byte.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        assert_eq!(self.held, 0, "the stream ends inside a byte");
        self.out
    }

    /// Writes through `body` without bounds checks.
    ///
    /// # Safety
    /// `body` must not write more bits in all than the bytes reserved since the last write hold, and must
    /// give back the cursor it was given.
    #[inline(always)]
    pub(crate) unsafe fn unchecked(&mut self, body: impl FnOnce(Cursor) -> Cursor) {
        let start = self.out.as_mut_ptr();
        // SAFETY: `len` is within the vector's allocation.
        let cursor = Cursor { at: unsafe { start.add(self.out.len()) }, acc: self.acc, held: self.held };
        let cursor = body(cursor);
        (self.acc, self.held) = (cursor.acc, cursor.held);
        // SAFETY: the cursor only moves forward, from within the allocation, over bytes it has written,
        // and by the caller's promise stays inside the reserved room.
        unsafe {
            let len = cursor.at.offset_from(start) as usize;
            debug_assert!(len + 8 <= self.out.capacity());
            self.out.set_len(len);
        }
    }
}

/// The unchecked end of a [`BitWriter`], passed by value so that it stays in registers while a block is
/// written.
#[derive(Debug)]
pub(crate) struct Cursor {
    at: *mut u8,
    acc: u64,
    held: u32,
}

impl Cursor {
    /// The same, in a place of its own.
    #[inline(always)]
    pub(crate) fn copied(self) -> Self {
        let Cursor { at, acc, held } = self;
        Cursor { at, acc, held }
    }

    /// Appends `len` bits, at most 56; the bits above `len` must be zero.
    ///
    /// # Safety
    /// Eight bytes from the current position on must be inside the reserved room.
    #[inline(always)]
    pub(crate) unsafe fn put(&mut self, bits: u64, len: u32) {
        debug_assert!(len <= 56 && bits >> len == 0);
        self.acc |= bits << self.held;
        let held = self.held + len;
        // SAFETY: the caller's promise. A word is written, `held / 8` of its bytes are kept.
        unsafe {
            self.at.cast::<[u8; 8]>().write_unaligned(self.acc.to_le_bytes());
            self.at = self.at.add((held / 8) as usize);
        }
        // `held` is at most 7 + 56 = 63: below 64, its whole bytes are bits 3 to 5.
        self.acc >>= held & 56;
        self.held = held & 7;
    }

    /// Bits of the last byte written so far: below 8.
    #[inline(always)]
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Appends the first `count` of sixteen words that are already shifted to their bits.
    ///
    /// Word `i` is at `words[slot(i)]`, begins in byte `bytes[i]` from the current one on and ends after
    /// `ends[i]` bits, those held not counted; each but the first contains the bits its first byte
    /// shares with the word before.
    ///
    /// # Safety
    /// `count` is not 0, and 8 bytes from `bytes[i]` on are inside the reserved room for all sixteen.
    #[inline(always)]
    pub(crate) unsafe fn put_placed(
        &mut self,
        words: &[u64; 16],
        slot: impl Fn(usize) -> usize,
        bytes: &[u32; 16],
        ends: &[u32; 16],
        count: usize,
    ) {
        let first = words[slot(0)] | self.acc;
        // SAFETY: the caller's promise. Words past `count` write what the next put overwrites.
        unsafe {
            self.at.cast::<[u8; 8]>().write_unaligned(first.to_le_bytes());
            for index in 1..16 {
                let at = self.at.add(bytes[index] as usize);
                at.cast::<[u8; 8]>().write_unaligned(words[slot(index)].to_le_bytes());
            }
            let last = count - 1;
            let word = if last == 0 { first } else { words[slot(last)] };
            let end = self.held + ends[last];
            self.at = self.at.add((end / 8) as usize);
            self.acc = word >> (8 * (end / 8 - bytes[last]));
            self.held = end & 7;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_land_lowest_first_by_both_ways() {
        let fields =
            [(1u64, 1u32), (0, 3), (0x2a, 6), (0x1ff, 9), (0, 0), (0xdead_beef, 32), (1 << 55, 56), (5, 3)];
        let mut slow = BitWriter::default();
        let mut fast = BitWriter::default();
        for &(bits, len) in &fields {
            slow.put(bits, len);
        }
        fast.reserve(64);
        // SAFETY: 110 bits are fewer than 64 bytes hold.
        unsafe {
            fast.unchecked(|mut cursor| {
                for &(bits, len) in &fields {
                    cursor.put(bits, len);
                }
                cursor
            });
        }
        slow.align();
        fast.align();
        let bytes = slow.into_bytes();
        assert_eq!(bytes, fast.into_bytes());
        let mut expected = 0u128;
        let mut at = 0;
        for (bits, len) in fields {
            expected |= u128::from(bits) << at;
            at += len;
        }
        assert_eq!(bytes, expected.to_le_bytes()[..at.div_ceil(8) as usize]);
    }
}
