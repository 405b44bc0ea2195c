//! Prefix codes: from how often each symbol occurs to code lengths, and from lengths to deflate's codes.
//!
//! Lengths are optimal for frequencies rounded to some per cent, which lets them be sorted by counting: the
//! two-queue Huffman construction. Where a code would pass the length limit, the rarest symbols are taken for
//! more frequent until none does: they are too rare for the difference to the best limited code to be seen. Codes are canonical as RFC 1951, 3.2.2 defines them,
//! bit-reversed because deflate packs bits lowest first but codes from their highest bit.

/// The most symbols an alphabet has here: deflate's literals and lengths.
const MAX_SYMBOLS: usize = 286;

/// The length no deflate code may pass.
pub(crate) const MAX_LENGTH: u32 = 15;

/// The bits of a weight, from its highest one, that are looked at: what is lost by that is not seen in a file.
const PRECISION: u32 = 6;

/// How many ranks weights below `2^23` have.
const RANKS: usize = (23 - PRECISION as usize + 2) << (PRECISION - 1);

/// Bits of a weight that are not looked at.
fn surplus(weight: u32) -> u32 {
    (weight.ilog2() + 1).saturating_sub(PRECISION)
}

/// Orders weights as they are, but for their surplus.
fn rank(weight: u32) -> usize {
    let surplus = surplus(weight);
    ((surplus << (PRECISION - 1)) + (weight >> surplus)) as usize
}

/// The middle of all weights of this one's rank.
fn rounded(weight: u32) -> u32 {
    let surplus = surplus(weight);
    (weight >> surplus << surplus) + (1 << surplus >> 1)
}

/// Writes into `lengths` a prefix code for symbols of these weights, which are below `2^23` and sum up to
/// below `2^28`, with no code longer than `limit`; optimal where that is no limit, for weights rounded to their
/// highest bits.
///
/// Symbols of weight 0 get length 0 (no code). A single symbol gets length 1.
pub(crate) fn code_lengths(weights: &[u32], limit: u32, lengths: &mut [u8]) {
    assert!(weights.len() <= MAX_SYMBOLS && weights.len() == lengths.len());
    assert!(limit <= MAX_LENGTH && weights.len() <= 1 << limit);
    lengths.fill(0);
    // Sorted by counting: where in the order the symbols of each rank begin.
    let mut starts = [0u16; RANKS];
    let mut highest = 0;
    for &weight in weights.iter().filter(|&&weight| weight > 0) {
        let rank = rank(weight);
        starts[rank] += 1;
        highest = highest.max(rank);
    }
    let mut used = 0;
    for start in &mut starts[..=highest] {
        (*start, used) = (used, used + *start);
    }
    let mut symbols = [0u16; MAX_SYMBOLS];
    let mut sorted = [0u32; MAX_SYMBOLS + 1];
    for (symbol, &weight) in weights.iter().enumerate().filter(|&(_, &weight)| weight > 0) {
        let next = &mut starts[rank(weight)];
        symbols[*next as usize] = symbol as u16;
        sorted[*next as usize] = rounded(weight);
        *next += 1;
    }
    let symbols = &symbols[..used.into()];
    match symbols {
        [] => return,
        [only] => return lengths[*only as usize] = 1,
        _ => {}
    }
    let mut sorted_lengths = [0u8; MAX_SYMBOLS];
    let sorted_lengths = &mut sorted_lengths[..symbols.len()];
    let mut least = sorted[0];
    while !unlimited(&mut sorted, limit, sorted_lengths) {
        least *= 2;
        sorted[..symbols.len()].iter_mut().for_each(|weight| *weight = (*weight).max(least));
    }
    for (&symbol, &length) in symbols.iter().zip(&*sorted_lengths) {
        lengths[symbol as usize] = length;
    }
}

/// Huffman's construction with two queues: leaves of ascending `weights`, one for each of `lengths`, and
/// packages in the order they are made. False where a code would be longer than `limit`.
fn unlimited(weights: &mut [u32; MAX_SYMBOLS + 1], limit: u32, lengths: &mut [u8]) -> bool {
    let n = lengths.len();
    // What is not there is heavier than anything: no queue needs to be checked for its end.
    weights[n] = u32::MAX;
    let mut packages = [u32::MAX; MAX_SYMBOLS + 1];
    // The package each leaf or package is part of.
    let mut leaf_parent = [0u16; MAX_SYMBOLS + 1];
    let mut package_parent = [0u16; MAX_SYMBOLS + 1];
    let (mut leaf, mut package) = (0, 0);
    for made in 0..n - 1 {
        // Mostly leaves first, then mostly packages: the branch is worth predicting.
        let mut take = || {
            if weights[leaf] <= packages[package] {
                leaf_parent[leaf] = made as u16;
                leaf += 1;
                weights[leaf - 1]
            } else {
                package_parent[package] = made as u16;
                package += 1;
                packages[package - 1]
            }
        };
        let sum = take() + take();
        packages[made] = sum;
    }
    let mut depth = [0u8; MAX_SYMBOLS];
    for package in (0..n - 2).rev() {
        depth[package] = depth[package_parent[package] as usize].saturating_add(1);
    }
    for (length, &parent) in lengths.iter_mut().zip(&leaf_parent) {
        *length = depth[parent as usize].saturating_add(1);
    }
    // The rarest symbol has the longest code.
    u32::from(lengths[0]) <= limit
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
