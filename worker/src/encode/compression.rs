//! `--compress`: how payloads are compressed.

use std::fmt;
use std::str::FromStr;

/// How an encoder compresses; the words are those of the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// `causal`: the encoder made for attention patterns (see the [module](super)).
    #[default]
    Causal,
    /// `zlib:0` to `zlib:9`: a general deflate; `zlib:6` is what numpy does.
    Zlib(ZlibLevel),
    /// `store`: no compression.
    Store,
}

/// A level from 0 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZlibLevel(u8);

impl ZlibLevel {
    /// numpy's.
    pub const NUMPY: ZlibLevel = ZlibLevel(6);

    /// For data that repeat, next to this encoder's own matches.
    pub(super) const REPETITIVE: ZlibLevel = ZlibLevel(6);

    /// For one value all over: zlib's shortest way to say so.
    pub(super) const CONSTANT: ZlibLevel = ZlibLevel(4);

    /// For arrays so small that several cost nothing. This library's 8 is nearly always shorter than zlib's own
    /// 6, but its 6 wins where few values repeat at one distance.
    pub(super) const SMALL: [ZlibLevel; 2] = [ZlibLevel(6), ZlibLevel(8)];

    /// `level` if it is one.
    pub fn new(level: u8) -> Option<Self> {
        (level <= 9).then_some(ZlibLevel(level))
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// A word that names no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression {0:?}: use causal, zlib:0 to zlib:9, or store")]
pub struct UnknownCompression(String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let zlib = |level: &str| {
            let [digit @ b'0'..=b'9'] = level.as_bytes() else { return None };
            Some(Compression::Zlib(ZlibLevel(digit - b'0')))
        };
        match word {
            "causal" => Some(Compression::Causal),
            "store" => Some(Compression::Store),
            _ => word.strip_prefix("zlib:").and_then(zlib),
        }
        .ok_or_else(|| UnknownCompression(word.to_owned()))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Causal => f.write_str("causal"),
            Compression::Zlib(level) => write!(f, "zlib:{}", level.get()),
            Compression::Store => f.write_str("store"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back_to_themselves() {
        for word in ["causal", "store", "zlib:0", "zlib:6", "zlib:9"] {
            assert_eq!(word.parse::<Compression>().unwrap().to_string(), word);
        }
        for word in ["", "zlib", "zlib:", "zlib:10", "zlib:+1", "zlib:a", "Causal"] {
            let error = word.parse::<Compression>().unwrap_err();
            assert!(error.to_string().contains("causal, zlib:0 to zlib:9, or store"), "{error}");
        }
    }
}
