//! How often each literal occurs, from a sample: what the code of a block is made for.
//!
//! Bytes are counted by their place in a value. The lower half of a value is nearly always noise, of which
//! a glance is enough; sign, exponent and the mantissa's upper bits decide how good the code is.

use super::runs::{Step, Value};

/// Bytes looked at in one place: whole values, few, as neighbours in a row are alike.
const GROUP: usize = 32;

/// Bytes of which the literals are counted in one segment, about; all where there are fewer.
const SAMPLE: usize = 12 << 10;

/// From so many bytes on, half of them are enough.
const HALVED: usize = SAMPLE / 4 * 3;

/// Bytes, about, whose lower halves are looked at to see whether they are noise.
const GLANCE: usize = 1 << 10;

/// [`signal`] of a place that is noise: chance is nowhere near as much in a glance at random bytes.
const NOISE: f32 = 0.25;

/// Occurrences in a sample of a literal that was not met there.
const UNSEEN: f32 = 0.3;

/// Neighbours on either side whose counts a [smooth](smoothed) count is averaged with.
const REACH: usize = 4;

/// Counts are smooth if squared differences of neighbours sum up to at most so many times what chance makes of them.
const SMOOTH: f32 = 1.3;

/// In the place with the upper bits of a mantissa, bytes from this one on have the exponent's last bit set.
const MANTISSAS: usize = 128;

/// Values in a row that are counted apart.
const NEIGHBOURS: usize = 4;

/// Counts of one place in a value, by byte.
type Counts = [u32; 256];

/// The literals of some steps, in whole values.
#[derive(Clone, Copy)]
pub(crate) struct Literals<'a> {
    bytes: &'a [u8],
    steps: &'a [Step],
    len: usize,
}

impl<'a> Literals<'a> {
    /// Of `steps` over `bytes`, which are values of type `V`.
    #[inline(always)]
    pub(crate) fn new<V: Value>(bytes: &'a [u8], steps: &'a [Step]) -> Self {
        let len = steps.iter().map(|step| whole_values::<V>(step)).sum();
        Literals { bytes, steps, len }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Hands out one group in `every`.
    #[inline(always)]
    fn groups<V: Value>(&self, every: usize, mut take: impl FnMut(&[u8])) {
        let mut at = 0;
        let mut skip = 0;
        for step in self.steps {
            let values = &self.bytes[at..at + whole_values::<V>(step)];
            at += (step.literals + step.matched) as usize;
            if every == 1 {
                take(values);
                continue;
            }
            while skip < values.len() {
                take(&values[skip..values.len().min(skip + GROUP)]);
                skip += GROUP * every;
            }
            skip -= values.len();
        }
    }
}

#[inline(always)]
fn whole_values<V: Value>(step: &Step) -> usize {
    step.literals as usize / V::SIZE * V::SIZE
}

/// Counts by place; kept from one segment to the next, as it is large.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The places of a value's lower half.
    low: [Counts; 2],
    /// Those of its upper half. Neighbours often share an exponent, and adding to a count just written
    /// waits for that write: so each has a table of its own.
    high: [[Counts; 2]; NEIGHBOURS],
    /// One group in so many is counted.
    every: usize,
    /// Whether the lower halves are noise, and were not counted.
    noise: bool,
}

impl Default for Tally {
    fn default() -> Self {
        Tally { low: [[0; 256]; 2], high: [[[0; 256]; 2]; NEIGHBOURS], every: 1, noise: false }
    }
}

impl Tally {
    /// Counts a sample; true where groups were left out.
    #[inline(always)]
    pub(crate) fn sample<V: Value>(&mut self, literals: &Literals<'_>) -> bool {
        self.low = [[0; 256]; 2];
        let glance = (literals.len / GLANCE).max(4);
        let large = literals.len >= GLANCE;
        if large {
            literals.groups::<V>(glance, |bytes| count_low::<V>(bytes, &mut self.low));
        }
        let noise = large && self.low[..V::SIZE / 2].iter().all(|place| signal(place) < NOISE);
        let fewest = if literals.len >= HALVED { 2 } else { 1 };
        self.count::<V>(literals, (literals.len / SAMPLE).max(fewest), noise);
        self.every > 1
    }

    /// Counts every byte.
    #[inline(always)]
    pub(crate) fn all<V: Value>(&mut self, literals: &Literals<'_>) {
        self.count::<V>(literals, 1, false);
    }

    #[inline(always)]
    fn count<V: Value>(&mut self, literals: &Literals<'_>, every: usize, noise: bool) {
        self.high = [[[0; 256]; 2]; NEIGHBOURS];
        (self.every, self.noise) = (every, noise);
        if noise {
            literals.groups::<V>(every, |bytes| count_high::<V>(bytes, &mut self.high));
        } else {
            self.low = [[0; 256]; 2];
            literals.groups::<V>(every, |bytes| {
                count_low::<V>(bytes, &mut self.low);
                count_high::<V>(bytes, &mut self.high);
            });
        }
    }

    /// Adds what was counted to the occurrences of each byte, as a sample of `literals`.
    #[inline(always)]
    pub(crate) fn add_to<V: Value>(&self, literals: &Literals<'_>, sums: &mut [f32; 256]) {
        let occurrences = (literals.len / V::SIZE) as f32;
        let [mut high, ..] = self.high;
        for tables in &self.high[1..] {
            let counts = high.as_flattened_mut().iter_mut().zip(tables.as_flattened());
            counts.for_each(|(sum, &more)| *sum += more);
        }
        let places = V::SIZE / 2;
        let exact = self.every == 1;
        // The last place has the exponent, whose counts are not smooth.
        let (last, mantissas) = high[..places].split_last().expect("a value has an upper half");
        add(last, exact, occurrences, sums);
        for place in mantissas {
            match if exact { None } else { smoothed(place) } {
                Some(counts) => add(&counts, true, occurrences, sums),
                None => add(place, exact, occurrences, sums),
            }
        }
        for place in &self.low[..places] {
            if self.noise {
                add_noise(place, occurrences, sums);
            } else {
                add(place, exact, occurrences, sums);
            }
        }
        if !exact && !self.noise {
            // What the sample did not meet may still occur; noise has met everything.
            sums.iter_mut().for_each(|sum| *sum += UNSEEN * self.every as f32);
        }
    }
}

#[inline(always)]
fn count_low<V: Value>(bytes: &[u8], tables: &mut [Counts; 2]) {
    for value in bytes.chunks_exact(V::SIZE) {
        for (table, &byte) in tables.iter_mut().zip(&value[..V::SIZE / 2]) {
            table[byte as usize] += 1;
        }
    }
}

#[inline(always)]
fn count_high<V: Value>(bytes: &[u8], tables: &mut [[Counts; 2]; NEIGHBOURS]) {
    let mut count = |neighbour: usize, value: &[u8]| {
        for (table, &byte) in tables[neighbour].iter_mut().zip(&value[V::SIZE / 2..]) {
            table[byte as usize] += 1;
        }
    };
    let neighbours = bytes.chunks_exact(NEIGHBOURS * V::SIZE);
    let rest = neighbours.remainder();
    for values in neighbours {
        for neighbour in 0..NEIGHBOURS {
            count(neighbour, &values[neighbour * V::SIZE..][..V::SIZE]);
        }
    }
    rest.chunks_exact(V::SIZE).for_each(|value| count(0, value));
}

/// Adds one place's counts, of values of which there are `occurrences`; those of a sample as they are only if `exact`.
#[inline(always)]
fn add(place: &Counts, exact: bool, occurrences: f32, sums: &mut [f32; 256]) {
    let counted: u32 = place.iter().sum();
    if counted == 0 {
        return;
    }
    // Without a sample, or once it is smoothed, nothing is to be moved.
    let kept = if exact { 1.0 } else { signal(place) };
    let scale = occurrences / counted as f32 * kept;
    let flat = occurrences / 256.0 * (1.0 - kept);
    for (sum, &count) in sums.iter_mut().zip(place) {
        *sum += flat + scale * count as f32;
    }
}

/// Moving sums of a sample's counts, if the upper bits of mantissas have a smooth density, as they do in softmax
/// output: an average of neighbours is then closer to the truth than a byte's own count. None where neighbours
/// differ by more than chance (Poisson) would have it.
#[inline(always)]
fn smoothed(place: &Counts) -> Option<Counts> {
    let (mut differences, mut chance) = (0, 0);
    for counts in place.chunks_exact(MANTISSAS) {
        for (&count, &next) in counts.iter().zip(&counts[1..]) {
            let difference = count.abs_diff(next);
            differences += difference * difference;
            chance += count + next;
        }
    }
    if differences as f32 > SMOOTH * chance as f32 {
        return None;
    }
    let mut sums = [0; 256];
    for (counts, sums) in place.chunks_exact(MANTISSAS).zip(sums.chunks_exact_mut(MANTISSAS)) {
        // Mirrored at both ends.
        let mut padded = [0; MANTISSAS + 2 * REACH];
        padded[REACH..][..MANTISSAS].copy_from_slice(counts);
        for beyond in 0..REACH {
            padded[REACH - 1 - beyond] = counts[beyond];
            padded[REACH + MANTISSAS + beyond] = counts[MANTISSAS - 1 - beyond];
        }
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = padded[at..][..2 * REACH + 1].iter().sum();
        }
    }
    Some(sums)
}

/// Adds one place's counts where the values not counted have any byte.
#[inline(always)]
fn add_noise(place: &Counts, occurrences: f32, sums: &mut [f32; 256]) {
    let counted: u32 = place.iter().sum();
    let mean = (occurrences - counted as f32) / 256.0;
    sums.iter_mut().zip(place).for_each(|(sum, &count)| *sum += mean + count as f32);
}

/// How much of what sets these counts apart is more than chance: 0 for a mantissa's low byte, where all
/// values are as frequent and only the sample is not, nearly 1 for an exponent. Counts moved towards
/// their mean by the rest are closer to the truth than the counts (James and Stein's estimator).
#[inline(always)]
fn signal(place: &Counts) -> f32 {
    let (mut sum, mut squares) = (0, 0);
    for &count in place {
        sum += u64::from(count);
        squares += u64::from(count) * u64::from(count);
    }
    let mean = sum as f32 / 256.0;
    let variance = (256 * squares - sum * sum) as f32 / (256.0 * 255.0);
    // Chance alone varies by the mean (Poisson).
    if variance > mean { 1.0 - mean / variance } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of 2000 bytes, each as likely as the next.
    fn noise() -> Counts {
        let mut state = 1u32;
        let mut noise = [0; 256];
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise[(state >> 24) as usize] += 1;
        }
        noise
    }

    #[test]
    fn a_smooth_density_is_told_from_single_values() {
        let smooth = smoothed(&noise()).expect("neighbours differ by chance");
        // Nine counts of a mean of 7.8.
        assert!(smooth.iter().all(|&sum| sum.abs_diff(70) < 35), "{smooth:?}");
        let mut values = noise();
        (0..256).step_by(9).for_each(|byte| values[byte] += 20);
        assert_eq!(smoothed(&values), None);
        let mut few = [0; 256];
        few[130] = 3;
        assert_eq!(smoothed(&few), None);
    }

    #[test]
    fn sums_end_where_the_exponent_changes() {
        // Twice as many below as from 128 on, and not quite even.
        let place: Counts =
            std::array::from_fn(|byte| if byte < MANTISSAS { 20 } else { 10 } + byte as u32 % 3);
        let smooth = smoothed(&place).expect("nearly constant within an exponent");
        // Nine neighbours are three of each remainder; mirrored ones may differ a little.
        let even = |byte: usize| 9 * if byte < MANTISSAS { 21 } else { 11 };
        assert!((0..256).all(|byte| smooth[byte].abs_diff(even(byte)) <= 2), "{smooth:?}");
        assert_eq!(smooth.iter().sum::<u32>(), 9 * place.iter().sum::<u32>(), "no count is lost");
    }

    #[test]
    fn chance_is_told_from_signal() {
        let noise = noise();
        assert!(signal(&noise) < 0.3, "{}", signal(&noise));
        let mut few = [0u32; 256];
        few[60] = 900;
        few[61] = 1100;
        assert!(signal(&few) > 0.99);
        assert_eq!(signal(&[0; 256]), 0.0);
    }
}
