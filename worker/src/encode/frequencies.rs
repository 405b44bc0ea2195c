//! How often each symbol of a block occurs: matches exactly, literals from a sample.

use super::runs::{Distance, Step, Value};
use super::tables::{DISTANCE_SYMBOLS, END_OF_BLOCK, LENGTH_CODES, LITLEN_SYMBOLS, cut_match};

/// Literals and lengths, rounded up to whole vectors.
const LANES: usize = 16;
const PADDED: usize = LITLEN_SYMBOLS.next_multiple_of(LANES);

/// Bytes looked at in one place: whole words of four, as a step's literals are.
const GROUP: usize = 64;

/// Bytes counted in one segment, about; all where there are fewer.
const SAMPLE: usize = 8 << 10;

/// A sample is good enough for literals that take more bits each than this; where they take fewer, there
/// is more to gain and all are counted.
const STRUCTURED: f32 = 6.0;

/// Occurrences in a sample of a literal that was not met there.
const UNSEEN: f32 = 0.3;

/// Frequencies of a block's symbols, in occurrences.
#[derive(Clone, Debug)]
pub(crate) struct Frequencies {
    litlen: [f32; PADDED],
    distances: [f32; DISTANCE_SYMBOLS],
}

/// Counts by place in a word of four bytes: what is noise in one place is not in another.
type ByPlace = [[u32; 256]; 4];

impl Frequencies {
    /// Of nothing but a block's end.
    pub(crate) fn new() -> Self {
        let mut litlen = [0.0; PADDED];
        litlen[END_OF_BLOCK] = 1.0;
        Frequencies { litlen, distances: [0.0; DISTANCE_SYMBOLS] }
    }

    /// Of `steps` over `bytes`, which are values of type `V`.
    pub(crate) fn of<V: Value>(bytes: &[u8], steps: &[Step]) -> Self {
        let mut frequencies = Frequencies::new();
        frequencies.count_matches::<V>(bytes, steps);
        let literals: usize = steps.iter().map(|step| step.literals as usize / V::SIZE * V::SIZE).sum();
        let every = (literals / SAMPLE).max(1);
        let exact = frequencies.clone();
        frequencies.count_literals::<V>(bytes, steps, every, literals);
        if every > 1 && frequencies.literal_bits() < STRUCTURED * literals as f32 {
            frequencies = exact;
            frequencies.count_literals::<V>(bytes, steps, 1, literals);
        }
        frequencies
    }

    /// Counts matches, and the literals that begin a run of equal bytes.
    fn count_matches<V: Value>(&mut self, bytes: &[u8], steps: &[Step]) {
        let mut at = 0;
        for step in steps.iter().filter(|step| step.matched > 0) {
            at += step.literals as usize;
            let (longest, rest) = cut_match(step.matched);
            self.litlen[285] += longest as f32;
            let mut matches = longest;
            for length in rest.into_iter().filter(|&length| length > 0) {
                self.litlen[LENGTH_CODES[length as usize].symbol as usize] += 1.0;
                matches += 1;
            }
            self.distances[step.distance.symbol::<V>()] += matches as f32;
            if step.distance == Distance::Byte {
                self.litlen[bytes[at - 1] as usize] += 1.0;
            }
            at += step.matched as usize;
        }
    }

    /// Counts one group of literals in `every`, of `literals` in whole values.
    fn count_literals<V: Value>(&mut self, bytes: &[u8], steps: &[Step], every: usize, literals: usize) {
        let mut places = [[0u32; 256]; 4];
        let mut at = 0;
        let mut skip = 0;
        for step in steps {
            let whole = step.literals as usize / V::SIZE * V::SIZE;
            let values = &bytes[at..at + whole];
            at += (step.literals + step.matched) as usize;
            if every == 1 {
                count(values, &mut places);
                continue;
            }
            while skip < values.len() {
                count(&values[skip..values.len().min(skip + GROUP)], &mut places);
                skip += GROUP * every;
            }
            skip -= values.len();
        }
        let counted: u32 = places.iter().flatten().sum();
        if counted == 0 {
            return;
        }
        let scale = literals as f32 / counted as f32;
        for place in &places {
            // Without a sample nothing is uncertain.
            let kept = if every == 1 { 1.0 } else { signal(place) };
            let mean = place.iter().sum::<u32>() as f32 / 256.0;
            for (sum, &count) in self.litlen.iter_mut().zip(place) {
                *sum += scale * (mean + kept * (count as f32 - mean));
            }
        }
        if every > 1 {
            // What the sample did not meet may still occur.
            self.litlen[..256].iter_mut().for_each(|sum| *sum += UNSEEN * every as f32);
        }
    }

    /// Adds another block's.
    pub(crate) fn add(&mut self, other: &Frequencies) {
        self.litlen.iter_mut().zip(&other.litlen).for_each(|(sum, more)| *sum += more);
        self.distances.iter_mut().zip(&other.distances).for_each(|(sum, more)| *sum += more);
    }

    /// The bits that literals and lengths take at the least.
    pub(crate) fn bits(&self) -> f32 {
        entropy_bits(&self.litlen)
    }

    fn literal_bits(&self) -> f32 {
        entropy_bits(&self.litlen[..256])
    }

    /// Of literals and lengths.
    pub(crate) fn litlen(&self) -> &[f32] {
        &self.litlen[..LITLEN_SYMBOLS]
    }

    /// Of distances.
    pub(crate) fn distances(&self) -> &[f32] {
        &self.distances
    }
}

#[inline(always)]
fn count(bytes: &[u8], places: &mut ByPlace) {
    let words = bytes.chunks_exact(4);
    for (place, &byte) in places.iter_mut().zip(words.remainder()) {
        place[byte as usize] += 1;
    }
    for word in words {
        for (place, &byte) in places.iter_mut().zip(word) {
            place[byte as usize] += 1;
        }
    }
}

/// How much of what sets these counts apart is more than chance: 0 for a mantissa's low byte, where all
/// values are as frequent and only the sample is not, nearly 1 for an exponent. Counts moved towards
/// their mean by the rest are closer to the truth than the counts (James and Stein's estimator).
fn signal(place: &[u32; 256]) -> f32 {
    let mean = place.iter().sum::<u32>() as f32 / 256.0;
    let variance = place.iter().map(|&count| (count as f32 - mean).powi(2)).sum::<f32>() / 255.0;
    // Chance alone varies by the mean (Poisson).
    if variance > mean { 1.0 - mean / variance } else { 0.0 }
}

/// The bits that symbols of these frequencies take at the least.
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

    #[test]
    fn chance_is_told_from_signal() {
        let mut state = 1u32;
        let mut noise = [0u32; 256];
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise[(state >> 24) as usize] += 1;
        }
        assert!(signal(&noise) < 0.3, "{}", signal(&noise));
        let mut few = [0u32; 256];
        few[60] = 900;
        few[61] = 1100;
        assert!(signal(&few) > 0.99);
        assert_eq!(signal(&[0; 256]), 0.0);
    }
}
