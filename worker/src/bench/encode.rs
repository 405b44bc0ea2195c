//! How fast and how small one core encodes given arrays, beside zlib 6, which is what numpy uses.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use common::capture::Dtype;
use serde::Serialize;

use super::{
    Report,
    arrays::{self, Array},
    fastest, mb_per_s,
};
use crate::encode::{Compression, Encoder, PatternView, ZlibLevel};

/// One encoder's speed and size.
#[derive(Clone, Copy, Debug, Serialize)]
struct Encoding {
    /// Raw megabytes a second on one core, CRC included.
    mb_per_s_per_core: f64,
    /// Compressed bytes by raw bytes.
    ratio: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct EncodeReport {
    arrays: usize,
    raw_bytes: u64,
    #[serde(flatten)]
    causal: Encoding,
    zlib6: Encoding,
}

pub(super) fn measure(files: &[PathBuf]) -> Result<EncodeReport, String> {
    let arrays = arrays::read(files)?;
    let raw_bytes = arrays.iter().map(Array::bytes).sum();
    Ok(EncodeReport {
        arrays: arrays.len(),
        raw_bytes,
        causal: encode(&arrays, raw_bytes, Compression::Causal),
        zlib6: encode(&arrays, raw_bytes, Compression::Zlib(ZlibLevel::NUMPY)),
    })
}

fn encode(arrays: &[Array], raw_bytes: u64, compression: Compression) -> Encoding {
    let mut encoder = Encoder::new(compression, Dtype::Float32);
    let mut encoded = 0;
    let mut pass = || {
        encoded = 0;
        for array in arrays {
            let entry = encoder.encode(&array.name, PatternView::new(&array.values, array.n_heads, array.n));
            encoded += entry.payload.len() as u64;
            encoder.recycle(entry);
        }
    };
    let time: Duration = fastest(&mut pass);
    Encoding { mb_per_s_per_core: mb_per_s(raw_bytes, time), ratio: encoded as f64 / raw_bytes as f64 }
}

impl Report for EncodeReport {
    fn text(&self) -> String {
        let mut out = format!("{} arrays, {:.1} MB of float32\n", self.arrays, self.raw_bytes as f64 / 1e6);
        for (name, encoding) in [("causal", self.causal), ("zlib:6", self.zlib6)] {
            let Encoding { mb_per_s_per_core, ratio } = encoding;
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
