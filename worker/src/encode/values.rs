//! From a pattern in memory to the values as they are stored, a few rows at a time.

use common::capture::Dtype;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::pattern::PatternView;

/// Uncompressed bytes a segment aims at, at least and at most: some heads, one, or some rows of one. Half a
/// head where that is between: its later rows have more and smaller values than its first.
const SEGMENT: std::ops::RangeInclusive<usize> = 48 << 10..=64 << 10;

/// Bytes copied or converted at a time: within a core's own cache.
const CHUNK: usize = 512 << 10;

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
    /// For rows of `row_bytes` uncompressed bytes.
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

/// Hands `pattern` as float32 bits to `take`, in chunks of whole segments, each with its segments' lengths;
/// where it lies as it is stored, without a copy and in one chunk.
pub(crate) fn float32(
    pattern: &PatternView<'_>,
    buffer: &mut Vec<u32>,
    mut take: impl FnMut(&[u32], &mut dyn Iterator<Item = usize>),
) {
    let segments = Segments::new(pattern, Dtype::Float32);
    if let (Some(values), true) = (pattern.contiguous(), cfg!(target_endian = "little")) {
        return take(bytemuck::cast_slice(values), &mut segments.lengths(0, segments.rows));
    }
    for (from, to) in segments.chunks(4 * pattern.n()) {
        buffer.clear();
        for row in from..to {
            let values = pattern.row(row);
            buffer.extend(values.iter().map(|value| value.to_bits().to_le()));
            buffer.resize((row + 1 - from) * pattern.n(), 0);
        }
        take(buffer, &mut segments.lengths(from, to));
    }
}

/// As [`float32`], rounded to float16 (nearest, ties to even).
pub(crate) fn float16(
    pattern: &PatternView<'_>,
    buffer: &mut Vec<u16>,
    mut take: impl FnMut(&[u16], &mut dyn Iterator<Item = usize>),
) {
    let segments = Segments::new(pattern, Dtype::Float16);
    for (from, to) in segments.chunks(2 * pattern.n()) {
        buffer.clear();
        buffer.resize((to - from) * pattern.n(), 0);
        for (row, out) in (from..to).zip(buffer.chunks_exact_mut(pattern.n())) {
            let values = pattern.row(row);
            out[..values.len()].reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
        }
        if cfg!(target_endian = "big") {
            buffer.iter_mut().for_each(|value| *value = value.to_le());
        }
        take(buffer, &mut segments.lengths(from, to));
    }
}
