//! How fast and how small one core encodes given arrays, beside zlib 6, which is what numpy uses.

use std::{fmt::Write as _, path::PathBuf};

use common::npz::layer_entry_name;
use serde::Serialize;

use super::{
    Failed, Report, samples,
    timing::{fastest, mb_per_s},
};
use crate::encode::{Compression, Encoder, Sample, ZlibLevel};

/// One compression's figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct EncodeReport {
    /// Uncompressed megabytes (10^6 bytes) a second on one core: conversion, compression and checksum.
    mb_per_s_per_core: f64,
    /// Compressed bytes by uncompressed bytes.
    ratio: f64,
}

/// This encoder beside what numpy does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct EncodeComparison {
    /// Arrays measured.
    arrays: usize,
    /// Their bytes, uncompressed.
    raw_bytes: u64,
    /// The default compression.
    #[serde(flatten)]
    causal: EncodeReport,
    /// zlib at level 6, numpy's, by the library this program uses for it.
    zlib6: EncodeReport,
}

pub(super) fn measure(files: &[PathBuf]) -> Result<EncodeComparison, Failed> {
    let samples: Vec<_> = files.iter().map(|file| samples(file)).collect::<Result<_, _>>()?;
    Ok(compare(&samples.concat()))
}

/// Measures both compressions on the same arrays, one after the other on the calling thread.
fn compare(samples: &[Sample]) -> EncodeComparison {
    let (causal, raw_bytes) = encode(samples, Compression::Causal);
    let (zlib6, _) = encode(samples, Compression::Zlib(ZlibLevel::NUMPY));
    EncodeComparison { arrays: samples.len(), raw_bytes, causal, zlib6 }
}

/// Encodes all arrays in each pass, by encoders with warm buffers.
fn encode(samples: &[Sample], compression: Compression) -> (EncodeReport, u64) {
    let (mut raw, mut compressed) = (0, 0);
    let mut encoder: Option<Encoder> = None;
    let time = fastest(|| {
        (raw, compressed) = (0, 0);
        for sample in samples {
            let encoder = match &mut encoder {
                Some(encoder) if encoder.dtype() == sample.dtype => encoder,
                other => other.insert(Encoder::new(compression, sample.dtype)),
            };
            let entry = encoder.encode(&layer_entry_name(0), sample.view());
            raw += entry.uncompressed_len;
            compressed += entry.payload.len() as u64;
            encoder.recycle(entry);
        }
    });
    let ratio = compressed as f64 / (raw as f64).max(1.0);
    (EncodeReport { mb_per_s_per_core: mb_per_s(raw, time), ratio }, raw)
}

impl Report for EncodeComparison {
    fn text(&self) -> String {
        let mut out = format!("{} arrays, {:.1} MB\n", self.arrays, self.raw_bytes as f64 / 1e6);
        for (name, EncodeReport { mb_per_s_per_core, ratio }) in
            [("causal", self.causal), ("zlib:6", self.zlib6)]
        {
            let _ = writeln!(out, "{name}  {mb_per_s_per_core:7.0} MB/s a core, {ratio:.4} of the size");
        }
        let _ = writeln!(
            out,
            "causal is {:.1} times as fast, its files {:.1} % of the size",
            self.causal.mb_per_s_per_core / self.zlib6.mb_per_s_per_core,
            100.0 * self.causal.ratio / self.zlib6.ratio
        );
        out
    }
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
        let (stored, raw) = encode(&samples, Compression::Store);
        assert_eq!((stored.ratio, raw), (1.0, 2 * 64 * 64 * 4 + 128));
        let both = compare(&samples);
        assert_eq!((both.arrays, both.raw_bytes), (1, raw));
        assert!(both.causal.ratio < 0.55 && both.zlib6.ratio < 0.55, "{both:?}");
        assert!(both.causal.mb_per_s_per_core > 0.0 && both.zlib6.mb_per_s_per_core > 0.0, "{both:?}");
        let json = serde_json::to_value(both).unwrap();
        assert!(json["mb_per_s_per_core"].is_f64() && json["zlib6"]["ratio"].is_f64(), "{json}");
    }
}
