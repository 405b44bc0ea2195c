//! What an encoder does with given arrays on this machine: speed on one core, and size.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::compression::{Compression, ZlibLevel};
use super::encoder::Encoder;
use super::sample::Sample;

/// Rounds go on until they took this long.
const LONG_ENOUGH: Duration = Duration::from_secs(1);

/// Rounds at most; the fastest counts, as it is the least disturbed.
const MOST_ROUNDS: usize = 50;

/// One compression's figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EncodeReport {
    /// Uncompressed megabytes (10^6 bytes) a second on one core: conversion, compression and checksum.
    pub mb_per_s_per_core: f64,
    /// Compressed bytes by uncompressed bytes.
    pub ratio: f64,
}

/// This encoder beside what numpy does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EncodeComparison {
    /// Arrays measured.
    pub arrays: usize,
    /// Their bytes, uncompressed.
    pub raw_bytes: u64,
    /// The default compression.
    #[serde(flatten)]
    pub causal: EncodeReport,
    /// zlib at level 6, numpy's, by the library this program uses for it.
    pub zlib6: EncodeReport,
}

/// Measures both compressions on the same arrays, one after the other on the calling thread.
pub fn compare(samples: &[Sample]) -> EncodeComparison {
    let (causal, raw_bytes) = measure_bytes(samples, Compression::Causal);
    let (zlib6, _) = measure_bytes(samples, Compression::Zlib(ZlibLevel::NUMPY));
    EncodeComparison { arrays: samples.len(), raw_bytes, causal, zlib6 }
}

/// Measures one compression on `samples`, on the calling thread: each array by an encoder with warm
/// buffers, rounds over all arrays, the fastest round.
pub fn measure(samples: &[Sample], compression: Compression) -> EncodeReport {
    measure_bytes(samples, compression).0
}

fn measure_bytes(samples: &[Sample], compression: Compression) -> (EncodeReport, u64) {
    let start = Instant::now();
    let mut fastest = Duration::MAX;
    let (mut raw, mut compressed) = (0, 0);
    let mut encoder: Option<Encoder> = None;
    for _ in 0..MOST_ROUNDS {
        (raw, compressed) = (0, 0);
        let mut round = Duration::ZERO;
        for sample in samples {
            let encoder = match &mut encoder {
                Some(encoder) if encoder.dtype() == sample.dtype => encoder,
                other => other.insert(Encoder::new(compression, sample.dtype)),
            };
            let start = Instant::now();
            let entry = encoder.encode("blocks.0.attn.hook_pattern.npy", sample.view());
            round += start.elapsed();
            raw += entry.uncompressed_len;
            compressed += entry.payload.len() as u64;
            encoder.recycle(entry);
        }
        fastest = fastest.min(round);
        if start.elapsed() > LONG_ENOUGH {
            break;
        }
    }
    let report = EncodeReport {
        mb_per_s_per_core: raw as f64 / 1e6 / fastest.as_secs_f64().max(1e-9),
        ratio: compressed as f64 / (raw as f64).max(1.0),
    };
    (report, raw)
}

#[cfg(test)]
mod tests {
    use common::capture::Dtype;

    use super::*;

    #[test]
    fn figures_are_of_the_arrays_given() {
        let values =
            (0..2 * 64 * 64).map(|i| if i % 64 > i / 64 % 64 { 0.0 } else { (i as f32).sin() }).collect();
        let samples = [Sample::new(Dtype::Float32, 2, 64, values)];
        let stored = measure(&samples, Compression::Store);
        assert_eq!(stored.ratio, 1.0);
        let both = compare(&samples);
        assert_eq!((both.arrays, both.raw_bytes), (1, 2 * 64 * 64 * 4 + 128));
        assert!(both.causal.ratio < 0.55 && both.zlib6.ratio < 0.55, "{both:?}");
        assert!(both.causal.mb_per_s_per_core > both.zlib6.mb_per_s_per_core, "{both:?}");
        let json = serde_json::to_value(both).unwrap();
        assert!(json["mb_per_s_per_core"].is_f64() && json["zlib6"]["ratio"].is_f64(), "{json}");
    }
}
