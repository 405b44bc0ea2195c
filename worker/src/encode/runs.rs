//! Where a value repeats: the only repeats this encoder looks for.
//!
//! An attention pattern has one long run of zeros per row (the keys a query may not see) and otherwise
//! values that differ in their low bits. So the bytes are cut into steps, each some bytes to be written
//! as they are and then a match with the value just before: at distance 1 where all its bytes are equal
//! (zero above all), else at distance of one value. Steps follow from the bytes alone, whatever they
//! mean: no mask is assumed, so none can be wrong.

use super::tables::{DistanceCode, WINDOW};

/// Some literal bytes, then a match (or, at the end, none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes written as literals.
    pub(crate) literals: u32,
    /// Bytes the match covers: 0 or at least 3, in one step possibly more than one match can.
    pub(crate) matched: u32,
    /// How far back the match reaches.
    pub(crate) distance: Distance,
}

/// How far back a match reaches, in bytes: at least 1, at most [`WINDOW`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distance(u16);

impl Distance {
    /// To the byte before.
    pub(crate) const BYTE: Distance = Distance(1);

    /// Of so many bytes.
    #[inline(always)]
    pub(crate) const fn new(bytes: usize) -> Self {
        debug_assert!(0 < bytes && bytes <= WINDOW);
        Distance(bytes as u16)
    }

    /// In bytes.
    #[cfg(test)]
    pub(crate) fn bytes(self) -> usize {
        self.0.into()
    }

    /// How deflate writes it.
    #[inline(always)]
    pub(crate) fn code(self) -> DistanceCode {
        DistanceCode::new(self.0)
    }
}

/// A number as it lies in the array.
pub(crate) trait Value: Copy + Eq {
    /// Bytes.
    const SIZE: usize;
    /// How many equal values make a run worth a match.
    const SHORTEST_RUN: usize;

    /// Whether all bytes are equal.
    fn is_one_byte(self) -> bool;

    /// Whether the values that fill four bytes are normal numbers: few are as small as not to be.
    fn is_distinctive(bits: u32) -> bool;
}

impl Value for u32 {
    const SIZE: usize = 4;
    const SHORTEST_RUN: usize = 2;

    fn is_one_byte(self) -> bool {
        self == self.rotate_left(8)
    }

    fn is_distinctive(bits: u32) -> bool {
        bits & 0x7f80_0000 != 0
    }
}

impl Value for u16 {
    const SIZE: usize = 2;
    const SHORTEST_RUN: usize = 3;

    fn is_one_byte(self) -> bool {
        self == self.rotate_left(8)
    }

    fn is_distinctive(bits: u32) -> bool {
        bits & 0x7c00 != 0 && bits & 0x7c00_0000 != 0
    }
}

/// Appends the steps that spell out `values`.
#[inline(always)]
pub(crate) fn scan<V: Value>(values: &[V], steps: &mut Vec<Step>) {
    let mut done = 0;
    let mut at = 0;
    while let Some(start) = next_run(values, at) {
        let value = values[start];
        let end = start + run_length(&values[start..]);
        // The run's first byte or value is a literal, the rest repeats it.
        let (head, distance) =
            if value.is_one_byte() { (1, Distance::BYTE) } else { (V::SIZE, Distance::new(V::SIZE)) };
        steps.push(Step {
            literals: ((start - done) * V::SIZE + head) as u32,
            matched: ((end - start) * V::SIZE - head) as u32,
            distance,
        });
        done = end;
        at = end;
    }
    if done < values.len() {
        steps.push(Step {
            literals: ((values.len() - done) * V::SIZE) as u32,
            matched: 0,
            distance: Distance::BYTE,
        });
    }
}

/// Values compared at a time; the loops over them have no early exit, so that they become vector code.
const LANES: usize = 8;

/// The first index from `from` on at which a run worth a match begins.
#[inline(always)]
fn next_run<V: Value>(values: &[V], from: usize) -> Option<usize> {
    let reach = V::SHORTEST_RUN - 1;
    let is_run = |at: usize| (1..=reach).all(|k| values[at] == values[at + k]);
    let mut at = from;
    while at + LANES + reach <= values.len() {
        let window = &values[at..at + LANES + reach];
        let mut any = false;
        for lane in 0..LANES {
            let mut equal = true;
            for k in 1..=reach {
                equal &= window[lane] == window[lane + k];
            }
            any |= equal;
        }
        if any {
            break;
        }
        at += LANES;
    }
    (at..values.len().saturating_sub(reach)).find(|&at| is_run(at))
}

/// How many of the first values are equal.
#[inline(always)]
fn run_length<V: Value>(values: &[V]) -> usize {
    let first = values[0];
    let mut at = 1;
    for chunk in values[1..].chunks_exact(LANES) {
        if chunk.iter().fold(false, |differ, &value| differ | (value != first)) {
            break;
        }
        at += LANES;
    }
    at + values[at..].iter().take_while(|&&value| value == first).count()
}

/// What a decoder of steps would give.
#[cfg(test)]
pub(crate) fn spell(bytes: &[u8], steps: &[Step]) -> Vec<u8> {
    let mut out = Vec::new();
    for step in steps {
        out.extend_from_slice(&bytes[out.len()..out.len() + step.literals as usize]);
        for _ in 0..step.matched {
            out.push(out[out.len() - step.distance.bytes()]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_of(values: &[u32]) -> Vec<Step> {
        let mut steps = Vec::new();
        scan(values, &mut steps);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(spell(&bytes, &steps), bytes);
        steps
    }

    #[test]
    fn a_causal_matrix_has_one_run_a_row() {
        let n = 40;
        let values: Vec<u32> =
            (0..n * n).map(|i| if i % n > i / n { 0 } else { 0x3f00_0000 + i as u32 }).collect();
        let steps = steps_of(&values);
        // Row 38 ends in a single zero, row 39 in none: literals.
        assert_eq!(steps.len(), n - 1);
        assert_eq!(steps[0], Step { literals: 5, matched: 39 * 4 - 1, distance: Distance::BYTE });
    }

    #[test]
    fn repeated_values_and_odd_lengths() {
        assert_eq!(steps_of(&[]), []);
        assert_eq!(steps_of(&[7]), [Step { literals: 4, matched: 0, distance: Distance::BYTE }]);
        assert_eq!(steps_of(&[7, 7]), [Step { literals: 4, matched: 4, distance: Distance::new(4) }]);
        assert_eq!(steps_of(&[!0, !0]), [Step { literals: 1, matched: 7, distance: Distance::BYTE }]);
        for length in 1..100u32 {
            for at in 0..length {
                let values: Vec<u32> = (0..length).map(|i| if i >= at { 5 } else { 100 + i }).collect();
                steps_of(&values);
            }
        }
    }
}
