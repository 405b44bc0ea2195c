//! The order `--shuffle --seed` gives. It is part of what a user may write down to repeat a run, so
//! it is spelled out here and depends on nothing but the ChaCha8 cipher: no `seed_from_u64`, no
//! library's shuffle, whose results may change between versions.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use sha2::{Digest, Sha256};

/// Fisher and Yates, from the end, with ChaCha8 keyed by SHA-256 of a label and the seed.
pub(super) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut key = Sha256::new();
    key.update(b"lenspool shuffle 1");
    key.update(seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key.finalize().into());
    for last in (1..items.len()).rev() {
        items.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
}

/// A uniform number under `n`: draws again where the remainder would favour small ones.
fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    let unfair = u64::MAX - u64::MAX % n;
    loop {
        let drawn = rng.next_u64();
        if drawn < unfair {
            return drawn % n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_a_seed_never_changes() {
        let mut items: Vec<u32> = (0..12).collect();
        shuffle(&mut items, 42);
        assert_eq!(items, [8, 11, 1, 3, 0, 10, 9, 7, 6, 2, 4, 5]);
    }

    #[test]
    fn every_item_is_kept_and_seeds_differ() {
        let order = |seed| {
            let mut items: Vec<u32> = (0..1000).collect();
            shuffle(&mut items, seed);
            items
        };
        assert_ne!(order(1), order(2));
        let mut sorted = order(1);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
    }

    #[test]
    fn every_order_is_as_likely() {
        let mut counts = [0u32; 6];
        for seed in 0..6000 {
            let mut items = [0u8, 1, 2];
            shuffle(&mut items, seed);
            counts[usize::from(items[0]) * 2 + usize::from(items[1] > items[2])] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }
}
