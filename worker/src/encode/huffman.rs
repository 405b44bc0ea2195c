//! Prefix codes: from how often each symbol occurs to code lengths, and from lengths to deflate's codes.
//!
//! Lengths are optimal: the two-queue Huffman construction over sorted frequencies, and package-merge
//! where that would pass the length limit (L. Larmore, D. Hirschberg, "A fast algorithm for optimal
//! length-limited Huffman codes", 1990). Codes are canonical as RFC 1951, 3.2.2 defines them, bit-reversed
//! because deflate packs bits lowest first but codes from their highest bit.

/// The most symbols an alphabet has here: deflate's literals and lengths.
const MAX_SYMBOLS: usize = 286;

/// The length no deflate code may pass.
pub(crate) const MAX_LENGTH: u32 = 15;

/// Writes into `lengths` an optimal prefix code for `freqs` with no code longer than `limit`.
///
/// Symbols of frequency 0 get length 0 (no code). A single symbol gets length 1.
pub(crate) fn code_lengths(freqs: &[u32], limit: u32, lengths: &mut [u8]) {
    assert!(freqs.len() <= MAX_SYMBOLS && freqs.len() == lengths.len());
    assert!(limit <= MAX_LENGTH && freqs.len() <= 1 << limit);
    lengths.fill(0);
    let mut keys = [0u64; MAX_SYMBOLS];
    let mut used = 0;
    for (symbol, &freq) in freqs.iter().enumerate() {
        keys[used] = u64::from(freq) << 16 | symbol as u64;
        used += usize::from(freq != 0);
    }
    let keys = &mut keys[..used];
    match keys {
        [] => return,
        [only] => return lengths[(*only & 0xffff) as usize] = 1,
        _ => keys.sort_unstable(),
    }
    let mut sorted = [0u8; MAX_SYMBOLS];
    let sorted = &mut sorted[..used];
    if !unlimited(keys, limit, sorted) {
        package_merge(keys, limit, sorted);
    }
    for (key, &length) in keys.iter().zip(&*sorted) {
        lengths[(key & 0xffff) as usize] = length;
    }
}

/// Huffman's construction with two queues: leaves in `keys` (ascending, frequency above bit 16) and
/// packages in the order they are made. False where a code would be longer than `limit`.
fn unlimited(keys: &[u64], limit: u32, lengths: &mut [u8]) -> bool {
    let n = keys.len();
    let mut weight = [0u64; MAX_SYMBOLS];
    // The package each leaf or package is part of.
    let mut leaf_parent = [0u16; MAX_SYMBOLS];
    let mut node_parent = [0u16; MAX_SYMBOLS];
    let (mut leaf, mut node) = (0, 0);
    for made in 0..n - 1 {
        let mut sum = 0;
        for _ in 0..2 {
            if node >= made || (leaf < n && keys[leaf] >> 16 <= weight[node]) {
                sum += keys[leaf] >> 16;
                leaf_parent[leaf] = made as u16;
                leaf += 1;
            } else {
                sum += weight[node];
                node_parent[node] = made as u16;
                node += 1;
            }
        }
        weight[made] = sum;
    }
    let mut depth = [0u8; MAX_SYMBOLS];
    for node in (0..n - 2).rev() {
        depth[node] = depth[node_parent[node] as usize].saturating_add(1);
    }
    for (length, &parent) in lengths.iter_mut().zip(&leaf_parent) {
        *length = depth[parent as usize].saturating_add(1);
    }
    // The rarest symbol has the longest code.
    u32::from(lengths[0]) <= limit
}

/// Package-merge: `limit` rounds, each of which pairs up the last round's list and merges it with the
/// leaves. A leaf's length is the number of rounds in which it is among the items chosen.
fn package_merge(keys: &[u64], limit: u32, lengths: &mut [u8]) {
    let n = keys.len();
    let mut list: Vec<u64> = keys.iter().map(|key| key >> 16).collect();
    // For each round, which items of the merged list are leaves.
    let mut is_leaf: Vec<Vec<bool>> = vec![vec![true; n]];
    for _ in 1..limit {
        let packages: Vec<u64> = list.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
        let (mut merged, mut flags) = (Vec::with_capacity(2 * n), Vec::with_capacity(2 * n));
        let (mut leaf, mut package) = (0, 0);
        while leaf < n || package < packages.len() {
            let take_leaf = package == packages.len() || (leaf < n && keys[leaf] >> 16 <= packages[package]);
            if take_leaf {
                merged.push(keys[leaf] >> 16);
                leaf += 1;
            } else {
                merged.push(packages[package]);
                package += 1;
            }
            flags.push(take_leaf);
        }
        list = merged;
        is_leaf.push(flags);
    }
    lengths.fill(0);
    let mut chosen = 2 * n - 2;
    for flags in is_leaf.iter().rev() {
        let leaves = flags[..chosen].iter().filter(|&&leaf| leaf).count();
        for length in &mut lengths[..leaves] {
            *length += 1;
        }
        chosen = 2 * (chosen - leaves);
    }
}

/// Writes the canonical code of each symbol into `codes`, ready for a lowest-bit-first stream.
pub(crate) fn canonical_codes(lengths: &[u8], codes: &mut [u16]) {
    let mut count = [0u16; MAX_LENGTH as usize + 1];
    for &length in lengths {
        count[length as usize] += 1;
    }
    count[0] = 0;
    let mut next = [0u16; MAX_LENGTH as usize + 1];
    let mut code = 0;
    for length in 1..next.len() {
        code = (code + count[length - 1]) << 1;
        next[length] = code;
    }
    for (code, &length) in codes.iter_mut().zip(lengths) {
        *code = 0;
        if length > 0 {
            let next = &mut next[length as usize];
            *code = next.reverse_bits() >> (16 - u32::from(length));
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(freqs: &[u32], lengths: &[u8]) -> u64 {
        freqs.iter().zip(lengths).map(|(&f, &l)| u64::from(f) * u64::from(l)).sum()
    }

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
            assert_eq!(lengths.iter().copied().max(), Some(limit as u8));
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
            freqs in prop::collection::vec(prop_oneof![Just(0u32), 1u32..4, 1u32..1_000_000], 2..286),
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

        #[test]
        fn package_merge_costs_what_huffman_costs_where_both_may(
            freqs in prop::collection::vec(1u32..500, 2..200),
        ) {
            let mut keys: Vec<u64> = freqs.iter().enumerate().map(|(s, &f)| u64::from(f) << 16 | s as u64).collect();
            keys.sort_unstable();
            let sorted: Vec<u32> = keys.iter().map(|key| (key >> 16) as u32).collect();
            let (mut free, mut limited) = (vec![0; keys.len()], vec![0; keys.len()]);
            if unlimited(&keys, 15, &mut free) {
                package_merge(&keys, 15, &mut limited);
                prop_assert_eq!(cost(&sorted, &free), cost(&sorted, &limited));
            }
        }
    }
}
