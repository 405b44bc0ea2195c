//! What the kernels for x86-64 share: comparing neighbours by AVX2, which all of their processors have.

use std::arch::x86_64::*;

use super::super::runs::{PAIRS, Value};

/// [`equal_pairs`](super::super::runs::equal_pairs) by vectors.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn equal_pairs<V: Value>(values: &[V; PAIRS + 1]) -> u64 {
    let load = |at: usize| {
        debug_assert!(at * V::SIZE + size_of::<__m256i>() <= size_of_val(values));
        // SAFETY: a vector from there on lies within the values, and any bytes are one.
        unsafe { _mm256_loadu_si256(values.as_ptr().add(at).cast()) }
    };
    match V::SIZE {
        4 => (0..PAIRS).step_by(8).fold(0, |equal, at| {
            let lanes = _mm256_castsi256_ps(_mm256_cmpeq_epi32(load(at), load(at + 1)));
            equal | (_mm256_movemask_ps(lanes) as u64) << at
        }),
        2 => (0..PAIRS).step_by(32).fold(0, |equal, at| {
            let [first, second] = [at, at + 16].map(|at| _mm256_cmpeq_epi16(load(at), load(at + 1)));
            // Packed by halves: the two in the middle change places.
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(first, second));
            equal | u64::from(_mm256_movemask_epi8(bytes) as u32) << at
        }),
        _ => unreachable!("values are of 2 or 4 bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::runs;
    use super::*;

    fn check<V: Value>(of: impl Fn(u32) -> V) {
        let mut state = 7u32;
        for _ in 0..1000 {
            let values: [V; PAIRS + 1] = std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                of(state >> 31)
            });
            // SAFETY: `check` is called only where the processor has the instructions.
            assert_eq!(unsafe { equal_pairs(&values) }, runs::equal_pairs(&values));
        }
    }

    #[test]
    fn vectors_find_what_plain_rust_does() {
        if is_x86_feature_detected!("avx2") {
            check(|bit| 0x3f80_0000 + (bit << 24));
            check(|bit| 0x3c00 + (bit << 8) as u16);
        }
    }
}
