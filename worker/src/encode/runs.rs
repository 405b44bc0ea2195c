//! Where a value repeats at once: the only repeats softmax output has.
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

/// Values compared at a time in plain Rust.
const LANES: usize = 8;

/// Pairs of neighbours compared at a time.
pub(crate) const PAIRS: usize = 64;

/// Appends the steps that spell out `values`; `equal_pairs` is [`equal_pairs`] in some form.
///
/// Bits say which values are equal to the next, and only where that changes is anything decided: hardly ever another
/// way than the time before, which is what processors guess well.
#[inline(always)]
pub(crate) fn scan<V: Value>(
    values: &[V],
    steps: &mut Vec<Step>,
    equal_pairs: impl Fn(&[V; PAIRS + 1]) -> u64,
) {
    let mut runs = Runs { values, done: 0, start: None, steps };
    let Some(pairs) = values.len().checked_sub(1) else { return };
    // Whether the last pair was equal, in the lowest bit.
    let mut last = 0;
    let mut at = 0;
    while at + PAIRS <= pairs {
        let equal = equal_pairs(values[at..].first_chunk().expect("a value more than pairs"));
        let mut edges = equal ^ (equal << 1 | last);
        last = equal >> 63;
        while edges != 0 {
            runs.edge(at + edges.trailing_zeros() as usize);
            edges &= edges - 1;
        }
        at += PAIRS;
    }
    for at in at..pairs {
        let equal = u64::from(values[at] == values[at + 1]);
        if equal != last {
            runs.edge(at);
        }
        last = equal;
    }
    runs.end();
}

/// Where the runs of some values are.
struct Runs<'a, V> {
    values: &'a [V],
    /// Values before it are in the steps.
    done: usize,
    /// Where the run begins that has not ended yet.
    start: Option<usize>,
    steps: &'a mut Vec<Step>,
}

impl<V: Value> Runs<'_, V> {
    /// At value `at`, the one after begins to be equal, or ceases to.
    #[inline(always)]
    fn edge(&mut self, at: usize) {
        match self.start.take() {
            None => self.start = Some(at),
            Some(start) => self.run(start, at + 1),
        }
    }

    #[inline(always)]
    fn run(&mut self, start: usize, end: usize) {
        if V::SHORTEST_RUN > 2 && end - start < V::SHORTEST_RUN {
            return;
        }
        // The run's first byte or value is a literal, the rest repeats it.
        let (head, distance) = if self.values[start].is_one_byte() {
            (1, Distance::BYTE)
        } else {
            (V::SIZE, Distance::new(V::SIZE))
        };
        self.steps.push(Step {
            literals: ((start - self.done) * V::SIZE + head) as u32,
            matched: ((end - start) * V::SIZE - head) as u32,
            distance,
        });
        self.done = end;
    }

    #[inline(always)]
    fn end(mut self) {
        let len = self.values.len();
        if let Some(start) = self.start {
            self.run(start, len);
        }
        if self.done < len {
            self.steps.push(Step {
                literals: ((len - self.done) * V::SIZE) as u32,
                matched: 0,
                distance: Distance::BYTE,
            });
        }
    }
}

/// Which values are equal to the next, the first in the lowest bit: what every [kernel](super::kernel) gives, in plain
/// Rust.
#[inline(always)]
pub(crate) fn equal_pairs<V: Value>(values: &[V; PAIRS + 1]) -> u64 {
    (0..PAIRS).step_by(LANES).fold(0, |equal, at| {
        let is_equal = |pair: usize| values[at + pair] == values[at + pair + 1];
        // Vector code, without early exits. Mostly all lanes are alike.
        let count = (0..LANES).fold(0, |count, pair| count + u32::from(is_equal(pair)));
        let bits = match count as usize {
            0 => 0,
            LANES => (1 << LANES) - 1,
            _ => (0..LANES).fold(0, |bits, pair| bits | u64::from(is_equal(pair)) << pair),
        };
        equal | bits << at
    })
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
        scan(values, &mut steps, equal_pairs);
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

    /// The steps of every longest run, found one value after the other.
    fn naive<V: Value>(values: &[V]) -> Vec<Step> {
        let (mut steps, mut done, mut at) = (Vec::new(), 0, 0);
        while at < values.len() {
            let run = values[at..].iter().take_while(|&&value| value == values[at]).count();
            if run >= V::SHORTEST_RUN {
                let one_byte = values[at].is_one_byte();
                let (head, distance) =
                    if one_byte { (1, Distance::BYTE) } else { (V::SIZE, Distance::new(V::SIZE)) };
                let literals = ((at - done) * V::SIZE + head) as u32;
                steps.push(Step { literals, matched: (run * V::SIZE - head) as u32, distance });
                done = at + run;
            }
            at += run;
        }
        if done < values.len() {
            let literals = ((values.len() - done) * V::SIZE) as u32;
            steps.push(Step { literals, matched: 0, distance: Distance::BYTE });
        }
        steps
    }

    #[test]
    fn every_run_is_found_wherever_it_lies() {
        fn check<V: Value + std::fmt::Debug>(of: impl Fn(usize) -> V) {
            for length in (0..=10).chain(60..=70).chain(125..=135) {
                for start in 0..length {
                    for run in [2, 3, 4, 64, 65] {
                        let end = length.min(start + run);
                        let value = |at: usize| if (start..end).contains(&at) { start } else { at };
                        let values: Vec<V> = (0..length).map(|at| of(value(at))).collect();
                        let mut steps = Vec::new();
                        scan(&values, &mut steps, equal_pairs);
                        assert_eq!(steps, naive(&values), "{values:?}");
                    }
                }
            }
        }
        check(|at| 0x3f12_3400 + at as u32);
        check(|at| 0x3c00 + at as u16);
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
