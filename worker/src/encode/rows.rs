//! Matches of repetitive segments: with rows above, and with the last places of the same value.
//!
//! Attention that depends on the distance alone repeats the row above shifted by a value; attention that depends
//! on the key alone repeats it as it is; both often but for the lowest byte. So these distances and those of
//! [`runs`](super::runs) are tried at every byte; where a value begins, also the places where it was met last.
//! The longest match is taken, but not across a long run: the rest of a row that is zero takes fewer bits as a run,
//! and what may begin after it is a row like any above.

use std::ops::Range;

use super::runs::{Distance, Step, Value};
use super::tables::{LONGEST_MATCH, SHORTEST_MATCH, WINDOW};

/// Bytes compared at a time.
const WORD: usize = 8;

/// Bits of a value's hash.
const HASH_BITS: u32 = 10;

/// Bytes of a run that no match goes across. Shorter ones are not worth another match.
const LONG_RUN: u32 = 2 * LONGEST_MATCH;

/// Places kept for each hash.
const PLACES: usize = 4;

/// Where values of a chunk were met last, by their hash; as much of the place as fits into 32 bits.
#[derive(Debug)]
pub(crate) struct Places(Vec<[u32; PLACES]>);

impl Places {
    /// Of none.
    pub(crate) fn new() -> Self {
        Places(Vec::new())
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The places of values like the one at `at`, which is one more from now on.
    fn meet<V: Value>(&mut self, chunk: &[u8], at: usize) -> [u32; PLACES] {
        let bytes = chunk[at..at + V::SIZE].iter();
        let value = bytes.fold(0u32, |value, &byte| value << 8 | u32::from(byte));
        let places = &mut self.0[(value.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize];
        let before = *places;
        places.copy_within(..PLACES - 1, 1);
        places[0] = at as u32;
        before
    }
}

/// Appends the steps that spell out `segment` of `chunk`, the bytes of rows of `n` values of type `V`; `runs` spell it
/// out, too.
pub(crate) fn scan<V: Value>(
    chunk: &[u8],
    segment: Range<usize>,
    n: usize,
    runs: &[Step],
    places: &mut Places,
    steps: &mut Vec<Step>,
) {
    // A place that is none is too far from anywhere.
    places.0.resize(1 << HASH_BITS, [u32::MAX; PLACES]);
    let row = n * V::SIZE;
    let distances = [1, V::SIZE, row, row + V::SIZE, n * row];
    let mut long_runs = long_runs(segment.start, runs).peekable();
    let (mut done, mut at) = (segment.start, segment.start);
    while at + SHORTEST_MATCH as usize <= segment.end {
        if let Some(run) = long_runs.next_if(|run| run.start == at) {
            let (literals, matched) = ((at - done) as u32, run.len() as u32);
            steps.push(Step { literals, matched, distance: Distance::BYTE });
            (done, at) = (run.end, run.end);
            continue;
        }
        let end = long_runs.peek().map_or(segment.end, |run| run.start);
        let (mut matched, mut distance) = (0, 0);
        let mut attempt = |reach: usize| {
            if reach > 0 && reach <= at.min(WINDOW) {
                let length = common(chunk, at - reach, at..end);
                // The distances that come first are met more often, and take fewer bits.
                if length > matched {
                    (matched, distance) = (length, reach);
                }
            }
        };
        distances.into_iter().for_each(&mut attempt);
        if at.is_multiple_of(V::SIZE) && at + V::SIZE <= segment.end {
            let met = places.meet::<V>(chunk, at);
            met.into_iter().for_each(|place| attempt((at as u32).wrapping_sub(place) as usize));
        }
        if matched >= SHORTEST_MATCH as usize {
            let literals = (at - done) as u32;
            steps.push(Step { literals, matched: matched as u32, distance: Distance::new(distance) });
            done = at + matched;
            if distance > V::SIZE {
                // Not in runs, which would drive out all else.
                let next = (at + 1).next_multiple_of(V::SIZE);
                (next..done.min(segment.end + 1 - V::SIZE)).step_by(V::SIZE).for_each(|at| {
                    places.meet::<V>(chunk, at);
                });
            }
            at = done;
        } else {
            at += 1;
        }
    }
    if done < segment.end {
        let literals = (segment.end - done) as u32;
        steps.push(Step { literals, matched: 0, distance: Distance::BYTE });
    }
}

/// Where equal bytes are repeated at length, by the runs of a segment that begins at `at`.
fn long_runs(mut at: usize, runs: &[Step]) -> impl Iterator<Item = Range<usize>> {
    runs.iter().filter_map(move |run| {
        let start = at + run.literals as usize;
        at = start + run.matched as usize;
        (run.matched >= LONG_RUN && run.distance == Distance::BYTE).then_some(start..at)
    })
}

/// How many of the bytes from `before` on are those of `here`.
fn common(chunk: &[u8], before: usize, here: Range<usize>) -> usize {
    let (mut length, longest) = (0, here.len());
    let word = |at: usize| {
        let bytes = chunk[at..at + WORD].try_into().expect("a word's bytes");
        u64::from_le_bytes(bytes)
    };
    while length + WORD <= longest {
        let differ = word(before + length) ^ word(here.start + length);
        if differ != 0 {
            return length + differ.trailing_zeros() as usize / 8;
        }
        length += WORD;
    }
    length + (length..longest).take_while(|&at| chunk[before + at] == chunk[here.start + at]).count()
}

#[cfg(test)]
mod tests {
    use super::super::runs::{self, equal_pairs, spell};
    use super::*;

    fn steps_of(values: &[u32], n: usize) -> Vec<Step> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let (mut runs, mut steps) = (Vec::new(), Vec::new());
        runs::scan(values, &mut runs, equal_pairs);
        scan::<u32>(bytes, 0..bytes.len(), n, &runs, &mut Places::new(), &mut steps);
        assert!(spell(bytes, &steps) == bytes);
        steps
    }

    #[test]
    fn a_row_like_the_one_above_is_one_match() {
        let n = 20;
        let rows: Vec<u32> = (0..5 * n).map(|at| 0x3c12_3456 + at % n * 0x01_0307).collect();
        let steps = steps_of(&rows, n as usize);
        let rest = Step { literals: 4 * n, matched: 4 * 4 * n, distance: Distance::new(4 * n as usize) };
        assert_eq!(steps, [rest]);
        // Shifted by one.
        let shifted: Vec<u32> =
            (0..5 * n).map(|at| 0x3c12_3456 + (at % n + 5 - at / n) * 0x01_0307).collect();
        let steps = steps_of(&shifted, n as usize);
        assert_eq!(steps[1].distance, Distance::new(4 * n as usize + 4));
    }

    #[test]
    fn a_long_run_is_left_to_itself() {
        // Rows of one value and zeros, which the row above would spell out just as well.
        let n = 200;
        let rows: Vec<u32> = (0..3 * n).map(|at| if at % n == 0 { 0x3c12_3456 } else { 0 }).collect();
        let run =
            |literals: u32, zeros: u32| Step { literals, matched: 4 * zeros - 1, distance: Distance::BYTE };
        let value = Step { literals: 0, matched: 5, distance: Distance::new(4 * n as usize) };
        let rest = run(0, n - 1);
        assert_eq!(steps_of(&rows, n as usize), [run(5, n - 1), value, rest, value, rest]);
        // Short ones are not.
        let n = 20;
        let rows: Vec<u32> = (0..3 * n).map(|at| if at % n == 0 { 0x3c12_3456 } else { 0 }).collect();
        let above = Step { literals: 0, matched: 2 * 4 * n, distance: Distance::new(4 * n as usize) };
        assert_eq!(steps_of(&rows, n as usize), [run(5, n - 1), above]);
    }

    #[test]
    fn a_value_is_found_again_wherever_it_was() {
        let values: Vec<u32> =
            [7, 1, 2, 3, 4, 5, 6, 1, 2, 3].map(|value| 0x3c12_3456 + value * 0x01_0307).into();
        let steps = steps_of(&values, 64);
        assert_eq!(steps, [Step { literals: 28, matched: 12, distance: Distance::new(24) }]);
    }

    #[test]
    fn segments_of_a_chunk_reach_back_into_those_before() {
        fn check<V: Value + bytemuck::Pod>(value: impl Fn(usize, usize) -> V) {
            let n = 301;
            let values: Vec<V> = (0..9 * n).map(|at| value(at / n, at % n)).collect();
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            let (mut places, mut steps) = (Places::new(), Vec::new());
            // Neither cut is where a row begins, and the second is amid zeros.
            for part in [0..2 * n + 77, 2 * n + 77..5 * n - 20, 5 * n - 20..9 * n] {
                let mut runs = Vec::new();
                runs::scan(&values[part.clone()], &mut runs, equal_pairs);
                let segment = part.start * V::SIZE..part.end * V::SIZE;
                scan::<V>(bytes, segment, n, &runs, &mut places, &mut steps);
            }
            assert!(spell(bytes, &steps) == bytes);
            let literals: u32 = steps.iter().map(|step| step.literals).sum();
            assert!(literals < 100 * V::SIZE as u32, "{literals} bytes are not matched with those before");
        }
        // The same 40 values in every row, and zeros after them.
        check(|_, key| if key < 40 { 0x3c12_3456 + key as u32 * 0x01_0307 } else { 0 });
        check(|_, key| if key < 40 { 0x3456 + key as u16 * 0x0307 } else { 0 });
    }

    #[test]
    fn ends_and_short_inputs() {
        for length in 0..40 {
            let values: Vec<u32> = (0..length).map(|at| 0x3c12_3456 ^ (at % 7) << 12).collect();
            for n in 1..9 {
                steps_of(&values, n);
            }
        }
    }
}
