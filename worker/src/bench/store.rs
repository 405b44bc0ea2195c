//! How fast prompts are committed to a directory, beside one plain file of the same bytes.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use common::{
    capture::{Capture, Dtype},
    job::{FailureKind, RunId},
    model::reference::ModelName,
    npz::{Entry, layer_entry_name, write_npz},
    prompt::PromptHash,
    store::{Store, StoreError},
};
use serde::Serialize;

use super::{
    Failed, Report, samples,
    timing::{mb_per_s, timed},
};
use crate::encode::{Compression, Encoder, Sample};

/// Prompts committed in a measurement.
const PROMPTS: usize = 256;

#[derive(Debug, Serialize)]
pub(super) struct StoreReport {
    /// Prompts committed.
    prompts: usize,
    /// Bytes of one prompt's npz file, on average.
    bytes_a_prompt: u64,
    /// Commit threads.
    threads: usize,
    prompts_per_s: f64,
    /// Encoded on the way: raw patterns to durable files.
    mb_per_s_with_encoding: f64,
    /// Encoded before: bytes to durable files.
    mb_per_s: f64,
    /// One file of the same bytes, written and synced once.
    plain_mb_per_s: f64,
}

pub(super) fn measure(dir: &Path, files: &[PathBuf]) -> Result<StoreReport, Failed> {
    // Prompt i is what file i holds; after the last file it begins again.
    let prompts: Vec<Vec<Sample>> = files.iter().map(|file| samples(file)).collect::<Result<_, _>>()?;
    let encode = |prompt: usize| -> Vec<Entry> {
        let mut encoder = Encoder::new(Compression::Causal, Dtype::Float32);
        let encode = |(i, sample): (usize, &Sample)| encoder.encode(&layer_entry_name(i), sample.view());
        prompts[prompt % prompts.len()].iter().enumerate().map(encode).collect()
    };
    let entries: Vec<Vec<Entry>> = (0..prompts.len()).map(encode).collect();
    let entries = |prompt: usize| entries[prompt % prompts.len()].clone();
    let scratch = tempfile::Builder::new().prefix("lenspool-bench-").tempdir_in(dir).map_err(|error| {
        let dir = dir.display();
        Failed::new(format_args!(
            "cannot write to {dir}: {error}; give a directory on the storage to measure"
        ))
    })?;
    let threads = thread::available_parallelism().map_or(4, usize::from).clamp(4, 16);

    tracing::info!(
        "committing {PROMPTS} prompts from {threads} threads, twice, under {}",
        scratch.path().display()
    );
    let (done, ready) = timed(|| commits(scratch.path(), "ready", threads, &entries));
    let total = done?;
    let (done, encoded) = timed(|| commits(scratch.path(), "encoded", threads, &encode));
    done?;
    let mut bytes = Vec::new();
    for prompt in 0..prompts.len() {
        write_npz(&entries(prompt), &mut bytes).map_err(Failed::new)?;
    }
    let (done, plain) = timed(|| plain(&scratch.path().join("plain"), &bytes, total));
    done.map_err(|error| {
        Failed::of(FailureKind::Retryable, format_args!("writing to {}: {error}", dir.display()))
    })?;
    Ok(StoreReport {
        prompts: PROMPTS,
        bytes_a_prompt: total / PROMPTS as u64,
        threads,
        prompts_per_s: PROMPTS as f64 / ready.as_secs_f64(),
        mb_per_s_with_encoding: mb_per_s(total, encoded),
        mb_per_s: mb_per_s(total, ready),
        plain_mb_per_s: mb_per_s(total, plain),
    })
}

/// Commits [`PROMPTS`] prompts from `threads` threads, as a worker does, and says how many bytes of npz files that is.
fn commits(
    save_path: &Path,
    name: &str,
    threads: usize,
    entries: &(dyn Fn(usize) -> Vec<Entry> + Sync),
) -> Result<u64, StoreError> {
    let model = ModelName::sanitize(name);
    let store = Store::new(save_path, &RunId(format!("bench-{}", std::process::id())));
    let store = store.model(&model, &Capture::default(), 1)?;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let commit = || {
            let mut bytes = 0;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= PROMPTS {
                    return Ok::<u64, StoreError>(bytes);
                }
                let entries = entries(i);
                let hash = PromptHash::of(&i.to_string());
                bytes += store.commit(&hash, b"{}", |file| write_npz(&entries, file))?.array_bytes;
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(commit)).collect();
        running.into_iter().map(|thread| thread.join().expect("a commit does not panic")).sum()
    })
}

/// Writes `total` bytes to one file, `bytes` again and again, and syncs it, as `dd conv=fsync` does.
fn plain(path: &Path, bytes: &[u8], total: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = total;
    while left > 0 {
        let part = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&bytes[..part])?;
        left -= part as u64;
    }
    file.sync_all()
}

impl Report for StoreReport {
    fn text(&self) -> String {
        format!(
            "{} prompts of {:.2} MB from {} threads: {:.0} prompts/s, {:.0} MB/s; with encoding on the way {:.0} MB/s\n\
             one plain file of the same bytes, synced once: {:.0} MB/s\n",
            self.prompts,
            self.bytes_a_prompt as f64 / 1e6,
            self.threads,
            self.prompts_per_s,
            self.mb_per_s,
            self.mb_per_s_with_encoding,
            self.plain_mb_per_s
        )
    }
}
