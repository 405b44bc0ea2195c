//! Deflate's own numbers (RFC 1951, 3.2.5): which symbol and extra bits say a match length.

/// Symbols of the literal and length alphabet.
pub(crate) const LITLEN_SYMBOLS: usize = 286;

/// Symbols of the distance alphabet.
pub(crate) const DISTANCE_SYMBOLS: usize = 30;

/// How far back a match reaches at most.
pub(crate) const WINDOW: usize = 32 << 10;

/// The symbol that ends a block.
pub(crate) const END_OF_BLOCK: usize = 256;

/// The longest match.
pub(crate) const LONGEST_MATCH: u32 = 258;

/// The shortest match.
pub(crate) const SHORTEST_MATCH: u32 = 3;

/// How a match length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LengthCode {
    /// In the literal and length alphabet.
    pub(crate) symbol: u16,
    /// The value of the extra bits.
    pub(crate) extra: u8,
    /// How many extra bits follow.
    pub(crate) extra_bits: u8,
}

/// The code of each match length; lengths under 3 have none (symbol 0).
pub(crate) static LENGTH_CODES: [LengthCode; LONGEST_MATCH as usize + 1] = length_codes();

const fn length_codes() -> [LengthCode; LONGEST_MATCH as usize + 1] {
    let mut codes = [LengthCode { symbol: 0, extra: 0, extra_bits: 0 }; LONGEST_MATCH as usize + 1];
    let mut length = SHORTEST_MATCH as usize;
    let mut symbol = 257;
    while symbol < 285 {
        // Eight lengths without extra bits, then groups of four symbols with one bit more each.
        let extra_bits = if symbol < 265 { 0 } else { (symbol - 261) / 4 };
        let mut extra = 0;
        while extra < 1 << extra_bits {
            if length < codes.len() {
                codes[length] = LengthCode { symbol, extra: extra as u8, extra_bits: extra_bits as u8 };
            }
            length += 1;
            extra += 1;
        }
        symbol += 1;
    }
    codes[LONGEST_MATCH as usize] = LengthCode { symbol: 285, extra: 0, extra_bits: 0 };
    codes
}

/// How a match distance is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DistanceCode {
    /// In the distance alphabet.
    pub(crate) symbol: u8,
    /// How many extra bits follow.
    pub(crate) extra_bits: u8,
    /// The value of the extra bits.
    pub(crate) extra: u16,
}

impl DistanceCode {
    /// Of a distance from 1 to [`WINDOW`].
    #[inline(always)]
    pub(crate) fn new(distance: u16) -> Self {
        let rest = distance - 1;
        if rest < 2 {
            return DistanceCode { symbol: rest as u8, extra_bits: 0, extra: 0 };
        }
        // Two symbols for each power of two: the bit below the highest tells them apart, those below are extra.
        let extra_bits = rest.ilog2() as u8 - 1;
        let symbol = 2 * (extra_bits + 1) + (rest >> extra_bits & 1) as u8;
        DistanceCode { symbol, extra_bits, extra: rest & ((1 << extra_bits) - 1) }
    }
}

/// Cuts a stretch to be matched into deflate's matches: how many of the longest, then one last
/// (0 for none) or, where a rest of 1 or 2 would be left over, two.
#[inline(always)]
pub(crate) fn cut_match(matched: u32) -> (u32, [u32; 2]) {
    debug_assert!(matched == 0 || matched >= SHORTEST_MATCH);
    let (longest, rest) = (matched / LONGEST_MATCH, matched % LONGEST_MATCH);
    match rest {
        1 | 2 => (longest - 1, [LONGEST_MATCH + rest - SHORTEST_MATCH, SHORTEST_MATCH]),
        _ => (longest, [rest, 0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_as_in_the_rfc() {
        let code = |length: usize| {
            let LengthCode { symbol, extra, extra_bits } = LENGTH_CODES[length];
            (symbol, extra, extra_bits)
        };
        assert_eq!(code(3), (257, 0, 0));
        assert_eq!(code(10), (264, 0, 0));
        assert_eq!(code(11), (265, 0, 1));
        assert_eq!(code(12), (265, 1, 1));
        assert_eq!(code(66), (276, 7, 3));
        assert_eq!(code(115), (280, 0, 4));
        assert_eq!(code(131), (281, 0, 5));
        assert_eq!(code(257), (284, 30, 5));
        assert_eq!(code(258), (285, 0, 0));
    }

    #[test]
    fn distances_as_in_the_rfc() {
        let code = |distance: u16| {
            let DistanceCode { symbol, extra_bits, extra } = DistanceCode::new(distance);
            (symbol, extra_bits, extra)
        };
        assert_eq!([1, 2, 3, 4].map(code), [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]);
        assert_eq!([5, 6, 7, 8].map(code), [(4, 1, 0), (4, 1, 1), (5, 1, 0), (5, 1, 1)]);
        assert_eq!([193, 256, 257].map(code), [(15, 6, 0), (15, 6, 63), (16, 7, 0)]);
        assert_eq!([24577, 32768].map(code), [(29, 13, 0), (29, 13, 8191)]);
    }

    #[test]
    fn every_stretch_is_covered_exactly() {
        for matched in (3..2000).chain([0]) {
            let (longest, rest) = cut_match(matched);
            assert_eq!(longest * LONGEST_MATCH + rest[0] + rest[1], matched);
            assert!(rest.iter().all(|&length| length == 0 || length >= SHORTEST_MATCH));
            assert!(rest.iter().all(|&length| length <= LONGEST_MATCH));
        }
    }
}
