//! From values to deflate blocks: where one block ends and the next, with its own code, begins.
//!
//! The array comes in segments (a head, some heads, or some rows of one). A segment joins the block
//! before it where one code for both is cheaper than a second header; the price is estimated from the
//! bytes' entropy.

use super::bits::BitWriter;
use super::code::{BlockCode, Matches};
use super::histogram::{self, Counts};
use super::kernel::Kernel;
use super::runs::{Step, Value};

/// Segments that share a code, scanned and counted but not yet written.
#[derive(Debug)]
struct Pending {
    /// Values.
    len: usize,
    steps: Vec<Step>,
    literals: Counts,
    sampled: bool,
    matches: Matches,
    /// Estimate of the bits its literals and matches take.
    bits: f32,
}

impl Default for Pending {
    fn default() -> Self {
        Pending {
            len: 0,
            steps: Vec::new(),
            literals: [0; 256],
            sampled: false,
            matches: Matches::default(),
            bits: 0.0,
        }
    }
}

/// Uncompressed bytes of a block at most: a block is read twice, the second time from a core's own cache.
const LONGEST_BLOCK: usize = 1 << 20;

/// Literal bytes counted in a segment; where there are more, a sample of about as many.
const SAMPLE: usize = 32 << 10;

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
                let joined = self.block.joined_bits(&self.next);
                let fits = (self.block.len + self.next.len) * V::SIZE <= LONGEST_BLOCK;
                if fits && joined <= self.block.bits + self.next.bits + HEADER_BITS {
                    self.block.join(&self.next, joined);
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
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.len = values.len();
        self.steps.clear();
        kernel.scan(values, &mut self.steps);
        self.matches = Matches::default();
        self.matches.count(&self.steps, V::SIZE);
        let literals: usize = self.steps.iter().map(|step| step.literals as usize).sum();
        let every = (literals / SAMPLE).max(1) as u32;
        self.sampled = every > 1;
        self.literals = [0; 256];
        histogram::count(bytes, &self.steps, every, &mut self.literals);
        self.bits = entropy_bits(self.literals.iter().chain(self.matches.lengths()).copied());
    }

    fn joined_bits(&self, next: &Pending) -> f32 {
        let sum = |(a, b): (&u32, &u32)| a + b;
        entropy_bits(
            self.literals
                .iter()
                .zip(&next.literals)
                .map(sum)
                .chain(self.matches.lengths().iter().zip(next.matches.lengths()).map(sum)),
        )
    }

    fn join(&mut self, next: &Pending, bits: f32) {
        self.len += next.len;
        self.steps.extend_from_slice(&next.steps);
        self.literals.iter_mut().zip(&next.literals).for_each(|(sum, more)| *sum += more);
        self.sampled |= next.sampled;
        self.matches.add(&next.matches);
        self.bits = bits;
    }

    fn write<V: Value + bytemuck::Pod>(&self, kernel: Kernel, values: &[V], bits: &mut BitWriter) {
        let code = BlockCode::new(&self.literals, self.sampled, &self.matches, V::SIZE);
        code.write_header(bits);
        kernel.write(bytemuck::cast_slice(values), &self.steps, &code, bits);
        let (end, len) = code.end_of_block();
        bits.put(end, len);
    }
}

/// The bits that symbols of these counts take at the least.
fn entropy_bits(counts: impl Iterator<Item = u32>) -> f32 {
    let (mut total, mut bits) = (0u32, 0.0f32);
    for count in counts {
        total += count;
        if count > 0 {
            bits -= count as f32 * (count as f32).log2();
        }
    }
    bits + total as f32 * (total.max(1) as f32).log2()
}
