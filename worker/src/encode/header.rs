//! The head of a dynamic block: both codes' lengths, run-length coded and Huffman coded (RFC 1951, 3.2.7).

use super::bits::BitWriter;
use super::prefix_code::{canonical_codes, code_lengths};
use super::tables::{DISTANCE_SYMBOLS, LITLEN_SYMBOLS};

/// The order in which the code length code's own lengths are sent.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// One instruction for the reader's list of lengths.
#[derive(Clone, Copy)]
struct Token {
    /// 0 to 15: that length. 16: the last one again. 17, 18: zeros.
    symbol: u8,
    extra: u8,
}

fn extra_bits(symbol: u8) -> u32 {
    const BITS: [u8; 19] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 7];
    BITS[symbol as usize].into()
}

/// Writes a dynamic block's header: not the last block of its stream.
pub(crate) fn write(bits: &mut BitWriter, litlen: &[u8; LITLEN_SYMBOLS], distance: &[u8; DISTANCE_SYMBOLS]) {
    let litlen_count = litlen.iter().rposition(|&l| l > 0).map_or(257, |last| (last + 1).max(257));
    let distance_count = distance.iter().rposition(|&l| l > 0).map_or(1, |last| last + 1);

    let mut lengths = [0u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS];
    lengths[..litlen_count].copy_from_slice(&litlen[..litlen_count]);
    lengths[litlen_count..][..distance_count].copy_from_slice(&distance[..distance_count]);
    let mut tokens = [Token { symbol: 0, extra: 0 }; LITLEN_SYMBOLS + DISTANCE_SYMBOLS];
    let count = tokenize(&lengths[..litlen_count + distance_count], &mut tokens);
    let tokens = &tokens[..count];

    let mut freqs = [0u32; 19];
    for token in tokens {
        freqs[token.symbol as usize] += 1;
    }
    // Readers refuse an incomplete code here: never fewer than two symbols.
    if freqs.iter().filter(|&&f| f > 0).count() < 2 {
        freqs[0] += 1;
        freqs[18] += 1;
    }
    let (mut cl_lengths, mut cl_codes) = ([0u8; 19], [0u16; 19]);
    code_lengths(&freqs, 7, &mut cl_lengths);
    canonical_codes(&cl_lengths, &mut cl_codes);
    let cl_count = ORDER.iter().rposition(|&s| cl_lengths[s] > 0).map_or(4, |last| (last + 1).max(4));

    bits.put(0b100, 3);
    bits.put(litlen_count as u64 - 257, 5);
    bits.put(distance_count as u64 - 1, 5);
    bits.put(cl_count as u64 - 4, 4);
    for &symbol in &ORDER[..cl_count] {
        bits.put(u64::from(cl_lengths[symbol]), 3);
    }
    // A token takes at most 7 bits and 7 extra ones.
    bits.reserve(2 * tokens.len());
    // SAFETY: as many bytes as the tokens can take were just reserved.
    unsafe {
        bits.unchecked(|mut cursor| {
            for token in tokens {
                let symbol = token.symbol as usize;
                let length = u32::from(cl_lengths[symbol]);
                let code = u64::from(cl_codes[symbol]) | u64::from(token.extra) << length;
                cursor.put(code, length + extra_bits(token.symbol));
            }
            cursor
        });
    }
}

fn tokenize(lengths: &[u8], tokens: &mut [Token]) -> usize {
    let mut count = 0;
    let mut push = |symbol: u8, extra: usize| {
        tokens[count] = Token { symbol, extra: extra as u8 };
        count += 1;
    };
    let mut at = 0;
    while at < lengths.len() {
        let length = lengths[at];
        let mut run = lengths[at..].iter().take_while(|&&l| l == length).count();
        at += run;
        if length > 0 {
            push(length, 0);
            run -= 1;
        }
        while run > 0 {
            let take = match (length, run) {
                (0, 11..) => {
                    let take = run.min(138);
                    push(18, take - 11);
                    take
                }
                (0, 3..) => {
                    push(17, run - 3);
                    run
                }
                (_, 3..) if length > 0 => {
                    let take = run.min(6);
                    push(16, take - 3);
                    take
                }
                _ => {
                    push(length, 0);
                    1
                }
            };
            run -= take;
        }
    }
    count
}
