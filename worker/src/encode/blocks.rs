//! From values to deflate blocks: where one block ends and the next, with its own code, begins.
//!
//! The array comes in segments (a head, some heads, or some rows of one). A segment joins the block
//! before it where one code for both is cheaper than a second header; the price is estimated from the
//! bytes' entropy.

use super::bits::BitWriter;
use super::code::BlockCode;
use super::fixed::{self, LONGEST_STORED};
use super::frequencies::Frequencies;
use super::kernel::Kernel;
use super::runs::{Step, Value};

/// Segments that share a code, scanned and counted but not yet written.
#[derive(Debug)]
struct Pending {
    /// Values.
    len: usize,
    steps: Vec<Step>,
    frequencies: Frequencies,
    /// Estimate of the bits its literals and match lengths take.
    bits: f32,
}

impl Default for Pending {
    fn default() -> Self {
        Pending { len: 0, steps: Vec::new(), frequencies: Frequencies::new(), bits: 0.0 }
    }
}

/// Uncompressed bytes of a block at most: a block is read twice, the second time from a core's own cache.
const LONGEST_BLOCK: usize = 1 << 20;

/// What a block's header costs, in bits.
const HEADER_BITS: f32 = 600.0;

/// Writes blocks; keeps its lists between arrays.
#[derive(Debug)]
pub(crate) struct Blocks {
    kernel: Kernel,
    /// The block being gathered.
    block: Pending,
    /// The segment after it.
    next: Pending,
}

impl Blocks {
    pub(crate) fn new(kernel: Kernel) -> Self {
        Blocks { kernel, block: Pending::default(), next: Pending::default() }
    }

    /// Writes `values`, cut into segments of these lengths, as whole blocks, none of them the stream's
    /// last; their bytes go into `crc` on the way.
    pub(crate) fn write<V: Value + bytemuck::Pod>(
        &mut self,
        values: &[V],
        segments: &mut dyn Iterator<Item = usize>,
        crc: &mut crc32fast::Hasher,
        bits: &mut BitWriter,
    ) {
        // Values before `start` are written, before `measured` measured.
        let (mut start, mut measured) = (0, 0);
        for len in segments {
            let segment = &values[measured..][..len];
            measured += len;
            crc.update(bytemuck::cast_slice(segment));
            self.next.measure(self.kernel, segment);
            if self.block.len > 0 {
                let fits = (self.block.len + self.next.len) * V::SIZE <= LONGEST_BLOCK;
                if fits && self.block.join(&self.next) {
                    continue;
                }
                let end = start + self.block.len;
                self.block.write(self.kernel, &values[start..end], bits);
                start = end;
            }
            std::mem::swap(&mut self.block, &mut self.next);
        }
        if self.block.len > 0 {
            self.block.write(self.kernel, &values[start..], bits);
            self.block.len = 0;
        }
    }
}

impl Pending {
    fn measure<V: Value + bytemuck::Pod>(&mut self, kernel: Kernel, values: &[V]) {
        self.len = values.len();
        self.steps.clear();
        kernel.scan(values, &mut self.steps);
        self.frequencies = Frequencies::of::<V>(bytemuck::cast_slice(values), &self.steps);
        self.bits = self.frequencies.bits();
    }

    /// Takes `next` in if that costs less than a block of its own.
    fn join(&mut self, next: &Pending) -> bool {
        let mut frequencies = self.frequencies.clone();
        frequencies.add(&next.frequencies);
        let bits = frequencies.bits();
        let cheaper = bits < self.bits + next.bits + HEADER_BITS;
        if cheaper {
            self.len += next.len;
            self.steps.extend_from_slice(&next.steps);
            self.frequencies = frequencies;
            self.bits = bits;
        }
        cheaper
    }

    fn write<V: Value + bytemuck::Pod>(&self, kernel: Kernel, values: &[V], bits: &mut BitWriter) {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let stored_bits = 8 * (bytes.len() + 5 * bytes.len().div_ceil(LONGEST_STORED));
        if self.bits + HEADER_BITS > stored_bits as f32 {
            return fixed::write_stored(bits, bytes);
        }
        let code = BlockCode::new::<V>(&self.frequencies);
        code.write_header(bits);
        kernel.write(bytes, &self.steps, &code, bits);
        let (end, len) = code.end_of_block();
        bits.put(end, len);
    }
}
