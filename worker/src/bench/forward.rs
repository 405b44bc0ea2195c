//! How fast a model's forward pass runs, by sequence length, without encoding or disk.

use std::fmt::Write as _;

use common::{
    capture::Numerics,
    model::{
        family,
        locate::{fetch_weights, locate_config},
        reference::ModelRef,
    },
    settings::{Run, Settings},
};
use serde::Serialize;

use super::{
    Report,
    timing::{fastest, mb_per_s, timed},
};
use crate::{
    engine::{EngineError, Layout, TokenBatch, run_to_end},
    model::{self, device::DeviceChoice},
    run::ComputeOptions,
};

/// Tokens of a batch: enough that its size decides nothing.
const TOKENS: usize = 1024;

#[derive(Debug, Serialize)]
pub(super) struct ForwardReport {
    model: String,
    device: String,
    load_seconds: f64,
    lengths: Vec<Length>,
}

#[derive(Debug, Serialize)]
struct Length {
    n: usize,
    batch: usize,
    tokens_per_s: f64,
    prompts_per_s: f64,
    /// Raw patterns made, in 10^6 bytes a second.
    pattern_mb_per_s: f64,
    /// What compiling and tuning kernels for this length took before.
    warm_up_seconds: f64,
}

pub(super) fn measure(
    name: &str,
    device: Option<&str>,
    lengths: &[usize],
    settings: &Settings,
) -> Result<ForwardReport, String> {
    fn say(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    ComputeOptions::parse(settings).map_err(say)?.prepare();
    let Run { compute_dtype, matmul_precision, .. } = settings.run;
    let numerics = Numerics { compute_dtype, matmul_precision };
    let choice: DeviceChoice = device.unwrap_or(&settings.run.device).parse().map_err(say)?;
    let hub = settings.hub.options();
    let reference = ModelRef::parse(name, settings.hub.revision.as_deref()).map_err(say)?;
    let located = locate_config(&reference, &hub, &mut |_| {}).map_err(say)?;
    let spec = family::read_spec(&located.dir.join("config.json")).map_err(say)?;
    let files = fetch_weights(&located, &hub, &mut |_| {}).map_err(say)?;
    let dir = files.first().and_then(|file| file.parent()).unwrap_or(&located.dir);
    let (engine, load) = timed(|| model::load(dir, &spec, choice, numerics, spec.n_layers() - 1));
    let mut engine = engine.map_err(say)?;
    let load_seconds = load.as_secs_f64();

    let layers: Vec<usize> = (0..spec.n_layers()).collect();
    let mut measured = Vec::new();
    for &n in lengths {
        let n = n.clamp(1, spec.n_ctx);
        let batch = TOKENS.div_ceil(n);
        let ids = |p: usize| (0..n).map(|i| ((p * 7919 + i * 104_729) % spec.d_vocab) as u32).collect();
        let tokens = TokenBatch { prompts: (0..batch).map(ids).collect() };
        let bytes = (layers.len() * batch * Layout::Square.len(spec.n_heads, n) * size_of::<f32>()) as u64;
        let mut failed = None::<EngineError>;
        let warm_up = engine.warm_up(batch, n).unwrap_or_default();
        let time = fastest(|| {
            let taken = |pattern| drop(std::hint::black_box(pattern));
            failed = run_to_end(&mut *engine, tokens.clone(), &layers, taken).err();
        });
        if let Some(error) = failed {
            return Err(format!("{name} over {batch} prompts of {n} tokens: {error}"));
        }
        let seconds = time.as_secs_f64();
        measured.push(Length {
            n,
            batch,
            tokens_per_s: (batch * n) as f64 / seconds,
            prompts_per_s: batch as f64 / seconds,
            pattern_mb_per_s: mb_per_s(bytes, time),
            warm_up_seconds: warm_up.as_secs_f64(),
        });
    }
    let device = format!("{:?}", choice.resolve()).to_lowercase();
    Ok(ForwardReport { model: located.name.to_string(), device, load_seconds, lengths: measured })
}

impl Report for ForwardReport {
    fn text(&self) -> String {
        let mut out = format!("{} on {}, loaded in {:.2} s\n", self.model, self.device, self.load_seconds);
        for Length { n, batch, tokens_per_s, prompts_per_s, pattern_mb_per_s, .. } in &self.lengths {
            let _ = writeln!(
                out,
                "n {n:5}, batch {batch:4}: {tokens_per_s:8.0} tokens/s, {prompts_per_s:8.1} prompts/s, \
                 {pattern_mb_per_s:7.0} MB/s of patterns"
            );
        }
        out
    }
}
