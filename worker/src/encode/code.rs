//! The code of one block: what each literal, match length and distance is written as.

use super::bits::BitWriter;
use super::header::{self, DISTANCE_SYMBOLS};
use super::histogram::Counts;
use super::huffman::{canonical_codes, code_lengths};
use super::runs::{Distance, Step};
use super::tables::{END_OF_BLOCK, LENGTH_CODES, LITLEN_SYMBOLS, LONGEST_MATCH, cut_match};

/// The longest code of a literal or length: four of them and seven bits left over fit into 64 bits.
pub(crate) const LITLEN_LIMIT: u32 = 14;

/// The most bits a match can take: its length's code and extra bits, its distance's code.
pub(crate) const MATCH_BITS: u32 = LITLEN_LIMIT + 5 + 2;

/// How often everything but literals occurs in a block; exact.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matches {
    /// Of match length symbols 257 to 285.
    lengths: [u32; LITLEN_SYMBOLS - 257],
    distances: [u32; DISTANCE_SYMBOLS],
}

impl Matches {
    /// Counts the matches of `steps`, whose values have `value_size` bytes.
    pub(crate) fn count(&mut self, steps: &[Step], value_size: usize) {
        for step in steps.iter().filter(|step| step.matched > 0) {
            let (longest, rest) = cut_match(step.matched);
            self.lengths[285 - 257] += longest;
            let mut matches = longest;
            for length in rest.into_iter().filter(|&length| length > 0) {
                self.lengths[LENGTH_CODES[length as usize].symbol as usize - 257] += 1;
                matches += 1;
            }
            self.distances[distance_symbol(step.distance, value_size)] += matches;
        }
    }

    /// Adds another block's.
    pub(crate) fn add(&mut self, other: &Matches) {
        self.lengths.iter_mut().zip(other.lengths).for_each(|(sum, more)| *sum += more);
        self.distances.iter_mut().zip(other.distances).for_each(|(sum, more)| *sum += more);
    }

    /// Of match length symbols, from 257.
    pub(crate) fn lengths(&self) -> &[u32] {
        &self.lengths
    }
}

fn distance_symbol(distance: Distance, value_size: usize) -> usize {
    match distance {
        Distance::Byte => 0,
        Distance::Value => value_size - 1,
    }
}

/// The lengths and codes of one block.
#[derive(Clone, Debug)]
pub(crate) struct BlockCode {
    litlen_lengths: [u8; LITLEN_SYMBOLS],
    litlen_codes: [u16; LITLEN_SYMBOLS],
    distance_lengths: [u8; DISTANCE_SYMBOLS],
    distance_codes: [u16; DISTANCE_SYMBOLS],
    value_size: usize,
}

impl BlockCode {
    /// The best code for what was counted. Where `literals` is a sample, `sampled` gives every literal
    /// a code, counted or not.
    pub(crate) fn new(literals: &Counts, sampled: bool, matches: &Matches, value_size: usize) -> Self {
        let mut freqs = [0; LITLEN_SYMBOLS];
        for (freq, &count) in freqs.iter_mut().zip(literals) {
            *freq = count.max(u32::from(sampled));
        }
        freqs[END_OF_BLOCK] = 1;
        freqs[257..].copy_from_slice(&matches.lengths);
        let mut code = BlockCode {
            litlen_lengths: [0; LITLEN_SYMBOLS],
            litlen_codes: [0; LITLEN_SYMBOLS],
            distance_lengths: [0; DISTANCE_SYMBOLS],
            distance_codes: [0; DISTANCE_SYMBOLS],
            value_size,
        };
        code_lengths(&freqs, LITLEN_LIMIT, &mut code.litlen_lengths);
        canonical_codes(&code.litlen_lengths, &mut code.litlen_codes);
        code_lengths(&matches.distances, LITLEN_LIMIT, &mut code.distance_lengths);
        canonical_codes(&code.distance_lengths, &mut code.distance_codes);
        code
    }

    /// Writes the block's header.
    pub(crate) fn write_header(&self, bits: &mut BitWriter) {
        header::write(bits, &self.litlen_lengths, &self.distance_lengths);
    }

    /// The code of a literal, and its length.
    pub(crate) fn literal(&self, byte: usize) -> (u16, u8) {
        (self.litlen_codes[byte], self.litlen_lengths[byte])
    }

    /// What ends the block.
    pub(crate) fn end_of_block(&self) -> (u64, u32) {
        (self.litlen_codes[END_OF_BLOCK].into(), self.litlen_lengths[END_OF_BLOCK].into())
    }

    /// How a match is written, and in how many bits.
    #[inline(always)]
    pub(crate) fn match_bits(&self, length: u32, distance: Distance) -> (u64, u32) {
        let LengthCode { symbol, extra, extra_bits } = LENGTH_CODES[length as usize];
        let distance = distance_symbol(distance, self.value_size);
        let mut bits = u64::from(self.litlen_codes[symbol as usize]);
        let mut len = u32::from(self.litlen_lengths[symbol as usize]);
        bits |= u64::from(extra) << len;
        len += u32::from(extra_bits);
        bits |= u64::from(self.distance_codes[distance]) << len;
        len += u32::from(self.distance_lengths[distance]);
        (bits, len)
    }

    /// The longest match, twice, at the byte before.
    #[inline(always)]
    pub(crate) fn longest_match(&self, distance: Distance) -> (u64, u32) {
        self.match_bits(LONGEST_MATCH, distance)
    }
}

use super::tables::LengthCode;
