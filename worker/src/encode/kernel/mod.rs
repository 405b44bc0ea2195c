//! The loops that see every byte: portable, for BMI2 and for AVX-512.
//!
//! Which one runs is decided when the encoder is made, from what the processor says it can do.
//! All give the same bits: tests compare those that the processor runs.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod pext;
mod portable;

use super::bits::{BitWriter, Cursor};
use super::code::{BlockCode, LITLEN_LIMIT, MATCH_BITS};
use super::frequencies::Frequencies;
use super::literals::Tally;
use super::runs::{self, Step, Value};
use super::tables::{LONGEST_MATCH, cut_match};

/// How far past the last bit a kernel may write: sixteen words.
const SURPLUS: usize = 128;

/// A set of loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Plain Rust.
    Portable,
    /// Bits picked by `pext`; the rest as plain Rust, compiled for AVX2 (Haswell, Zen 3 and later).
    #[cfg(target_arch = "x86_64")]
    Pext(pext::Detected),
    /// Byte permutes over whole code tables: AVX-512 with VBMI (Ice Lake, Zen 4 and later).
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Detected),
}

impl Kernel {
    /// All that this processor runs, the slowest first.
    pub(crate) fn available() -> Vec<Kernel> {
        let mut kernels = vec![Kernel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(pext::detect().map(Kernel::Pext));
            kernels.extend(avx512::detect().map(Kernel::Avx512));
        }
        kernels
    }

    /// The fastest this processor runs.
    pub(crate) fn detect() -> Kernel {
        *Kernel::available().last().expect("one runs everywhere")
    }

    /// Appends the steps that spell out `values`.
    pub(crate) fn scan<V: Value>(self, values: &[V], steps: &mut Vec<Step>) {
        match self {
            Kernel::Portable => runs::scan(values, steps, runs::equal_pairs),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Detected` says that this processor has the instructions.
            Kernel::Pext(_) => unsafe { pext::scan(values, steps) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Detected` says that this processor has the instructions.
            Kernel::Avx512(_) => unsafe { avx512::scan(values, steps) },
        }
    }

    /// The frequencies of steps over `bytes`, which are values of type `V`, and the bits they take.
    pub(crate) fn frequencies<V: Value>(
        self,
        bytes: &[u8],
        steps: &[Step],
        tally: &mut Tally,
    ) -> (Frequencies, f32) {
        match self {
            Kernel::Portable => frequencies::<V>(bytes, steps, tally),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Detected` says that this processor has the instructions.
            Kernel::Pext(_) => unsafe { pext::frequencies::<V>(bytes, steps, tally) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Detected` says that this processor has the instructions.
            Kernel::Avx512(_) => unsafe { avx512::frequencies::<V>(bytes, steps, tally) },
        }
    }

    /// The frequencies of two blocks in one, and the bits they take.
    pub(crate) fn joined(self, first: &Frequencies, second: &Frequencies) -> (Frequencies, f32) {
        match self {
            Kernel::Portable => joined(first, second),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Detected` says that this processor has the instructions.
            Kernel::Pext(_) => unsafe { pext::joined(first, second) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Detected` says that this processor has the instructions.
            Kernel::Avx512(_) => unsafe { avx512::joined(first, second) },
        }
    }

    /// Writes the steps over `bytes`, whose literals all have codes, to the block begun in `bits`.
    pub(crate) fn write(self, bytes: &[u8], steps: &[Step], code: &BlockCode, bits: &mut BitWriter) {
        let (mut covered, mut most_bits) = (0, 0);
        for step in steps {
            covered += step.literals as usize + step.matched as usize;
            most_bits += step.literals as usize * LITLEN_LIMIT as usize
                + (step.matched / LONGEST_MATCH + 2) as usize * MATCH_BITS as usize;
        }
        assert_eq!(covered, bytes.len(), "the steps spell out all bytes");
        assert!(u32::try_from(covered).is_ok(), "places in a block are written in 32 bits");
        bits.reserve(most_bits / 8 + 8 + SURPLUS);
        // SAFETY: the room for the longest codes was reserved, the steps stay within `bytes`, and `Detected` says
        // that this processor has the instructions.
        unsafe {
            bits.unchecked(|cursor| match self {
                Kernel::Portable => portable::write(bytes, steps, code, cursor),
                #[cfg(target_arch = "x86_64")]
                Kernel::Pext(_) => pext::write(bytes, steps, code, cursor),
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx512(_) => avx512::write(bytes, steps, code, cursor),
            });
        }
    }
}

#[inline(always)]
fn frequencies<V: Value>(bytes: &[u8], steps: &[Step], tally: &mut Tally) -> (Frequencies, f32) {
    let frequencies = Frequencies::of::<V>(bytes, steps, tally);
    let bits = frequencies.bits();
    (frequencies, bits)
}

#[inline(always)]
fn joined(first: &Frequencies, second: &Frequencies) -> (Frequencies, f32) {
    let frequencies = first.joined(second);
    let bits = frequencies.bits();
    (frequencies, bits)
}

/// Writes the match of a step.
///
/// # Safety
/// The cursor has room for `MATCH_BITS` per match.
#[inline(always)]
unsafe fn write_match(step: &Step, code: &BlockCode, cursor: &mut Cursor) {
    let (longest, rest) = cut_match(step.matched);
    // SAFETY: the caller's promise.
    unsafe {
        if longest > 0 {
            let (bits, len) = code.longest_match(step.distance);
            for _ in 0..longest {
                cursor.put(bits, len);
            }
        }
        for length in rest {
            if length > 0 {
                let (bits, len) = code.match_bits(length, step.distance);
                cursor.put(bits, len);
            }
        }
    }
}
