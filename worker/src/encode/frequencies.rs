//! How often each symbol of a block occurs: matches exactly, literals from a sample.
//!
//! Functions are inlined into the [kernels](super::kernel), which compile them for their instructions; nothing
//! here depends on which.

use super::literals::{Literals, Tally};
use super::runs::{Distance, Step, Value};
use super::tables::{DISTANCE_SYMBOLS, END_OF_BLOCK, LENGTH_CODES, LITLEN_SYMBOLS, cut_match};

/// Literals and lengths, rounded up to whole vectors.
const LANES: usize = 16;
const PADDED: usize = LITLEN_SYMBOLS.next_multiple_of(LANES);
const PADDED_DISTANCES: usize = DISTANCE_SYMBOLS.next_multiple_of(LANES);

/// A sample is good enough for literals that take more bits each than this; where they take fewer, there
/// is more to gain and all are counted.
const STRUCTURED: f32 = 6.0;

/// Frequencies of a block's symbols, in occurrences.
#[derive(Clone, Debug)]
pub(crate) struct Frequencies {
    litlen: [f32; PADDED],
    distances: [f32; PADDED_DISTANCES],
    /// Of far distances, in bits.
    extra: f32,
}

impl Frequencies {
    /// Of nothing but a block's end.
    pub(crate) fn new() -> Self {
        let mut litlen = [0.0; PADDED];
        litlen[END_OF_BLOCK] = 1.0;
        Frequencies { litlen, distances: [0.0; PADDED_DISTANCES], extra: 0.0 }
    }

    /// Of `steps` over `bytes`, which are values of type `V`; `tally` is room to count in.
    #[inline(always)]
    pub(crate) fn of<V: Value>(bytes: &[u8], steps: &[Step], tally: &mut Tally) -> Self {
        let literals = Literals::new::<V>(bytes, steps);
        let mut frequencies = Frequencies::new();
        let is_sample = tally.sample::<V>(&literals);
        frequencies.add_literals::<V>(&literals, tally);
        if is_sample && frequencies.literal_bits() < STRUCTURED * literals.len() as f32 {
            frequencies = Frequencies::new();
            tally.all::<V>(&literals);
            frequencies.add_literals::<V>(&literals, tally);
        }
        frequencies.count_matches(steps);
        frequencies.count_run_starts(bytes, steps);
        frequencies
    }

    /// Of steps of any kind over `bytes`: every literal is counted.
    pub(crate) fn exact(bytes: &[u8], steps: &[Step]) -> Self {
        let mut counts = [0u32; 256];
        let mut at = 0;
        for step in steps {
            let literals = &bytes[at..at + step.literals as usize];
            literals.iter().for_each(|&byte| counts[byte as usize] += 1);
            at += (step.literals + step.matched) as usize;
        }
        let mut frequencies = Frequencies::new();
        frequencies.litlen.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count as f32);
        frequencies.count_matches(steps);
        frequencies
    }

    #[inline(always)]
    fn add_literals<V: Value>(&mut self, literals: &Literals<'_>, tally: &Tally) {
        let sums = self.litlen.first_chunk_mut().expect("literals come first");
        tally.add_to::<V>(literals, sums);
    }

    /// Adds the literals that begin a run of equal bytes.
    #[inline(always)]
    fn count_run_starts(&mut self, bytes: &[u8], steps: &[Step]) {
        // Nearly all are the same: they are counted in a register.
        let (mut byte, mut count, mut at) = (0, 0, 0);
        for step in steps {
            at += step.literals as usize;
            if step.matched > 0 && step.distance == Distance::BYTE {
                let first = bytes[at - 1];
                if first != byte {
                    self.litlen[byte as usize] += count as f32;
                    (byte, count) = (first, 0);
                }
                count += 1;
            }
            at += step.matched as usize;
        }
        self.litlen[byte as usize] += count as f32;
    }

    #[inline(always)]
    fn count_matches(&mut self, steps: &[Step]) {
        // Lengths differ from one match to the next, distances hardly.
        let mut lengths = [0u32; LITLEN_SYMBOLS - END_OF_BLOCK];
        let mut longest_matches = 0;
        let (mut last, mut matches) = (Distance::BYTE, 0);
        for step in steps.iter().filter(|step| step.matched > 0) {
            if step.distance != last {
                self.add_matches(last, matches);
                (last, matches) = (step.distance, 0);
            }
            let (longest, rest) = cut_match(step.matched);
            longest_matches += longest;
            matches += longest;
            for length in rest.into_iter().filter(|&length| length > 0) {
                lengths[LENGTH_CODES[length as usize].symbol as usize - END_OF_BLOCK] += 1;
                matches += 1;
            }
        }
        self.add_matches(last, matches);
        lengths[LITLEN_SYMBOLS - END_OF_BLOCK - 1] += longest_matches;
        self.litlen[END_OF_BLOCK..].iter_mut().zip(lengths).for_each(|(sum, count)| *sum += count as f32);
    }

    #[inline(always)]
    fn add_matches(&mut self, distance: Distance, matches: u32) {
        let code = distance.code();
        self.distances[code.symbol as usize] += matches as f32;
        self.extra += f32::from(code.extra_bits) * matches as f32;
    }

    /// Those of two blocks in one.
    #[inline(always)]
    pub(crate) fn joined(&self, other: &Frequencies) -> Frequencies {
        let mut both = self.clone();
        both.add(other);
        both
    }

    /// Adds another block's.
    #[inline(always)]
    fn add(&mut self, other: &Frequencies) {
        self.litlen.iter_mut().zip(&other.litlen).for_each(|(sum, more)| *sum += more);
        self.distances.iter_mut().zip(&other.distances).for_each(|(sum, more)| *sum += more);
        self.extra += other.extra;
    }

    /// The bits that these symbols take at the least, without the extra bits of lengths.
    #[inline(always)]
    pub(crate) fn bits(&self) -> f32 {
        entropy_bits(&self.litlen) + entropy_bits(&self.distances) + self.extra
    }

    #[inline(always)]
    fn literal_bits(&self) -> f32 {
        entropy_bits(&self.litlen[..256])
    }

    /// Of literals and lengths.
    pub(crate) fn litlen(&self) -> &[f32] {
        &self.litlen[..LITLEN_SYMBOLS]
    }

    /// Of distances.
    pub(crate) fn distances(&self) -> &[f32] {
        &self.distances[..DISTANCE_SYMBOLS]
    }
}

/// The bits that symbols of these frequencies take at the least.
#[inline(always)]
fn entropy_bits(frequencies: &[f32]) -> f32 {
    // By lanes, or the compiler would have to add one after the other.
    let (mut totals, mut bits) = ([0.0f32; LANES], [0.0f32; LANES]);
    for chunk in frequencies.chunks_exact(LANES) {
        for lane in 0..LANES {
            totals[lane] += chunk[lane];
            bits[lane] += chunk[lane] * log2(chunk[lane]);
        }
    }
    let total: f32 = totals.iter().sum();
    total * log2(total) - bits.iter().sum::<f32>()
}

/// The binary logarithm of a number that is not negative, to about four digits; that of 0 is finite.
#[inline(always)]
fn log2(x: f32) -> f32 {
    let bits = x.to_bits() as i32;
    let exponent = ((bits >> 23) - 127) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff | 0x3f80_0000) as u32);
    // Exact at both ends, off by at most 1.2e-4 between.
    exponent + (m - 1.0) * (1.0 + (m - 2.0) * (-0.759_914 + m * (0.403_319 - m * 0.082_130)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_close() {
        for x in [1.0f32, 1.1, 1.5, 1.999, 2.0, 3.0, 77.7, 1e-3, 1e6] {
            assert!((log2(x) - x.log2()).abs() < 2e-4, "{x}");
        }
        assert!(log2(0.0).is_finite());
    }

    #[test]
    fn entropy_of_known_distributions() {
        assert!((entropy_bits(&[3.0; 256]) - 3.0 * 256.0 * 8.0).abs() < 1.0);
        let mut one = [0.0; 32];
        one[5] = 100.0;
        assert!(entropy_bits(&one).abs() < 0.1);
        assert!(entropy_bits(&[0.0; 32]).abs() < 1e-3);
    }
}
