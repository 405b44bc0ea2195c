//! AVX-512 with VBMI: sixteen words of four literals at a time.
//!
//! The codes of all 256 literals fit into registers: three tables of 256 bytes (a code's low byte, its
//! high byte, its length), four registers each, looked up by byte permutes of 128 entries. Codes are
//! then joined pairwise by variable shifts, bytes to pairs to words; what is left for the scalar loop
//! is one write per word of four literals.

use std::arch::x86_64::*;

use super::super::bits::Cursor;
use super::super::code::BlockCode;
use super::super::runs::{self, Step, Value};
use super::write_match;

/// Whether this processor has the instructions.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
}

/// [`runs::scan`] compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,bmi1,bmi2,lzcnt")]
pub(super) fn scan<V: Value>(values: &[V], steps: &mut Vec<Step>) {
    runs::scan(values, steps);
}

/// A table of 256 bytes in four registers.
type Table = [__m512i; 4];

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn table(bytes: &[u8; 256]) -> Table {
    // SAFETY: four loads of 64 bytes from 256.
    std::array::from_fn(|part| unsafe { _mm512_loadu_si512(bytes.as_ptr().add(64 * part).cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up(table: &Table, bytes: __m512i, upper: __mmask64) -> __m512i {
    _mm512_mask_blend_epi8(
        upper,
        _mm512_permutex2var_epi8(table[0], bytes, table[1]),
        _mm512_permutex2var_epi8(table[2], bytes, table[3]),
    )
}

/// Codes of sixteen words of four literals: the even words', the odd words', all lengths.
#[repr(C, align(64))]
struct Words {
    even: [u64; 8],
    odd: [u64; 8],
    lengths: [u32; 16],
}

/// # Safety
/// The steps cover `bytes`; the cursor has room for the longest codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,bmi1,bmi2,lzcnt")]
pub(super) unsafe fn write(bytes: &[u8], steps: &[Step], code: &BlockCode, cursor: &mut Cursor) {
    let (mut low, mut high, mut length) = ([0u8; 256], [0u8; 256], [0u8; 256]);
    for byte in 0..256 {
        let (bits, len) = code.literal(byte);
        [low[byte], high[byte]] = bits.to_le_bytes();
        length[byte] = len;
    }
    let (low, high, length) = (table(&low), table(&high), table(&length));
    let mut words = Words { even: [0; 8], odd: [0; 8], lengths: [0; 16] };

    // Joins the codes of up to 64 literals, those of `live`, into `words`.
    let join = |literals: __m512i, live: __mmask64, words: &mut Words| {
        let upper = _mm512_movepi8_mask(literals);
        let lo = _mm512_maskz_mov_epi8(live, look_up(&low, literals, upper));
        let hi = _mm512_maskz_mov_epi8(live, look_up(&high, literals, upper));
        let len = _mm512_maskz_mov_epi8(live, look_up(&length, literals, upper));
        // 16-bit codes of the even and of the odd bytes, and their lengths.
        let byte = _mm512_set1_epi16(0xff);
        let even = _mm512_or_si512(_mm512_and_si512(lo, byte), _mm512_slli_epi16(hi, 8));
        let odd = _mm512_or_si512(_mm512_srli_epi16(lo, 8), _mm512_andnot_si512(byte, hi));
        let even_len = _mm512_and_si512(len, byte);
        let pair_len = _mm512_add_epi16(even_len, _mm512_srli_epi16(len, 8));
        // Pairs of 32 bits: first and second byte of each word, third and fourth.
        let half = _mm512_set1_epi32(0xffff);
        let first = _mm512_or_si512(
            _mm512_and_si512(even, half),
            _mm512_sllv_epi32(_mm512_and_si512(odd, half), _mm512_and_si512(even_len, half)),
        );
        let second = _mm512_or_si512(
            _mm512_srli_epi32(even, 16),
            _mm512_sllv_epi32(_mm512_srli_epi32(odd, 16), _mm512_srli_epi32(even_len, 16)),
        );
        let first_len = _mm512_and_si512(pair_len, half);
        let word_len = _mm512_add_epi32(first_len, _mm512_srli_epi32(pair_len, 16));
        // Words of 64 bits, the even and the odd ones.
        let low_half = _mm512_set1_epi64(0xffff_ffff);
        let even_words = _mm512_or_si512(
            _mm512_and_si512(first, low_half),
            _mm512_sllv_epi64(_mm512_and_si512(second, low_half), _mm512_and_si512(first_len, low_half)),
        );
        let odd_words = _mm512_or_si512(
            _mm512_srli_epi64(first, 32),
            _mm512_sllv_epi64(_mm512_srli_epi64(second, 32), _mm512_srli_epi64(first_len, 32)),
        );
        // SAFETY: each array is 64 bytes, and `Words` is aligned.
        unsafe {
            _mm512_store_si512(words.even.as_mut_ptr().cast(), even_words);
            _mm512_store_si512(words.odd.as_mut_ptr().cast(), odd_words);
            _mm512_store_si512(words.lengths.as_mut_ptr().cast(), word_len);
        }
    };

    let mut at = bytes.as_ptr();
    for step in steps {
        let mut left = step.literals as usize;
        // SAFETY: the caller's promise; masked loads touch only the bytes of their mask.
        unsafe {
            while left >= 64 {
                join(_mm512_loadu_si512(at.cast()), !0, &mut words);
                for word in 0..8 {
                    cursor.put(words.even[word], words.lengths[2 * word]);
                    cursor.put(words.odd[word], words.lengths[2 * word + 1]);
                }
                at = at.add(64);
                left -= 64;
            }
            if left > 0 {
                let live = !0 >> (64 - left);
                join(_mm512_maskz_loadu_epi8(live, at.cast()), live, &mut words);
                for word in 0..left.div_ceil(4) {
                    let bits = if word % 2 == 0 { words.even[word / 2] } else { words.odd[word / 2] };
                    cursor.put(bits, words.lengths[word]);
                }
            }
            write_match(step, code, cursor);
            at = at.add(left + step.matched as usize);
        }
    }
}
