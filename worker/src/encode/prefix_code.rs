//! Prefix codes: from how often each symbol occurs to code lengths, and from lengths to deflate's codes.
//!
//! Lengths `l` are to minimise the sum of `w l` over symbols of weights `w`, while the sum of `2^-l` is 1 (Kraft).
//! To make a code a bit shorter takes `2^-l` more of that sum and gains `w`: so what is worth most is where
//! `w 2^l` is greatest. Of codes as long as each weight's exponent says, whose sum is somewhere from half to all,
//! those with the greatest mantissas are made shorter, up to a mantissa for which the sum has no room (which is the
//! Lagrangian relaxation of the problem); what little room is left is given to single symbols. That comes close to
//! Huffman's construction (a test says how close) and needs neither an order of the symbols nor a tree.
//!
//! Codes are canonical as RFC 1951, 3.2.2 defines them, bit-reversed because deflate packs bits lowest first but
//! codes from their highest bit.

/// The most symbols an alphabet has here: deflate's literals and lengths.
const MAX_SYMBOLS: usize = 286;

/// The length no deflate code may pass.
pub(crate) const MAX_LENGTH: u32 = 15;

/// The bits of a weight below its highest one that are looked at: what is lost by that is not seen in a file.
const PRECISION: u32 = 5;

const MANTISSAS: usize = 1 << PRECISION;

/// Exponents of weights below `2^23`, of which 0 is 0 and that of 1 is 1.
const EXPONENTS: usize = 24;

/// The exponent and, in the lowest [`PRECISION`] bits, the mantissa of a weight; 0 for 0.
fn rank(weight: u32) -> u16 {
    // As a float has them.
    const HALF: u32 = 0.5f32.to_bits() >> (23 - PRECISION);
    let bits = (weight as i32 as f32).to_bits() >> (23 - PRECISION);
    bits.saturating_sub(HALF) as u16
}

/// Symbols by the ranks of their weights.
struct Ranks<'a> {
    of: &'a mut [u16],
    /// How many have each exponent and mantissa.
    counts: [[u16; MANTISSAS]; EXPONENTS],
}

impl Ranks<'_> {
    /// Takes one symbol of a rank, which has one, out.
    fn take(&mut self, exponent: usize, mantissa: usize) -> usize {
        const CHUNK: usize = 32;
        self.counts[exponent][mantissa] -= 1;
        let rank = (exponent * MANTISSAS + mantissa) as u16;
        // Without an early exit from chunks, so that they become vector code.
        let is_in = |chunk: &[u16]| chunk.iter().fold(false, |found, &other| found | (other == rank));
        let chunk = self.of.chunks(CHUNK).position(is_in).unwrap_or_default();
        let symbol = (chunk * CHUNK..self.of.len()).find(|&symbol| self.of[symbol] == rank);
        let symbol = symbol.expect("as many symbols as are counted");
        self.of[symbol] = u16::MAX;
        symbol
    }
}

/// Writes into `lengths` a prefix code for symbols of these weights, which are below `2^23` and sum up to
/// below `2^28`, with no code longer than `limit`.
///
/// Symbols of weight 0 get length 0 (no code). A single symbol gets length 1.
pub(crate) fn code_lengths(weights: &[u32], limit: u32, lengths: &mut [u8]) {
    assert!(weights.len() <= MAX_SYMBOLS && weights.len() == lengths.len());
    assert!(limit <= MAX_LENGTH && weights.len() <= 1 << limit);
    let mut of = [0; MAX_SYMBOLS];
    of.iter_mut().zip(weights).for_each(|(rank_of, &weight)| *rank_of = rank(weight));
    let mut ranks = Ranks { of: &mut of[..weights.len()], counts: [[0; MANTISSAS]; EXPONENTS] };
    for &rank in &*ranks.of {
        ranks.counts[usize::from(rank) / MANTISSAS][usize::from(rank) % MANTISSAS] += 1;
    }
    let used = weights.len() - usize::from(ranks.counts[0][0]);
    if used < 2 {
        lengths.iter_mut().zip(weights).for_each(|(length, &weight)| *length = (weight > 0).into());
        return;
    }
    let is_used = |counts: &[u16; MANTISSAS]| counts.iter().fold(0, |any, count| any | count) > 0;
    let mut lowest = (1..EXPONENTS).find(|&exponent| is_used(&ranks.counts[exponent])).expect("one is used");

    // In units of what a code for exponent 1 takes of Kraft's sum.
    let (mut longest, mut takes, mut room);
    loop {
        takes = [0u32; MANTISSAS];
        for (exponent, counts) in ranks.counts.iter().enumerate().skip(lowest) {
            for (sum, &count) in takes.iter_mut().zip(counts) {
                *sum += u32::from(count) << (exponent - 1);
            }
        }
        let sum: u32 = takes.iter().sum();
        longest = sum.next_power_of_two().ilog2() as usize + 1;
        room = (1 << (longest - 1)) - sum;
        if longest - lowest <= limit as usize {
            break;
        }
        // The rarest are taken for as frequent as the limit wants.
        let least = longest - limit as usize;
        for counts in &mut ranks.counts[lowest..least] {
            *counts = [0; MANTISSAS];
        }
        let least_rank = (least * MANTISSAS) as u16;
        let raised = ranks.of.iter_mut().filter(|rank| (1..least_rank).contains(*rank));
        ranks.counts[least][0] += raised.map(|rank| *rank = least_rank).count() as u16;
        lowest = least;
    }

    let mut least = MANTISSAS;
    while takes[least - 1] <= room {
        least -= 1;
        room -= takes[least];
    }
    for (length, &rank) in lengths.iter_mut().zip(&*ranks.of) {
        let (exponent, mantissa) = (usize::from(rank) / MANTISSAS, usize::from(rank) % MANTISSAS);
        let whole = longest - exponent - usize::from(mantissa >= least);
        *length = if rank > 0 { whole as u8 } else { 0 };
    }

    // Single symbols that fit, in the same order.
    for mantissa in (0..least).rev() {
        if room == 0 {
            break;
        }
        let highest = (room.ilog2() as usize + 1).min(EXPONENTS - 1);
        for exponent in (lowest..=highest).rev() {
            while ranks.counts[exponent][mantissa] > 0 && 1 << (exponent - 1) <= room {
                lengths[ranks.take(exponent, mantissa)] -= 1;
                room -= 1 << (exponent - 1);
            }
        }
    }
    // A second time for some. The longest code always fits: all terms of the sum are multiples of what it takes.
    while room > 0 {
        let shortest = (longest - 1 - room.ilog2() as usize) as u8;
        let length =
            lengths.iter().copied().filter(|&length| length >= shortest).min().expect("the longest fits");
        let symbol = lengths.iter().position(|&other| other == length).expect("it is one of them");
        lengths[symbol] -= 1;
        room -= 1 << (longest - 1 - usize::from(length));
    }
}

/// Writes the canonical code of each symbol into `codes`, ready for a lowest-bit-first stream.
pub(crate) fn canonical_codes(lengths: &[u8], codes: &mut [u16]) {
    // Two halves at a time, as a symbol waits for the one before it of the same length.
    let (first, second) = lengths.split_at(lengths.len().div_ceil(2));
    let mut count = [[0u16; MAX_LENGTH as usize + 1]; 2];
    for (half, lengths) in [first, second].into_iter().enumerate() {
        lengths.iter().for_each(|&length| count[half][length as usize] += 1);
    }
    // Codes are kept at the upper end of 16 bits: reversed as a whole, they begin at bit 0.
    let mut next = [[0u16; MAX_LENGTH as usize + 1]; 2];
    let mut code = 0u16;
    for length in 1..=MAX_LENGTH as usize {
        for half in 0..2 {
            next[half][length] = code;
            code = code.wrapping_add(count[half][length] << (16 - length));
        }
    }
    let mut take = |half: usize, length: u8| {
        let next = &mut next[half][length as usize];
        let code = if length > 0 { reverse(*next) } else { 0 };
        *next = next.wrapping_add(((1u32 << 16) >> length) as u16);
        code
    };
    let (first_codes, second_codes) = codes.split_at_mut(first.len());
    for ((code, other), (&length, &other_length)) in
        first_codes.iter_mut().zip(second_codes.iter_mut()).zip(first.iter().zip(second))
    {
        (*code, *other) = (take(0, length), take(1, other_length));
    }
    if first.len() > second.len() {
        first_codes[second.len()] = take(0, first[second.len()]);
    }
}

fn reverse(code: u16) -> u16 {
    static BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            bytes[byte] = (byte as u8).reverse_bits();
            byte += 1;
        }
        bytes
    };
    let [low, high] = code.to_le_bytes();
    u16::from_le_bytes([BYTES[high as usize], BYTES[low as usize]])
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    fn kraft(lengths: &[u8]) -> u64 {
        lengths.iter().filter(|&&l| l > 0).map(|&l| 1 << (MAX_LENGTH - u32::from(l))).sum()
    }

    #[test]
    fn fibonacci_frequencies_need_the_limit() {
        let mut freqs = vec![1u32, 1];
        while freqs.len() < 24 {
            freqs.push(freqs[freqs.len() - 1] + freqs[freqs.len() - 2]);
        }
        let mut lengths = vec![0; freqs.len()];
        for limit in [5, 7, 12, 15] {
            code_lengths(&freqs, limit, &mut lengths);
            assert!(lengths.iter().all(|&length| (1..=limit as u8).contains(&length)));
            assert_eq!(kraft(&lengths), 1 << MAX_LENGTH, "the code is complete");
        }
    }

    /// What the best code takes, without a limit: all packages' weights.
    fn least_bits(weights: &[u32]) -> u64 {
        let used = weights.iter().filter(|&&weight| weight > 0);
        let mut heap: BinaryHeap<_> = used.map(|&weight| Reverse(u64::from(weight))).collect();
        let mut bits = 0;
        while let (Some(Reverse(first)), Some(Reverse(second))) = (heap.pop(), heap.pop()) {
            bits += first + second;
            heap.push(Reverse(first + second));
            if heap.len() == 1 {
                break;
            }
        }
        bits
    }

    fn bits(weights: &[u32]) -> u64 {
        let mut lengths = vec![0; weights.len()];
        code_lengths(weights, MAX_LENGTH, &mut lengths);
        weights.iter().zip(lengths).map(|(&weight, length)| u64::from(weight) * u64::from(length)).sum()
    }

    #[test]
    fn close_to_huffmans_construction() {
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..50 {
            // Bytes of a pattern: noise, and some that are much more frequent.
            let mut pattern: Vec<u32> = (0..286).map(|_| 2000 + random(1500)).collect();
            (0..20).for_each(|symbol| pattern[symbol] += random(60_000));
            assert!(bits(&pattern) * 2000 <= least_bits(&pattern) * 2001);
            // As it gets for few symbols of any weights.
            let few: Vec<u32> = (0..8).map(|_| 1 + random(10_000)).collect();
            assert!(bits(&few) * 100 <= least_bits(&few) * 104, "{few:?}");
        }
    }

    #[test]
    fn few_symbols() {
        let mut lengths = [9; 3];
        code_lengths(&[0, 0, 0], 15, &mut lengths);
        assert_eq!(lengths, [0, 0, 0]);
        code_lengths(&[0, 7, 0], 15, &mut lengths);
        assert_eq!(lengths, [0, 1, 0]);
        code_lengths(&[1, 7, 0], 15, &mut lengths);
        assert_eq!(lengths, [1, 1, 0]);
    }

    #[test]
    fn the_example_of_rfc_1951() {
        // 3.2.2: lengths (3, 3, 3, 3, 3, 2, 4, 4) give 010 011 100 101 110 00 1110 1111.
        let lengths = [3, 3, 3, 3, 3, 2, 4, 4];
        let mut codes = [0; 8];
        canonical_codes(&lengths, &mut codes);
        let forward: Vec<u16> =
            codes.iter().zip(lengths).map(|(c, l)| c.reverse_bits() >> (16 - u32::from(l))).collect();
        assert_eq!(forward, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
    }

    proptest! {
        #[test]
        fn codes_are_complete_and_within_the_limit(
            freqs in prop::collection::vec(prop_oneof![Just(0u32), 1u32..4, 1u32..500_000], 2..286),
            limit in 9u32..=15,
        ) {
            let mut lengths = vec![0; freqs.len()];
            code_lengths(&freqs, limit, &mut lengths);
            prop_assert!(lengths.iter().all(|&l| u32::from(l) <= limit));
            prop_assert!(freqs.iter().zip(&lengths).all(|(&f, &l)| (f > 0) == (l > 0)));
            if freqs.iter().filter(|&&f| f > 0).count() > 1 {
                prop_assert_eq!(kraft(&lengths), 1 << MAX_LENGTH);
            }
        }
    }
}
