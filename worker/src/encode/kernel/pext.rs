//! BMI2 and AVX2: four literals at a time by `pext`, which drops what is between their codes.
//!
//! Codes are looked up in lanes of 16 bits, with masks of the bits that are theirs, which also say how many
//! there are.

use std::arch::x86_64::*;

use super::super::bits::Cursor;
use super::super::code::BlockCode;
use super::super::frequencies::Frequencies;
use super::super::literals::Tally;
use super::super::runs::{self, Distance, Step, Value};
use super::super::tables::{LONGEST_MATCH, SHORTEST_MATCH};
use super::{avx2, write_match};

/// That this processor has the instructions, and is quick with `pext`: [`detect`] alone makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detected(());

/// Asks the processor.
pub(super) fn detect() -> Option<Detected> {
    let has_all = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
        && is_pext_fast();
    has_all.then_some(Detected(()))
}

/// AMD's before Zen 3, the first with `vaes`, take hundreds of cycles for a `pext`.
fn is_pext_fast() -> bool {
    let vendor = __cpuid(0);
    let is_amd = vendor.ebx == u32::from_le_bytes(*b"Auth");
    !is_amd || is_x86_feature_detected!("vaes")
}

/// [`runs::scan`] compiled for this instruction set.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn scan<V: Value>(values: &[V], steps: &mut Vec<Step>) {
    runs::scan(values, steps, |values| avx2::equal_pairs(values));
}

/// [`Frequencies::of`] compiled for this instruction set.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn frequencies<V: Value>(bytes: &[u8], steps: &[Step], tally: &mut Tally) -> (Frequencies, f32) {
    super::frequencies::<V>(bytes, steps, tally)
}

/// [`Frequencies::joined`] compiled for this instruction set.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) fn joined(first: &Frequencies, second: &Frequencies) -> (Frequencies, f32) {
    super::joined(first, second)
}

/// The codes of all 256 literals in 16 bits each, with masks of the bits in use 32 bits above: once for the
/// first of a pair, once 16 bits higher for the second.
struct Literals([[u64; 256]; 2]);

impl Literals {
    #[inline(always)]
    fn new(code: &BlockCode) -> Self {
        let mut literals = Literals([[0; 256]; 2]);
        for byte in 0..=255 {
            let (bits, len) = code.literal(byte);
            let literal = bits | ((1 << len) - 1) << 32;
            (literals.0[0][byte as usize], literals.0[1][byte as usize]) = (literal, literal << 16);
        }
        literals
    }

    /// The codes of two literals, 16 bits each, and above them their masks.
    #[inline(always)]
    fn pair(&self, first: u8, second: u8) -> u64 {
        self.0[0][first as usize] | self.0[1][second as usize]
    }
}

/// # Safety
/// The steps cover `bytes`; the cursor has room for the longest codes.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn write(bytes: &[u8], steps: &[Step], code: &BlockCode, cursor: Cursor) -> Cursor {
    const LOW: u64 = u32::MAX as u64;
    let table = Literals::new(code);
    // The argument is in the caller's memory. A copy stays in registers from one step to the next.
    let mut cursor = cursor.copied();
    let mut rest = bytes;
    for step in steps {
        let (literals, after) = rest.split_at(step.literals as usize);
        let (words, last) = literals.as_chunks::<4>();
        // SAFETY: the caller's promise.
        unsafe {
            let mut put = |&[a, b, c, d]: &[u8; 4]| {
                let (low, high) = (table.pair(a, b), table.pair(c, d));
                let mask = low >> 32 | high & !LOW;
                cursor.put(_pext_u64(low & LOW | high << 32, mask), mask.count_ones());
            };
            let (twos, one) = words.as_chunks::<2>();
            for [first, second] in twos {
                put(first);
                put(second);
            }
            one.iter().for_each(put);
            match *last {
                // So nearly every row of a short prompt ends.
                [only]
                    if (SHORTEST_MATCH..=LONGEST_MATCH).contains(&step.matched)
                        && step.distance == Distance::BYTE =>
                {
                    let (literal, len) = code.literal(only);
                    let (repeat, repeat_len) = code.match_bits(step.matched, Distance::BYTE);
                    cursor.put(literal | repeat << len, len + repeat_len);
                }
                _ => {
                    for &byte in last {
                        let (bits, len) = code.literal(byte);
                        cursor.put(bits, len);
                    }
                    write_match(step, code, &mut cursor);
                }
            }
        }
        rest = &after[step.matched as usize..];
    }
    cursor
}
