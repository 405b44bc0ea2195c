//! From a pattern in memory to the values as they are stored, a few rows at a time.

use common::capture::Dtype;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::pattern::PatternView;
use super::tables::WINDOW;

/// Uncompressed bytes a segment aims at, at least and at most: some heads, one, or some rows of one. Half a
/// head where that is between: its later rows have more and smaller values than its first.
const SEGMENT: std::ops::RangeInclusive<usize> = 48 << 10..=64 << 10;

/// Bytes copied or converted at a time: within a core's own cache. Fewer in tests, whose arrays then have several.
const CHUNK: usize = if cfg!(test) { 128 << 10 } else { 512 << 10 };

/// Whole rows of an array, as they are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk<'a, V> {
    /// All values; the first `known` were the last of the chunk before, and matches may reach into them.
    pub(crate) values: &'a [V],
    pub(crate) known: usize,
    /// The row of the array that the values begin with, counted through all heads.
    pub(crate) first_row: usize,
}

impl<V: bytemuck::Pod> Chunk<'_, V> {
    /// The bytes that no chunk had before.
    pub(crate) fn new_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values[self.known..])
    }
}

/// How the rows of an array are cut: a segment never holds parts of two heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    /// Rows a head.
    n: usize,
    /// Rows in all.
    rows: usize,
    /// Rows a segment: a multiple of `n`, or not above it.
    step: usize,
}

impl Segments {
    /// For `pattern`, stored as `dtype`.
    pub(crate) fn new(pattern: &PatternView<'_>, dtype: Dtype) -> Self {
        let n = pattern.n();
        let head_bytes = n * n * dtype.bytes();
        let segment = (head_bytes / 2).clamp(*SEGMENT.start(), *SEGMENT.end());
        let step = if head_bytes <= segment {
            n * (segment / head_bytes.max(1)).max(1)
        } else {
            n.div_ceil(head_bytes.div_ceil(segment))
        };
        Segments { n, rows: n * pattern.n_heads(), step }
    }

    /// Where the segment that begins at `row` ends.
    fn end(&self, row: usize) -> usize {
        let end = if self.step >= self.n {
            row + self.step
        } else {
            (row + self.step).min(row - row % self.n + self.n)
        };
        end.min(self.rows)
    }

    /// How many values each segment of rows `from..to` has.
    pub(crate) fn lengths(self, from: usize, to: usize) -> impl Iterator<Item = usize> {
        let mut row = from;
        std::iter::from_fn(move || {
            let start = row;
            row = self.end(row).min(to);
            (start < row).then(|| (row - start) * self.n)
        })
    }

    /// Whole segments of rows that make a chunk.
    fn chunks(self, row_bytes: usize) -> impl Iterator<Item = (usize, usize)> {
        let mut row = 0;
        std::iter::from_fn(move || {
            let start = row;
            while row < self.rows && (row == start || (self.end(row) - start) * row_bytes <= CHUNK) {
                row = self.end(row);
            }
            (start < row).then_some((start, row))
        })
    }
}

/// Cuts `buffer`, rows of `n` values, down to the last ones: as many as a match can reach.
fn keep_last<V: Copy>(buffer: &mut Vec<V>, n: usize) {
    let len = WINDOW.div_ceil(n * size_of::<V>()) * n;
    buffer.drain(..buffer.len().saturating_sub(len));
}

/// Hands `pattern` as float32 bits to `take`, in chunks of whole segments, each with its segments' lengths;
/// where it lies as it is stored, without a copy and in one chunk.
pub(crate) fn float32(
    pattern: &PatternView<'_>,
    buffer: &mut Vec<u32>,
    mut take: impl FnMut(Chunk<'_, u32>, &mut dyn Iterator<Item = usize>),
) {
    let segments = Segments::new(pattern, Dtype::Float32);
    if let (Some(values), true) = (pattern.contiguous(), cfg!(target_endian = "little")) {
        let whole = Chunk { values: bytemuck::cast_slice(values), known: 0, first_row: 0 };
        return take(whole, &mut segments.lengths(0, segments.rows));
    }
    let n = pattern.n();
    buffer.clear();
    for (from, to) in segments.chunks(4 * n) {
        keep_last(buffer, n);
        let known = buffer.len();
        for row in from..to {
            let values = pattern.row(row);
            buffer.extend(values.iter().map(|value| value.to_bits().to_le()));
            buffer.resize(known + (row + 1 - from) * n, 0);
        }
        let chunk = Chunk { values: buffer, known, first_row: from - known / n };
        take(chunk, &mut segments.lengths(from, to));
    }
}

/// As [`float32`], rounded to float16 (nearest, ties to even).
pub(crate) fn float16(
    pattern: &PatternView<'_>,
    buffer: &mut Vec<u16>,
    mut take: impl FnMut(Chunk<'_, u16>, &mut dyn Iterator<Item = usize>),
) {
    let segments = Segments::new(pattern, Dtype::Float16);
    let n = pattern.n();
    buffer.clear();
    for (from, to) in segments.chunks(2 * n) {
        keep_last(buffer, n);
        let known = buffer.len();
        buffer.resize(known + (to - from) * n, 0);
        for (row, out) in (from..to).zip(buffer[known..].chunks_exact_mut(n)) {
            let values = pattern.row(row);
            out[..values.len()].reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
        }
        if cfg!(target_endian = "big") {
            buffer[known..].iter_mut().for_each(|value| *value = value.to_le());
        }
        let chunk = Chunk { values: buffer, known, first_row: from - known / n };
        take(chunk, &mut segments.lengths(from, to));
    }
}
