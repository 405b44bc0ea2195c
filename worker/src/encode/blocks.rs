//! From values to deflate blocks: where one block ends and the next, with its own code, begins, and which
//! are left to a general deflate.
//!
//! The array comes in segments (a head, some heads, or some rows of one). A segment joins the block
//! before it where one code for both is cheaper than a second header; the price is estimated from the
//! bytes' entropy.
//!
//! Segments that repeat rows above ([`repeats`]) get matches with them ([`rows`]) where that is cheaper. Those
//! that repeat values elsewhere are also given to a general deflate; once one comes that does not, the shorter is
//! kept.

use std::ops::Range;

use super::bits::BitWriter;
use super::code::BlockCode;
use super::compression::ZlibLevel;
use super::fixed::{self, LONGEST_STORED};
use super::frequencies::Frequencies;
use super::general::General;
use super::kernel::Kernel;
use super::literals::Tally;
use super::repeats;
use super::rows::{self, Places};
use super::runs::{Step, Value};
use super::tables::WINDOW;
use super::values::Chunk;

/// Segments that share a code, scanned and counted but not yet written.
#[derive(Debug)]
struct Pending {
    /// Values.
    len: usize,
    steps: Vec<Step>,
    frequencies: Frequencies,
    /// Estimate of the bits its literals and matches take.
    bits: f32,
}

impl Default for Pending {
    fn default() -> Self {
        Pending { len: 0, steps: Vec::new(), frequencies: Frequencies::new(), bits: 0.0 }
    }
}

/// Segments in a row that repeat values, compressed by a general deflate as well.
#[derive(Debug)]
struct Stretch {
    general: General,
    /// Where in the stream its blocks begin.
    start: usize,
}

/// Uncompressed bytes of a block at most: a block is read twice, the second time from a core's own cache.
const LONGEST_BLOCK: usize = 1 << 20;

/// What a block's header costs, in bits.
const HEADER_BITS: f32 = 600.0;

/// Writes the deflate stream of one array after the other; keeps its lists between them.
#[derive(Debug)]
pub(crate) struct Blocks {
    kernel: Kernel,
    tally: Tally,
    bits: BitWriter,
    /// The npy header, as long as nothing else is written.
    header: Vec<u8>,
    /// The block being gathered.
    block: Pending,
    /// The segment after it.
    next: Pending,
    stretch: Option<Stretch>,
    /// Of the last stretch, for the next.
    idle: Option<General>,
    places: Places,
}

impl Blocks {
    pub(crate) fn new(kernel: Kernel) -> Self {
        Blocks {
            kernel,
            tally: Tally::default(),
            bits: BitWriter::default(),
            header: Vec::new(),
            block: Pending::default(),
            next: Pending::default(),
            stretch: None,
            idle: None,
            places: Places::new(),
        }
    }

    /// Begins a stream, in `out`, which is empty, with `header`.
    pub(crate) fn begin(&mut self, out: Vec<u8>, header: &[u8]) {
        self.stretch = None;
        self.bits = BitWriter::new(out);
        fixed::write(&mut self.bits, header);
        self.header.clear();
        self.header.extend_from_slice(header);
    }

    /// Writes what is new in `chunk`, rows of `n` values, cut into segments of these lengths; its bytes go into `crc`
    /// on the way.
    pub(crate) fn write<V: Value + bytemuck::Pod>(
        &mut self,
        chunk: Chunk<'_, V>,
        n: usize,
        segments: &mut dyn Iterator<Item = usize>,
        crc: &mut crc32fast::Hasher,
    ) {
        let Chunk { values, known, first_row } = chunk;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.places.clear();
        // Values before `start` are written, before `measured` measured; bytes before `told` need not be given
        // to a general deflate, which is slower and longer in small pieces.
        let (mut start, mut measured, mut told) = (known, known, known * V::SIZE);
        for len in segments {
            let from = measured * V::SIZE;
            let segment = &values[measured..][..len];
            measured += len;
            crc.update(bytemuck::cast_slice(segment));
            self.next.measure(self.kernel, segment, &mut self.tally);
            let range = from..measured * V::SIZE;
            let is_constant = self.next.is_constant::<V>();
            let repeats = repeats::find::<V>(bytes, range.clone(), first_row, n, &self.next.steps);
            if repeats.rows {
                self.next.measure_rows::<V>(bytes, range, n, &mut self.places);
            }
            if repeats.values != self.stretch.is_some() {
                self.write_block(values, &mut start);
                match &mut self.stretch {
                    None => self.begin_stretch(&bytes[..from], is_constant),
                    Some(stretch) => {
                        stretch.general.write(&bytes[told..from]);
                        self.end_stretch(false);
                    }
                }
                told = from;
            }
            if self.block.len > 0 {
                let fits = (self.block.len + self.next.len) * V::SIZE <= LONGEST_BLOCK;
                if fits && self.block.join(self.kernel, &self.next) {
                    continue;
                }
                self.write_block(values, &mut start);
            }
            std::mem::swap(&mut self.block, &mut self.next);
        }
        self.write_block(values, &mut start);
        if let Some(stretch) = &mut self.stretch {
            stretch.general.write(&bytes[told..]);
        }
    }

    /// Ends the stream and gives it back.
    pub(crate) fn end(&mut self) -> Vec<u8> {
        self.end_stretch(true);
        std::mem::take(&mut self.bits).into_bytes()
    }

    /// Writes what is gathered: `values` from `start` on.
    fn write_block<V: Value + bytemuck::Pod>(&mut self, values: &[V], start: &mut usize) {
        if self.block.len > 0 {
            let end = *start + self.block.len;
            self.block.write(self.kernel, &values[*start..end], &mut self.bits);
            self.block.len = 0;
            *start = end;
            self.header.clear();
        }
    }

    /// Begins to compress by a general deflate as well, after `before`.
    fn begin_stretch(&mut self, before: &[u8], is_constant: bool) {
        let level = if is_constant { ZlibLevel::CONSTANT } else { ZlibLevel::REPETITIVE };
        let idle = self.idle.take().filter(|general| general.level() == level);
        let mut general = idle.unwrap_or_else(|| General::new(level));
        general.begin(Vec::new());
        let start = if self.header.is_empty() {
            general.look_back(&before[before.len().saturating_sub(WINDOW)..]);
            fixed::write_boundary(&mut self.bits);
            self.bits.len()
        } else {
            // Nothing is written yet: one stream from the header on.
            general.write(&self.header);
            0
        };
        self.stretch = Some(Stretch { general, start });
    }

    /// Ends what is being written, and keeps the shorter.
    fn end_stretch(&mut self, last: bool) {
        if last {
            fixed::write_end(&mut self.bits);
        } else {
            fixed::write_boundary(&mut self.bits);
        }
        let Some(Stretch { mut general, start }) = self.stretch.take() else { return };
        let other = general.end(last);
        if other.len() < self.bits.len() - start {
            self.bits.replace(start, &other);
        }
        self.idle = Some(general);
    }
}

impl Pending {
    fn measure<V: Value + bytemuck::Pod>(&mut self, kernel: Kernel, values: &[V], tally: &mut Tally) {
        self.len = values.len();
        self.steps.clear();
        kernel.scan(values, &mut self.steps);
        let bytes = bytemuck::cast_slice(values);
        (self.frequencies, self.bits) = kernel.frequencies::<V>(bytes, &self.steps, tally);
    }

    /// Whether one value is all there is.
    fn is_constant<V: Value>(&self) -> bool {
        match self.steps[..] {
            [step] => step.literals as usize <= V::SIZE && step.matched > 0,
            _ => false,
        }
    }

    /// Takes the matches with rows above instead of runs alone, if they are cheaper.
    fn measure_rows<V: Value>(&mut self, chunk: &[u8], segment: Range<usize>, n: usize, places: &mut Places) {
        let mut steps = Vec::new();
        rows::scan::<V>(chunk, segment.clone(), n, &self.steps, places, &mut steps);
        let frequencies = Frequencies::exact(&chunk[segment], &steps);
        let bits = frequencies.bits();
        if bits < self.bits {
            (self.steps, self.frequencies, self.bits) = (steps, frequencies, bits);
        }
    }

    /// Takes `next` in if that costs less than a block of its own.
    fn join(&mut self, kernel: Kernel, next: &Pending) -> bool {
        let (frequencies, bits) = kernel.joined(&self.frequencies, &next.frequencies);
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
        let code = BlockCode::new(&self.frequencies);
        code.write_header(bits);
        kernel.write(bytes, &self.steps, &code, bits);
        let (end, len) = code.end_of_block();
        bits.put(end, len);
    }
}
