//! Whether a segment repeats more than its values' neighbours, and what.
//!
//! Softmax output does not. The signs looked for are cheap, and found by sampling: mantissas without noise
//! (rounded to half precision, exactly 0, 1 or 1/8), a head like the one before, rows like the rows above
//! or with equal values in them. A wrong guess costs time or bytes, never correctness.

use std::ops::{Range, RangeInclusive};

use super::runs::{Step, Value};
use super::tables::WINDOW;

/// Values of a row, and of rows above, that are looked at.
const SAMPLE: usize = 32;

/// Rows of a segment that are compared with those above.
const SAMPLED_ROWS: usize = 16;

/// Fewer are no sample.
const SMALLEST_SAMPLE: usize = 8;

/// Sampled values for each that must be there twice. Among values that differ in 23 bits none is.
const SAMPLED_A_REPEAT: usize = 16;

/// What repeats in a segment, apart from neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Repeats {
    /// Rows above: [`rows`](super::rows) may write it shortest.
    pub(crate) rows: bool,
    /// Values, anywhere: a general deflate may write it shortest.
    pub(crate) values: bool,
}

/// Looks at one segment of `chunk`, the bytes of rows of `n` values of type `V`, the first of them row `first_row` of its
/// array: at each head the segment has a part of.
pub(crate) fn find<V: Value>(
    chunk: &[u8],
    segment: Range<usize>,
    first_row: usize,
    n: usize,
    steps: &[Step],
) -> Repeats {
    let (mut at, mut steps) = (segment.start, steps.iter());
    // A segment has whole heads, or a part of one.
    let head = (n * n * V::SIZE).min(segment.len());
    let mut found = Repeats::default();
    for end in (segment.start + head..=segment.end).step_by(head) {
        // Else it is all of a run, or of values without one, that began in a head before: it was looked at there.
        let has_steps = at < end;
        let mut lowest_bytes = [0u16; 256];
        let (mut sampled, mut written, mut last) = (0, 0, None);
        while at < end
            && let Some(step) = steps.next()
        {
            let literals = at..at + step.literals as usize;
            at = literals.end + step.matched as usize;
            written += literals.len();
            if literals.len() >= V::SIZE {
                lowest_bytes[chunk[literals.start] as usize] += 1;
                sampled += 1;
            }
            if literals.len() >= SMALLEST_SAMPLE * V::SIZE {
                last = Some(literals.start..literals.end.min(end));
            }
        }
        if let (..SMALLEST_SAMPLE, Some(literals)) = (sampled, &last) {
            // Few rows, but long ones.
            let step = (literals.len() / V::SIZE).div_ceil(SAMPLE) * V::SIZE;
            literals.clone().step_by(step).for_each(|at| lowest_bytes[chunk[at] as usize] += 1);
            sampled += literals.len().div_ceil(step);
        }
        // As no softmax output has: all rounded, or one-hot but for few rows. A very sharp head is neither, and comes
        // out no shorter by a search as long as it has more than a value and a half a row.
        let most = lowest_bytes.into_iter().max().map_or(0, usize::from);
        let few = 16 * written <= 25 * V::SIZE * head.div_ceil(n * V::SIZE);
        let is_rounded = sampled >= SMALLEST_SAMPLE && 8 * most >= 7 * sampled;
        let is_bare = is_rounded || has_steps && few && 4 * most >= 3 * sampled;
        let is_anywhere = last.is_some_and(|literals| values_repeat::<V>(chunk, literals, n));
        if is_like_above::<V>(chunk, end - head..end, first_row, n) {
            found.rows = true;
            // Of few bits, values like those above are equal to them, and may be to many others.
            found.values = V::SIZE == 2 && is_anywhere;
        } else if is_bare {
            // After rows alike, which may all begin with the same byte as well, and are written shorter by matches.
            found.values = true;
        } else if is_head_before::<V>(chunk, end, n) {
            found.rows = true;
        } else if is_anywhere {
            found.values = true;
        }
        if found.values {
            break;
        }
    }
    found
}

/// Whether the row that ends at `end` is that of the head before.
fn is_head_before<V: Value>(chunk: &[u8], end: usize, n: usize) -> bool {
    let row = n * V::SIZE;
    let head = n * row;
    end >= head + row && head < WINDOW && chunk[end - row..end] == chunk[end - row - head..end - head]
}

/// Whether values are often like the one above or the one above and before, up to a byte of noise.
fn is_like_above<V: Value>(chunk: &[u8], rows: Range<usize>, first_row: usize, n: usize) -> bool {
    let row = n * V::SIZE;
    let high = |at: usize| {
        // All bytes of a small value, all but the lowest of a large one.
        let bytes = &chunk[at + V::SIZE / 4..at + V::SIZE];
        bytes.iter().rfold(0u32, |high, &byte| high << 8 | u32::from(byte))
    };
    let (mut sampled, mut alike) = (0, 0);
    // The later half: where sums of rows come to rest, and rows are alike, it is there.
    let rows = rows.start + rows.len() / row / 2 * row..rows.end;
    let step = (rows.len() / row).div_ceil(SAMPLED_ROWS) * row;
    for start in rows.step_by(step).filter(|&start| start >= row + V::SIZE) {
        let query = (first_row + start / row) % n;
        for part in [3, 5, 7] {
            let at = start + query * part / 8 * V::SIZE;
            let value = high(at);
            // Zero, one and most that are tiny repeat in any sharp head.
            if value & 0xff != 0 {
                sampled += 1;
                alike += usize::from(value == high(at - row) || value == high(at - row - V::SIZE));
            }
        }
    }
    alike > 1 && 32 * alike >= sampled
}

/// Rows above that are looked at: more in longer rows, as their segments are larger.
fn rows_above<V: Value>(n: usize) -> RangeInclusive<usize> {
    // Values of few bits may be rounded to the same ones again, but some rows below.
    let (values_a_row, most) = if V::SIZE == 2 { (8, 16) } else { (64, 4) };
    1..=(n / values_a_row).clamp(1, most)
}

/// Whether values in the middle of a row are there twice, in that part of the row or of rows above.
fn values_repeat<V: Value>(chunk: &[u8], literals: Range<usize>, n: usize) -> bool {
    let len = literals.len().min(SAMPLE * V::SIZE) / V::SIZE * V::SIZE;
    let start = literals.start + (literals.len() - len) / 2 / V::SIZE * V::SIZE;
    // Where attention depends on the distance alone, a row is the one above shifted by a value: one more is
    // looked at. Sums of long rows are not rounded alike, but some are.
    let above = rows_above::<V>(n).filter_map(|row| start.checked_sub(row * (n + 1) * V::SIZE));
    let above = above.map(|above| above..above + len + V::SIZE);
    // By a hash of the value: the last one met. 0 is none: zeros and other tiny values do not tell.
    let mut met = [0u32; 256];
    let (mut sampled, mut repeats) = (0, 0);
    for range in above.chain(std::iter::once(start..start + len)) {
        // Four bytes each: two values, if they are small.
        for bytes in chunk[range].windows(4).step_by(V::SIZE) {
            let bits = u32::from_le_bytes(bytes.try_into().expect("windows of four"));
            if V::is_distinctive(bits) {
                let slot = &mut met[(bits.wrapping_mul(0x9e37_79b1) >> 24) as usize];
                sampled += 1;
                repeats += usize::from(*slot == bits);
                *slot = bits;
            }
        }
    }
    repeats > 1 && repeats * SAMPLED_A_REPEAT >= sampled
}
