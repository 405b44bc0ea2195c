//! AVX-512 with VBMI: sixteen words of four literals at a time.
//!
//! The codes of all 256 literals fit into registers: three tables of 256 bytes (a code's low byte, its
//! high byte, its length), four registers each, looked up by byte permutes of 128 entries. Codes are
//! then joined pairwise by variable shifts, bytes to pairs to words. A running sum of the words' lengths
//! says at which bit each begins; each is shifted there and gets the bits its first byte shares with the
//! word before, so that sixteen plain writes, each over the last one's surplus, are left to do.

use std::arch::x86_64::*;

use super::super::bits::Cursor;
use super::super::code::BlockCode;
use super::super::frequencies::Frequencies;
use super::super::literals::Tally;
use super::super::runs::{self, Step, Value};
use super::{avx2, write_match};

/// That this processor has the instructions: [`detect`] alone makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detected(());

/// Asks the processor.
pub(super) fn detect() -> Option<Detected> {
    let has_all = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt");
    has_all.then_some(Detected(()))
}

/// [`runs::scan`] compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,bmi1,bmi2,lzcnt")]
pub(super) fn scan<V: Value>(values: &[V], steps: &mut Vec<Step>) {
    runs::scan(values, steps, |values| avx2::equal_pairs(values));
}

/// [`Frequencies::of`] compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,bmi1,bmi2,lzcnt")]
pub(super) fn frequencies<V: Value>(bytes: &[u8], steps: &[Step], tally: &mut Tally) -> (Frequencies, f32) {
    super::frequencies::<V>(bytes, steps, tally)
}

/// [`Frequencies::joined`] compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,bmi1,bmi2,lzcnt")]
pub(super) fn joined(first: &Frequencies, second: &Frequencies) -> (Frequencies, f32) {
    super::joined(first, second)
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

/// The same shuffle for all four 16-byte lanes; -1 gives zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn lanes(pattern: [i8; 16]) -> __m512i {
    // SAFETY: a load of 16 bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(pattern.as_ptr().cast()) })
}

/// A block's literal codes as byte tables.
struct Literals {
    low: Table,
    high: Table,
    /// 16 less the length.
    gap: Table,
}

/// Codes of sixteen words of four literals. `first` has words 0, 1, 4, 5, 8, 9, 12, 13, `second` the others:
/// two of each four, as unpacking within 16-byte lanes leaves them.
struct Words {
    first: __m512i,
    second: __m512i,
    /// Lengths, 32 bits each, in order.
    lengths: __m512i,
    /// The bits up to and with each word, in order.
    ends: __m512i,
}

impl Literals {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn new(code: &BlockCode) -> Self {
        let (mut low, mut high, mut gap) = ([0u8; 256], [0u8; 256], [0u8; 256]);
        for byte in 0..=255 {
            let (bits, len) = code.literal(byte);
            let byte = byte as usize;
            [low[byte], high[byte], ..] = bits.to_le_bytes();
            gap[byte] = 16 - len as u8;
        }
        Literals { low: table(&low), high: table(&high), gap: table(&gap) }
    }

    /// Joins the codes of 64 literals.
    ///
    /// Two codes side by side in lanes of `w` bits, the first `len` bits long, become one by shifting the
    /// second down by `w - len`, its gap. It has zeros below, so rotating does the same.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn join(&self, literals: __m512i) -> Words {
        let upper = _mm512_movepi8_mask(literals);
        let low = look_up(&self.low, literals, upper);
        let high = look_up(&self.high, literals, upper);
        let gap = look_up(&self.gap, literals, upper);
        let pair_gap = _mm512_maddubs_epi16(gap, _mm512_set1_epi8(1));
        let word_gap = _mm512_madd_epi16(pair_gap, _mm512_set1_epi16(1));

        let join = |codes: __m512i, gaps: __m512i, pair_gaps: __m512i| {
            let upper_16 = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let second = _mm512_rorv_epi32(_mm512_and_si512(codes, upper_16), gaps);
            let pairs = _mm512_or_si512(_mm512_andnot_si512(upper_16, codes), second);
            let upper_32 = _mm512_set1_epi64(0xffff_ffff_0000_0000_u64 as i64);
            let second = _mm512_rorv_epi64(_mm512_and_si512(pairs, upper_32), pair_gaps);
            _mm512_or_si512(_mm512_andnot_si512(upper_32, pairs), second)
        };
        let first = join(
            _mm512_unpacklo_epi8(low, high),
            _mm512_shuffle_epi8(gap, lanes([0, -1, -1, -1, 2, -1, -1, -1, 4, -1, -1, -1, 6, -1, -1, -1])),
            _mm512_shuffle_epi8(
                pair_gap,
                lanes([0, -1, -1, -1, -1, -1, -1, -1, 4, -1, -1, -1, -1, -1, -1, -1]),
            ),
        );
        let second = join(
            _mm512_unpackhi_epi8(low, high),
            _mm512_shuffle_epi8(gap, lanes([8, -1, -1, -1, 10, -1, -1, -1, 12, -1, -1, -1, 14, -1, -1, -1])),
            _mm512_shuffle_epi8(
                pair_gap,
                lanes([8, -1, -1, -1, -1, -1, -1, -1, 12, -1, -1, -1, -1, -1, -1, -1]),
            ),
        );
        let lengths = _mm512_sub_epi32(_mm512_set1_epi32(64), word_gap);
        Words { first, second, lengths, ends: running_sum(lengths) }
    }
}

/// The sum of each 32-bit lane and all lanes before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn running_sum(lengths: __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    let sum = _mm512_add_epi32(lengths, _mm512_alignr_epi32::<15>(lengths, zero));
    let sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<14>(sum, zero));
    let sum = _mm512_add_epi32(sum, _mm512_alignr_epi32::<12>(sum, zero));
    _mm512_add_epi32(sum, _mm512_alignr_epi32::<8>(sum, zero))
}

/// Sixteen words placed at their bits.
#[repr(C, align(64))]
struct Placed {
    /// In the order of [`Words`]; each with the bits it shares a byte with.
    words: [u64; 16],
    /// The byte each word begins in, in order.
    bytes: [u32; 16],
    /// The bits up to and with each word, in order, without those held before.
    ends: [u32; 16],
}

/// Where word `index` is in [`Placed::words`].
const fn slot(index: usize) -> usize {
    index / 4 * 2 + index % 2 + if index % 4 < 2 { 0 } else { 8 }
}

impl Placed {
    /// `held` bits, fewer than 8, are before the first word.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn place(&mut self, words: &Words, held: u32) {
        let Words { first, second, lengths, ends } = *words;
        let after = _mm512_add_epi32(ends, _mm512_set1_epi32(held as i32));
        let before = _mm512_sub_epi32(after, lengths);
        let seven = _mm512_set1_epi32(7);
        // 0 to 7 bits up for each word; then what of it falls into the next word's first byte.
        let up = _mm512_and_si512(before, seven);
        let down = _mm512_sub_epi32(lengths, _mm512_and_si512(after, seven));
        let low = lanes([0, -1, -1, -1, -1, -1, -1, -1, 4, -1, -1, -1, -1, -1, -1, -1]);
        let high = lanes([8, -1, -1, -1, -1, -1, -1, -1, 12, -1, -1, -1, -1, -1, -1, -1]);
        let first_rest = _mm512_srlv_epi64(first, _mm512_shuffle_epi8(down, low));
        let second_rest = _mm512_srlv_epi64(second, _mm512_shuffle_epi8(down, high));
        // The word before: of words 4i + 2 and 4i + 3 it is in the same 16-byte lane.
        let before_second = _mm512_alignr_epi8::<8>(second_rest, first_rest);
        let before_first = _mm512_maskz_permutex2var_epi64(
            0b1111_1110,
            first_rest,
            _mm512_setr_epi64(0, 0, 8 + 1, 2, 8 + 3, 4, 8 + 5, 6),
            second_rest,
        );
        let first = _mm512_rolv_epi64(first, _mm512_shuffle_epi8(up, low));
        let second = _mm512_rolv_epi64(second, _mm512_shuffle_epi8(up, high));
        // SAFETY: each half of `words` and each other field is 64 bytes, all aligned to 64.
        unsafe {
            let to = self.words.as_mut_ptr();
            _mm512_store_si512(to.cast(), _mm512_or_si512(first, before_first));
            _mm512_store_si512(to.add(8).cast(), _mm512_or_si512(second, before_second));
            _mm512_store_si512(self.bytes.as_mut_ptr().cast(), _mm512_srli_epi32(before, 3));
            _mm512_store_si512(self.ends.as_mut_ptr().cast(), ends);
        }
    }
}

/// Up to sixteen words of one step's literals.
#[derive(Clone, Copy, Default)]
struct Task {
    at: u32,
    /// Words, below 17; [`Task::LAST`] is added to the last of a step.
    words: u32,
}

impl Task {
    const LAST: u32 = 32;

    fn list(steps: &[Step]) -> Vec<Task> {
        let whole: usize = steps.iter().map(|step| step.literals as usize / 64 + 1).sum();
        let mut tasks = Vec::with_capacity(whole + 1);
        let mut at = 0;
        for step in steps {
            let (mut start, mut words) = (at, step.literals / 4);
            while words > 16 {
                tasks.push(Task { at: start, words: 16 });
                start += 64;
                words -= 16;
            }
            tasks.push(Task { at: start, words: words + Task::LAST });
            at += step.literals + step.matched;
        }
        tasks.push(Task::default());
        tasks
    }

    fn count(self) -> u32 {
        self.words % Task::LAST
    }
}

/// # Safety
/// The steps cover `bytes`; the cursor has room for the longest codes and [`super::SURPLUS`] bytes more.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,bmi1,bmi2,lzcnt")]
pub(super) unsafe fn write(bytes: &[u8], steps: &[Step], code: &BlockCode, mut cursor: Cursor) -> Cursor {
    let literals = Literals::new(code);
    let join = |task: Task| {
        let live = _bzhi_u64(!0, 4 * task.count());
        // SAFETY: only the bytes of the mask are loaded; they are a step's.
        literals.join(unsafe { _mm512_maskz_loadu_epi8(live, bytes.as_ptr().add(task.at as usize).cast()) })
    };
    let tasks = Task::list(steps);
    let mut placed = Placed { words: [0; 16], bytes: [0; 16], ends: [0; 16] };
    let mut steps = steps.iter();
    let mut words = join(tasks[0]);
    for pair in tasks.windows(2) {
        let task = pair[0];
        // Only bits of the word just before are merged into a word's first byte.
        let short = _mm512_cmplt_epu32_mask(words.lengths, _mm512_set1_epi32(7)) != 0;
        placed.place(&words, cursor.held());
        // Kept in memory: single values are loaded from there faster than they are taken out of vectors.
        let placed = std::hint::black_box(&mut placed);
        words = join(pair[1]);
        let count = task.count() as usize;
        let end = task.at as usize + 4 * count;
        // SAFETY: the caller's promise.
        unsafe {
            if short {
                write_slowly(&bytes[task.at as usize..end], code, &mut cursor);
            } else if count > 0 {
                cursor.put_placed(&placed.words, slot, &placed.bytes, &placed.ends, count);
            }
            if task.words >= Task::LAST {
                let step = steps.next().expect("one last task for each step");
                write_slowly(&bytes[end..end + step.literals as usize % 4], code, &mut cursor);
                write_match(step, code, &mut cursor);
            }
        }
    }
    cursor
}

/// # Safety
/// The cursor has room for the longest codes.
#[inline(always)]
unsafe fn write_slowly(bytes: &[u8], code: &BlockCode, cursor: &mut Cursor) {
    for &byte in bytes {
        let (bits, len) = code.literal(byte);
        // SAFETY: the caller's promise.
        unsafe { cursor.put(bits, len) };
    }
}
