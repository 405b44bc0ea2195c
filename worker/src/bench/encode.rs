//! How fast and how small one core encodes given arrays, beside zlib 6, which is what numpy uses.

use std::{fmt::Write as _, path::PathBuf};

use super::{Report, samples};
use crate::encode::{EncodeComparison, EncodeReport, compare};

pub(super) fn measure(files: &[PathBuf]) -> Result<EncodeComparison, String> {
    Ok(compare(&samples(files)?))
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
