//! How fast a model's forward pass runs, by sequence length, without encoding or disk.

use std::{fmt::Write as _, num::NonZeroUsize};

use common::settings::Settings;
use serde::Serialize;

use super::{
    Failed, Report,
    opened::Opened,
    timing::{fastest, mb_per_s},
};
use crate::{
    engine::{EngineError, Layout, TokenBatch, run_to_end},
    model::Crossing,
};

/// Tokens of a batch where nobody says how many prompts: enough that its size decides nothing.
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
    /// One layer's patterns of the batch from a GPU to the host: their causal halves, as a run reads them.
    halves_to_host_seconds: Option<f64>,
    /// The same with whole patterns.
    squares_to_host_seconds: Option<f64>,
}

pub(super) fn measure(
    name: &str,
    device: Option<&str>,
    lengths: &[NonZeroUsize],
    batch_size: Option<NonZeroUsize>,
    settings: &Settings,
) -> Result<ForwardReport, Failed> {
    let Opened { name, spec, device, mut engine, load } = Opened::open(name, device, settings)?;
    let layers: Vec<usize> = (0..spec.n_layers()).collect();
    if lengths.iter().any(|n| n.get() > spec.n_ctx) {
        tracing::warn!(
            "{name} reads at most {} tokens: longer sequences are measured at that length",
            spec.n_ctx
        );
    }
    let mut lengths: Vec<usize> = lengths.iter().map(|n| n.get().min(spec.n_ctx)).collect();
    lengths.dedup();
    let mut measured = Vec::new();
    for n in lengths {
        let batch = batch_size.map_or_else(|| TOKENS.div_ceil(n), NonZeroUsize::get);
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
            return Err(Failed::new(format_args!("{name} over {batch} prompts of {n} tokens: {error}")));
        }
        let crossing = Crossing::measure(device, batch, spec.n_heads, n).transpose();
        let crossing = crossing.map_err(|error| {
            Failed::new(format_args!("reading back a layer of {batch} prompts of {n} tokens: {error}"))
        })?;
        let seconds = time.as_secs_f64();
        measured.push(Length {
            n,
            batch,
            tokens_per_s: (batch * n) as f64 / seconds,
            prompts_per_s: batch as f64 / seconds,
            pattern_mb_per_s: mb_per_s(bytes, time),
            warm_up_seconds: warm_up.as_secs_f64(),
            halves_to_host_seconds: crossing.map(|crossing| crossing.halves.as_secs_f64()),
            squares_to_host_seconds: crossing.map(|crossing| crossing.squares.as_secs_f64()),
        });
    }
    let (device, load_seconds) = (device.to_string(), load.as_secs_f64());
    Ok(ForwardReport { model: name, device, load_seconds, lengths: measured })
}

impl Report for ForwardReport {
    fn text(&self) -> String {
        let mut out = format!("{} on {}, loaded in {:.2} s\n", self.model, self.device, self.load_seconds);
        for length in &self.lengths {
            let Length { n, batch, tokens_per_s, prompts_per_s, pattern_mb_per_s, .. } = length;
            let _ = writeln!(
                out,
                "n {n:5}, batch {batch:4}: {tokens_per_s:8.0} tokens/s, {prompts_per_s:8.1} prompts/s, \
                 {pattern_mb_per_s:7.0} MB/s of patterns"
            );
            if let (Some(halves), Some(squares)) =
                (length.halves_to_host_seconds, length.squares_to_host_seconds)
            {
                let (halves, squares) = (1e3 * halves, 1e3 * squares);
                let _ = writeln!(
                    out,
                    "    a layer's patterns to the host: causal halves {halves:.2} ms, whole {squares:.2} ms"
                );
            }
        }
        out
    }
}
