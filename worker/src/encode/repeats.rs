//! Whether a segment repeats more than its values' neighbours: data a general deflate may write shorter.
//!
//! Softmax output does not. The signs looked for are cheap, and found by sampling: mantissas without noise
//! (rounded to half precision, exactly 0, 1 or 1/8), a head like the one before, rows like the rows above
//! or with equal values in them. A wrong guess costs time or bytes, never correctness.

use std::ops::Range;

use super::literals::Tally;
use super::runs::{Step, Value};

/// How far back deflate reaches.
pub(crate) const WINDOW: usize = 32 << 10;

/// Values of a row, and of rows above, that are looked at.
const SAMPLE: usize = 32;

/// Rows above that are looked at: one for so many values of a row, as their segments are larger.
const ROWS_ABOVE_PER: usize = 64;
const MOST_ROWS_ABOVE: usize = 4;

/// Fewer are no sample.
const SMALLEST_SAMPLE: usize = 8;

/// Sampled values for each that must be there twice. Among values that differ in 23 bits none is.
const SAMPLED_A_REPEAT: usize = 16;

/// Looks at one segment of `chunk`, the bytes of rows of `n` values of type `V`.
pub(crate) fn is_repetitive<V: Value>(
    chunk: &[u8],
    segment: Range<usize>,
    n: usize,
    steps: &[Step],
    tally: &Tally,
) -> bool {
    tally.lowest_byte_is_one()
        || is_head_before::<V>(chunk, segment.end, n)
        || values_repeat::<V>(chunk, segment, n, steps)
}

/// Whether the row that ends at `end` is that of the head before.
fn is_head_before<V: Value>(chunk: &[u8], end: usize, n: usize) -> bool {
    let row = n * V::SIZE;
    let head = n * row;
    end >= head + row && head < WINDOW && chunk[end - row..end] == chunk[end - row - head..end - head]
}

/// Whether values in the middle of a row are there twice, in that part of the row or of rows above.
fn values_repeat<V: Value>(chunk: &[u8], segment: Range<usize>, n: usize, steps: &[Step]) -> bool {
    let Some(literals) = last_literals::<V>(segment, steps) else { return false };
    let len = literals.len().min(SAMPLE * V::SIZE) / V::SIZE * V::SIZE;
    let start = literals.start + (literals.len() - len) / 2 / V::SIZE * V::SIZE;
    // Where attention depends on the distance alone, a row is the one above shifted by a value: one more is
    // looked at. Sums of long rows are not rounded alike, but some are.
    let rows = 1..=(n / ROWS_ABOVE_PER).clamp(1, MOST_ROWS_ABOVE);
    let above = rows.filter_map(|row| start.checked_sub(row * (n + 1) * V::SIZE));
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

/// The last literals of a segment that are enough for a sample.
fn last_literals<V: Value>(segment: Range<usize>, steps: &[Step]) -> Option<Range<usize>> {
    let mut end = segment.end;
    for step in steps.iter().rev() {
        end -= step.matched as usize;
        let start = end - step.literals as usize;
        if end - start >= SMALLEST_SAMPLE * V::SIZE {
            return Some(start..end);
        }
        end = start;
    }
    None
}
