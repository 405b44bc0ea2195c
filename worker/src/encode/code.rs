//! The code of one block: what each literal, match length and distance is written as.

use super::bits::BitWriter;
use super::frequencies::Frequencies;
use super::header;
use super::prefix_code::{canonical_codes, code_lengths};
use super::runs::Distance;
use super::tables::{
    DISTANCE_SYMBOLS, DistanceCode, END_OF_BLOCK, LENGTH_CODES, LITLEN_SYMBOLS, LONGEST_MATCH, LengthCode,
};

/// The longest code of a literal, length or distance: four of them and seven bits left over fit into 64 bits.
pub(crate) const LITLEN_LIMIT: u32 = 14;

/// The most bits a match can take: codes and extra bits of its length and its distance.
pub(crate) const MATCH_BITS: u32 = LITLEN_LIMIT + 5 + LITLEN_LIMIT + 13;

/// The lengths and codes of one block.
#[derive(Clone, Debug)]
pub(crate) struct BlockCode {
    litlen_lengths: [u8; LITLEN_SYMBOLS],
    litlen_codes: [u16; LITLEN_SYMBOLS],
    distance_lengths: [u8; DISTANCE_SYMBOLS],
    distance_codes: [u16; DISTANCE_SYMBOLS],
}

impl BlockCode {
    /// A code for these frequencies, as close to the best as [`prefix_code`](super::prefix_code) comes.
    pub(crate) fn new(frequencies: &Frequencies) -> Self {
        let mut code = BlockCode {
            litlen_lengths: [0; LITLEN_SYMBOLS],
            litlen_codes: [0; LITLEN_SYMBOLS],
            distance_lengths: [0; DISTANCE_SYMBOLS],
            distance_codes: [0; DISTANCE_SYMBOLS],
        };
        let mut weights = [0; LITLEN_SYMBOLS];
        weigh(frequencies.litlen(), &mut weights);
        code_lengths(&weights, LITLEN_LIMIT, &mut code.litlen_lengths);
        canonical_codes(&code.litlen_lengths, &mut code.litlen_codes);
        let mut weights = [0; DISTANCE_SYMBOLS];
        weigh(frequencies.distances(), &mut weights);
        code_lengths(&weights, LITLEN_LIMIT, &mut code.distance_lengths);
        canonical_codes(&code.distance_lengths, &mut code.distance_codes);
        code
    }

    /// Writes the block's header.
    pub(crate) fn write_header(&self, bits: &mut BitWriter) {
        header::write(bits, &self.litlen_lengths, &self.distance_lengths);
    }

    /// The code of a literal, and how many bits it has.
    #[inline(always)]
    pub(crate) fn literal(&self, byte: u8) -> (u64, u32) {
        self.litlen(byte.into())
    }

    #[inline(always)]
    fn litlen(&self, symbol: usize) -> (u64, u32) {
        (self.litlen_codes[symbol].into(), self.litlen_lengths[symbol].into())
    }

    /// What ends the block.
    pub(crate) fn end_of_block(&self) -> (u64, u32) {
        self.litlen(END_OF_BLOCK)
    }

    /// The code and the extra bits of a match's length, each with how many bits it has.
    #[inline(always)]
    pub(crate) fn length(&self, length: u32) -> [(u64, u32); 2] {
        let LengthCode { symbol, extra, extra_bits } = LENGTH_CODES[length as usize];
        [self.litlen(symbol.into()), (extra.into(), extra_bits.into())]
    }

    /// The code and the extra bits of a match's distance, each with how many bits it has.
    #[inline(always)]
    pub(crate) fn distance(&self, distance: Distance) -> [(u64, u32); 2] {
        let DistanceCode { symbol, extra, extra_bits } = distance.code();
        let (code, len) = (self.distance_codes[symbol as usize], self.distance_lengths[symbol as usize]);
        [(code.into(), len.into()), (extra.into(), extra_bits.into())]
    }

    /// How a match is written, and in how many bits.
    #[inline(always)]
    pub(crate) fn match_bits(&self, length: u32, distance: Distance) -> (u64, u32) {
        let fields = self.length(length).into_iter().chain(self.distance(distance));
        fields.fold((0, 0), |(bits, len), (more, more_len)| (bits | more << len, len + more_len))
    }

    /// How the longest match is written.
    #[inline(always)]
    pub(crate) fn longest_match(&self, distance: Distance) -> (u64, u32) {
        self.match_bits(LONGEST_MATCH, distance)
    }
}

/// Turns frequencies into whole weights that sum up to about `2^20`.
///
/// A symbol that occurs gets at least the weight for which the longest code allowed would be right; so
/// the optimal code nearly always keeps to the limit by itself.
fn weigh(frequencies: &[f32], weights: &mut [u32]) {
    const TOTAL: f32 = (1 << 20) as f32;
    const LEAST: u32 = 1 << (20 - LITLEN_LIMIT + 1);
    let scale = TOTAL / frequencies.iter().sum::<f32>().max(1.0);
    for (weight, &frequency) in weights.iter_mut().zip(frequencies) {
        *weight = if frequency > 0.0 { ((frequency * scale) as u32).max(LEAST) } else { 0 };
    }
}
